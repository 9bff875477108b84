"""A BERT from its description to answers: training, resuming, filling gaps, minimal pairs, fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from research.attention.low_rank import Linformer
from research.attention.positions import Learned, Rotary
from research.cli.main import main
from research.data.labelled_text import LabelledText
from research.data.masked_text import MaskedText
from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.masked_language_model import fill
from research.training.optimizer import AdamW, Muon
from research.training.schedule import Linear
from research.training.session import run
from research.training.trained import load
from research.training.warm_start import started_from

pytestmark = pytest.mark.slow
ANIMALS, PLACES = ("cat", "dog", "cow", "fox"), ("mat", "log", "hill", "box")
SENTENCES = [f"The {a} sat on the {p}." for a, p in zip(ANIMALS, PLACES, strict=True)]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """A BERT that learns which animal sits where."""
    text = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    for name in "abcdefgh":
        (text / f"{name}.txt").write_text(" ".join(random.choice(SENTENCES, 80)))
    return Experiment(
        name="tiny",
        model=BERT(
            vocabulary=100, context=32, layers=1, width=32, heads=2, feed_forward_width=64, dropout=0.0,
            depth="unroll", placement="pre", positions=Rotary(base=100.0),
        ),
        data=MaskedText(source="files", path=str(text), valid_fraction=0.3, length=24, batch=16, rate=0.2),
        objective=MaskedLM(),
        optimizer=Muon(learning_rate=5e-2, adam_learning_rate=1e-2),
        schedule=Linear(warmup=10),
        steps=120,
        evaluation=Evaluation(every=60),
        checkpointing=Checkpointing(every=60),
        baselines=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(described, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "straight"
    return directory, run(described, directory)


@pytest.fixture(scope="module")
def trained(finished):
    return load(finished[0])


def test_it_learns_and_says_how_baselines_do(finished):
    _, result = finished
    assert result.validation["valid/accuracy"] > 0.6 > result.conclusion.values["baselines"]["unigram"]
    assert set(result.conclusion.values["baselines"]) == {
        "unigram",
        "bigram, left side",
        "bigram, both sides",
    }
    assert 0.8 < result.conclusion.values["fill"] <= 1.0


def test_a_resumed_run_is_the_run_that_was_never_stopped(described, finished, tmp_path):
    directory, _ = finished
    # A copy that lost its last checkpoint goes on from the one before.
    shutil.copytree(directory, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "120")
    run(described, tmp_path / "again")
    one, other = load(directory, "newest").params, load(tmp_path / "again", "newest").params
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_fills_gaps_with_what_belongs_there(trained):
    verb, end = fill(trained, "The dog [MASK] on the log[MASK]", top=3)
    assert (verb[0].token, end[0].token) == ("sat", ".")
    assert verb[0].text == "the dog sat on the log [MASK]"
    assert 0.3 < verb[0].probability <= 1.0
    assert sum(candidate.probability for candidate in verb) <= 1.0
    assert verb[0].probability >= verb[1].probability >= verb[2].probability


def test_fill_on_the_command_line(finished, capsys):
    run_directory = str(finished[0])
    assert main(["fill", run_directory, "The cat [MASK] on the mat.", "--top", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert " sat " in first and "the cat sat on the mat." in first and "%" in second
    assert main(["fill", run_directory, "No gap here."]) == 2
    assert "no [MASK] in the text" in capsys.readouterr().err
    assert main(["fill", run_directory, "[MASK] " + "the cat " * 30]) == 2
    assert "63 tokens, the model reads at most 32" in capsys.readouterr().err


def test_minimal_pairs_on_the_command_line(finished, tmp_path, capsys):
    pairs = [
        {"sentence_good": f"The {a} sat on the {p}.", "sentence_bad": f"The {a} sat the on {p}.",
         "UID": f"order_{i % 2}", "linguistics_term": "word_order"}
        for i, (a, p) in enumerate(zip(ANIMALS, PLACES, strict=True))
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    published = {"UID": "order_0", "linguistics_term": "word_order", "ngram": 0.75}
    (tmp_path / "models_summary.jsonl").write_text(json.dumps(published))
    arguments = ["evaluate", str(finished[0]), "--task", "blimp", "--data.path", str(file)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phenomena"] == {"word_order": 1.0} and found["all"]["mean"] == 1.0
    assert found["published"]["ngram"] == {"word_order": 0.75, "mean": 0.75}
    assert main(arguments) == 0
    assert "word_order" in capsys.readouterr().out
    assert main(["evaluate", str(finished[0]), "--task", "blmp", "--data.path", str(file)]) == 2
    assert main(["evaluate", str(finished[0]), "--task", "blimp"]) == 2
    assert "needs --data.path" in capsys.readouterr().err


def test_attention_that_reads_a_row_as_one_document_trains_on_rows_that_are_not_packed(described, tmp_path):
    model = dataclasses.replace(described.model, context=24, attention=Linformer(rank=4), positions=Learned())
    data = dataclasses.replace(described.data, packed=False)
    experiment = dataclasses.replace(described, model=model, data=data, steps=4, baselines=False)
    result = run(experiment, tmp_path / "run")
    assert np.isfinite(result.validation["valid/loss"]) and result.step == 4
    assert "real tokens in rows of one piece" in result.conclusion.lines[-1]


def test_evaluating_its_own_text(finished, capsys):
    directory, result = finished
    assert main(["evaluate", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(result.validation["valid/accuracy"], abs=1e-6)


HEIGHTS = ("low", "low", "high", "high")
TASKS = {
    "labels": [{"text": text, "label": height} for text, height in zip(SENTENCES, HEIGHTS, strict=True)],
    "pairs": [
        {"text": SENTENCES[0], "second": text, "label": height}
        for text, height in zip(SENTENCES, HEIGHTS, strict=True)
    ],
    "score": [{"text": text, "label": float(number)} for number, text in enumerate(SENTENCES)],
    "tags": [
        {"text": text[:-1].split(), "label": ["O", "ANIMAL", "O", "O", "O", height.upper()]}
        for text, height in zip(SENTENCES, HEIGHTS, strict=True)
    ],
}
"""What is to be learned from the pre-trained vectors: where an animal sits, in each form of labelled text."""


def task(name, folder):
    """A description of the task, its training and validation text in one file."""
    records = TASKS[name]
    rows = [
        {**record, "split": split}
        for split, count in (("train", 8), ("valid", 3))
        for record in records * count
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    classes = {"score": 1, "tags": 4}.get(name, 2)
    return Experiment(
        name="task",
        model=Classifier(classes=classes, head_dropout=0.0, pooling="mean", per_token=name == "tags"),
        data=LabelledText(
            path=str(folder / "task.jsonl"),
            task=name if name in ("score", "tags") else "labels",
            second="second" if name == "pairs" else None,
            split_field="split",
            classes=classes,
            length=24,
            batch=16,
        ),
        objective=Classification(),
        optimizer=AdamW(learning_rate=1e-2, layer_decay=0.8),
        schedule=Linear(warmup=2),
        steps=40 if name == "score" else 150,  # a correlation goes on growing in the last digits
        evaluation=Evaluation(every=10, best="pearson" if name == "score" else "accuracy", patience=2),
        checkpointing=Checkpointing(every=10, keep_last=1),
    )


@pytest.mark.parametrize("name", TASKS)
def test_fine_tuning_starts_from_the_run_learns_and_stops_early(finished, name, tmp_path, capsys):
    directory, _ = finished
    experiment = started_from(task(name, tmp_path), str(directory))
    assert experiment.model.bert == load(directory).experiment.model
    said = []
    result = run(experiment, tmp_path / "tuned", report=said.append)
    metrics, best = result.conclusion.values["metrics"], experiment.evaluation.best
    assert metrics[best] == pytest.approx(result.validation[f"valid/{best}"], abs=1e-4)
    if name == "score":
        assert metrics["pearson"] > 0.9 and set(metrics) == {"pearson", "spearman"}
    else:
        assert metrics["accuracy"] == 1.0
        assert set(metrics) == {"accuracy", "macro_f1" if name == "tags" else "f1", "matthews"}
        assert ("(f1 of 'low')" in result.conclusion.lines[0]) is (name != "tags")
    assert result.step < 150  # nothing better for two evaluations, or all steps
    taken, new, unused = said[-4:-1]
    assert taken.startswith(f"from {directory} at step")
    assert new == "new: class_head/bias, class_head/kernel"
    assert "token_head/transform/kernel" in unused and "stack" not in unused
    names = {"score": [], "tags": ["ANIMAL", "HIGH", "LOW", "O"]}.get(name, ["high", "low"])
    assert json.loads((tmp_path / "tuned" / "labels.json").read_text()) == names
    # Another file of the same fields.
    records = [{**record, "split": "valid"} for record in TASKS[name]]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, records)))
    arguments = ["evaluate", str(tmp_path / "tuned"), "--data.path", str(tmp_path / "other.jsonl"), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 4 and found["metrics"] == pytest.approx(metrics, abs=1e-3)
    records[1]["label"] = ["LOW"] * 5 + ["MIDDLE"] if name == "tags" else "middle"
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main(arguments) == 2 and "other.jsonl, line 2: field 'label' is" in capsys.readouterr().err
    assert main(arguments[:2]) == 2 and "--data.path FILE" in capsys.readouterr().err


def test_what_cannot_be_started_from_is_said(finished, tmp_path):
    directory, _ = finished
    labels = task("labels", tmp_path)
    with pytest.raises(UserError, match="its model is 'bert', this experiment's 'gpt'"):
        started_from(dataclasses.replace(labels, model=GPT()), str(directory))
    experiment = started_from(labels, str(directory))
    wider = dataclasses.replace(experiment.model.bert, width=48, heads=3)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, bert=wider))
    with pytest.raises(UserError, match="the model must be the run's"):
        run(experiment, tmp_path / "run")
