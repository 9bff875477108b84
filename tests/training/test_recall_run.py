"""A run that learns to recall, from the command line: what is printed at its end and by evaluate."""

from __future__ import annotations

import json

import pytest

from research.cli.main import main

EXPERIMENT = """
from research.data.induction import Induction
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Experiment

def experiment():
    return Experiment(
        "induction",
        GPT(vocabulary=9, context=16, layers=1, width=16, heads=2, depth="unroll"),
        Induction(symbols=8, length=8, questions=2, test_lengths=(8, 16), test_rows=4, batch=8),
        Recall(),
        steps=4,
    )
"""


@pytest.mark.slow
def test_accuracy_baselines_and_tests_are_printed_and_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "induction.py").write_text(EXPERIMENT)
    assert main(["train", "induction.py", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert set(trained["validation"]) == {"valid/loss", "valid/accuracy"}
    assert trained["baselines"] == {"any token": 0.125} and set(trained["tests"]) == {"length 8", "length 16"}
    assert main(["evaluate", "runs/induction", "--json", "--checkpoint", "newest"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == trained["validation"]["valid/accuracy"] and found["tests"] == trained["tests"]
    assert main(["evaluate", "runs/induction"]) == 0
    assert "any token                      0.1250" in capsys.readouterr().out
    assert main(["evaluate", "runs/induction", "--data.path", "x"]) == 2
    assert "learned from generated rows, not text" in capsys.readouterr().err
    assert main(["sample", "runs/induction"]) == 2
    assert "sample needs a run of objective 'causal-lm'" in capsys.readouterr().err
