"""Runs of every older format, as they were written then, are read and gone on with.

formats/format-N.tar.xz is a run that the code of format N trained (two layers of width 4, two steps, from
another run called format-N), with the sums of its parameters as that code loaded them.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from research.attention.positions import Learned, Sinusoidal
from research.attention.recurrent_mechanisms import Mamba2
from research.errors import UserError
from research.training.description import from_json, load_experiment, to_json
from research.training.initial import WarmStart
from research.training.migrations import FORMAT, MIGRATIONS, migrated
from research.training.paths import path_name
from research.training.run_directory import claim
from research.training.trained import load

FORMATS = Path(__file__).parent / "formats"


@pytest.fixture(params=range(1, FORMAT))
def number(request):
    return request.param


@pytest.fixture
def run(number, tmp_path):
    with tarfile.open(FORMATS / f"format-{number}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "tiny"


def test_every_older_format_has_a_migration_and_a_run():
    assert list(MIGRATIONS) == list(range(1, FORMAT))
    assert sorted(path.name for path in FORMATS.iterdir()) == [f"format-{n}.tar.xz" for n in MIGRATIONS]


def test_a_run_of_an_older_format_loads_as_it_was(run, number):
    trained = load(run)
    assert trained.experiment.initial == WarmStart(f"format-{number}") and trained.step == 2
    model = trained.experiment.model
    assert model.positions == {1: Learned(), 2: Sinusoidal(amplitude=1.0), 3: None}[number]
    if number == 3:
        assert model.attention == Mamba2(key_dim=2, convolution_bias=False, norm_epsilon=1e-5)
    expected = json.loads((run / "expected.json").read_text())
    found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params)}
    assert found.keys() == expected.keys()
    for name, (shape, total, size) in expected.items():
        values = np.asarray(found[name], np.float64)
        assert list(values.shape) == shape
        assert (values.sum(), np.abs(values).sum()) == (pytest.approx(total), pytest.approx(size))


def test_a_run_of_an_older_format_may_be_gone_on_with(run):
    experiment = load_experiment(run)
    with claim(run, to_json(dataclasses.replace(experiment, steps=9))):
        assert json.loads((run / "experiment.json").read_text())["format"] == FORMAT
    with (
        pytest.raises(UserError, match=r"different experiment: seed \(0 there, 5 now\)"),
        claim(run, to_json(dataclasses.replace(experiment, seed=5))),
    ):
        pass
    assert load_experiment(run) == dataclasses.replace(experiment, steps=9)


def test_a_newer_format_is_refused_in_one_line(run):
    file = run / "experiment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"its format is {FORMAT + 1}, this version of headway reads 1 to"):
        load(run)


def test_before_format_3_a_transformer_dropped_attention_weights_as_all_else():
    stored = {"model": {"kind": "transformer", "dropout": 0.3, "positions": {"kind": "sinusoidal"}}}
    model = migrated({"format": 2, **stored})["model"]
    assert model == {**stored["model"], "attention_dropout": 0.3}  # and sinusoids keep their amplitude


def test_a_linear_transformer_that_format_4_would_compute_otherwise_is_refused():
    linear, rotary = {"kind": "linear-transformer"}, {"kind": "rotary"}
    pattern = {"kind": "interleaved", "first": {"kind": "softmax"}, "second": linear}
    for model in (
        {"attention": linear, "positions": rotary},
        {"decoder_attention": {**pattern, "positions_in": "both"}, "positions": rotary},
    ):
        with pytest.raises(UserError, match="turns queries and keys before its features"):
            migrated({"format": 3, "model": model})
        assert migrated({"format": 4, "model": model}) == {"model": model}
    for model in (
        {"attention": linear, "positions": {"kind": "learned"}},
        {"attention": {**pattern, "positions_in": "first"}, "positions": rotary},
        {"cross_attention": linear, "positions": rotary},
    ):
        assert migrated({"format": 3, "model": model})["model"]["positions"] == model["positions"]


def test_todays_descriptions_pass_unchanged():
    value = {"name": "x", "initial": {"kind": "warm-start", "run": "y"}}
    assert migrated({"format": FORMAT, **value}) == migrated(value) == value
    assert from_json(migrated({"name": "x"})).initial is None
