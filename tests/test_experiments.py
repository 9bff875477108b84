"""Every experiment and ablation of the repository can be built."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from research.ablation.grid import load_ablation, rows
from research.training.description import load_description, load_experiment, to_json
from research.training.experiment import Experiment
from research.training.validity import validate

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
OTHERS = ("pretraining_pays", "glue_seeds", "ladder")
"""Files that need a run, or are scripts."""


def files(*folders):
    found = [file for folder in folders for file in sorted((EXPERIMENTS / folder).glob("*.py"))]
    return [pytest.param(file, id=file.stem) for file in found if file.stem not in OTHERS]


@pytest.mark.parametrize("file", files("gpt", "bert", "translation"))
def test_an_experiment_holds_together_and_says_how_it_is_run(file):
    described = load_description(file)
    if isinstance(described, Experiment):
        validate(described)
    else:
        described.validate()
    assert f"headway train {file.relative_to(EXPERIMENTS.parent)}" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("size", ["", "_big"])
def test_the_published_transformers_have_the_published_learning_rate(size):
    described = load_experiment(EXPERIMENTS / "translation" / f"transformer_wmt14{size}.py")
    peak = (described.model.width * described.schedule.warmup) ** -0.5
    assert described.optimizer.learning_rate == pytest.approx(peak, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("file", files("ablations"))
def test_the_combinations_of_an_ablation_hold_together(file):
    assert len(rows(dataclasses.replace(load_ablation(file), matched=()))) > 1
    assert f"headway ablate {file.relative_to(EXPERIMENTS.parent)}" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "quality"),
    [("cola", "metrics/matthews"), ("stsb", "metrics/pearson"), ("mnli", "metrics/accuracy")],
)
def test_a_task_of_glue_is_measured_with_three_seeds(tmp_path, monkeypatch, task, quality):
    experiment = load_experiment(EXPERIMENTS / "bert" / "quickstart.py")
    (tmp_path / "experiment.json").write_text(json.dumps(to_json(experiment)))
    monkeypatch.setenv("RUN", str(tmp_path))
    monkeypatch.setenv("TASK", task)
    ablation = load_ablation(EXPERIMENTS / "bert" / "glue_seeds.py")
    assert len(rows(ablation)) == 2 and ablation.seeds == (0, 1, 2)
    assert ablation.quality == quality and ablation.higher_is_better
    assert ablation.base.data.source == f"glue/{task}"


def test_pretraining_pays_starts_from_any_masked_language_model(tmp_path, monkeypatch):
    experiment = load_experiment(EXPERIMENTS / "bert" / "quickstart.py")
    (tmp_path / "experiment.json").write_text(json.dumps(to_json(experiment)))
    monkeypatch.setenv("RUN", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    ablation = load_ablation(EXPERIMENTS / "bert" / "pretraining_pays.py")
    assert len(rows(dataclasses.replace(ablation, matched=()))) == 12
    assert ablation.base.model.bert == dataclasses.replace(experiment.model, dropout=0.2)
