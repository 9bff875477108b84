"""Heatmaps of attention: what stands where; which runs have any."""

import json

import numpy as np

from research.report.attention import draws, heatmap, section
from research.report.figures import svg
from research.training.run_directory import RunDirectory


def test_rows_are_target_words_and_columns_source_words():
    weights = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    figure = heatmap(weights, ["a", "costs", "$5"], ["ein", "kostet"], title="one")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "costs", r"\$5"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ein", "kostet"]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert svg(figure).startswith("<svg")


def test_only_translators_with_attention_are_drawn(tmp_path):
    for name, model, objective, wanted in (
        ("a", {"kind": "seq2seq", "attention": {"kind": "alignment"}}, "translation", True),
        ("b", {"kind": "seq2seq", "attention": None}, "translation", False),
        ("c", {"kind": "transformer"}, "translation", True),
        ("d", {"kind": "gpt"}, "causal-lm", False),
    ):
        (tmp_path / name).mkdir()
        text = json.dumps({"name": name, "model": model, "objective": {"kind": objective}})
        (tmp_path / name / "experiment.json").write_text(text)
        assert draws(RunDirectory(tmp_path / name)) == wanted
    assert section([RunDirectory(tmp_path / "d")], ["d"]) == []
