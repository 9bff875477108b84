"""The command from end to end with real training, killed on its way, in the smallest size there is."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.ablation import worker
from research.cli.main import main
from research.data.labelled_text import LabelledText
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.objectives.classification import Classification
from research.training.description import to_json
from research.training.experiment import Experiment
from research.training.migrations import FORMAT

ROOT = Path(__file__).parents[2]
ABLATION = """
from research.ablation.grid import Ablation, Factor
from research.data.induction import Induction
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment

def ablation():
    return Ablation(
        name="tiny",
        base=Experiment(
            "tiny",
            GPT(vocabulary=9, context=32, layers=1, width=16, heads=2, depth="unroll"),
            Induction(symbols=8, length=16, questions=2, test_lengths=(16, 32), test_rows=4, batch=8),
            Recall(),
            steps=40,
            evaluation=Evaluation(every=20),
            checkpointing=Checkpointing(every=10),
            log_every=5,
        ),
        factors=(
            Factor("attention", ("model.attention",), {
                "softmax": {},
                "window 4": {"model.attention": "sliding-window", "model.attention.window": 4},
            }),
        ),
        contexts=(16, 64),
        quality="valid/accuracy",
    )
"""


def _steps_saved(point: Path) -> list[int]:
    return [int(place.name) for place in (point / "run" / "checkpoints").glob("*") if place.name.isdigit()]


@pytest.mark.slow
def test_a_grid_goes_on_after_its_runner_was_killed_and_ends_in_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(ABLATION)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "research.cli", "ablate", "tiny.py", "--parallel", "2"]
    points = [tmp_path / "runs/tiny" / f"{name}--rate-0.001--seed-0" for name in ("softmax", "window-4")]
    # So long that it cannot end before it is killed.
    with subprocess.Popen(
        [*command, "--steps", "1000000"], env=environment, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 240
        # One point and then the other: the one that began first may have deleted its oldest by then.
        for point in points:
            while not _steps_saved(point) and time.monotonic() < deadline:
                time.sleep(0.1)  # files are looked for: nothing tells when they are there
        process.send_signal(signal.SIGKILL)
    assert all(_steps_saved(point) for point in points)
    deadline = time.monotonic() + 60
    # The points notice that nobody waits for them, save, and stop, which gives their locks back.
    for point in points:
        with open(point / "run" / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        # What it says last comes after it has given the lock back.
        while "stopped by SIGTERM" not in (point / "log.txt").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)  # they are nobody's children now: nothing can wait for their end
        assert "stopped by SIGTERM" in (point / "log.txt").read_text()
    last = max(step for point in points for step in _steps_saved(point)) + 20
    done = subprocess.run(
        [*command, "--steps", str(last), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for point in points:
        assert "resumed from step" in (point / "log.txt").read_text()
    results = json.loads(done.stdout)["points"]
    assert [result["steps"] for result in results] == [last, last]
    for result in results:
        assert set(result["metrics"]) == {"valid/loss", "valid/accuracy", "test/length 16", "test/length 32"}
        assert result["peak_memory_bytes"] > 2**26 and result["tokens_per_second"] > 0
        assert all(result["decode_seconds"][n] > 0 for n in ("16", "64"))
    softmax, window = (result["state_bytes"] for result in results)
    assert softmax == {"16": 2 * 16 * 16 * 4, "64": 2 * 64 * 16 * 4} and window["64"] < softmax["16"]
    assert main([*command[3:], "--steps", str(last)]) == 0  # again: all is done
    captured = capsys.readouterr()
    assert "2 points are done already" in captured.err and "report: runs/tiny/report.html" in captured.out
    with open("runs/tiny/points.csv") as file:
        assert [row["attention"] for row in csv.DictReader(file)] == ["softmax", "window 4"]
    assert (tmp_path / "runs/tiny/test_lengths.png").exists()


@pytest.mark.slow
def test_what_a_classifier_is_measured_by_at_the_end_is_a_metric_of_its_point(tmp_path):
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "up high\tyes\ndown low\tno\n" * 8)
    encoder = BERT(vocabulary=64, context=8, layers=1, width=8, heads=1, feed_forward_width=8, depth="unroll")
    point = Experiment(
        "point",
        Classifier(encoder, pooling="mean"),
        LabelledText(path=str(tmp_path / "rows.tsv"), valid_fraction=0.5, length=8, batch=4),
        Classification(),
        steps=2,
    )
    task = {"experiment": {"format": FORMAT, **to_json(point)}, "contexts": [8]}
    found = worker.run(tmp_path, task)["metrics"]
    for name in ("accuracy", "f1", "matthews"):
        assert found[f"metrics/{name}"] == pytest.approx(found[f"valid/{name}"])


def test_what_cannot_be_meant_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(ABLATION)
    for arguments, message in {
        ("--parallel", "0"): "--parallel 0: at least 1",
        ("--model.attention", "softmax"): "--model.attention is what the factor 'attention' of tiny varies",
        ("--seed", "3"): "did you mean --seeds?",
        ("--seeds", ""): "seeds is ()",
        ("--data.length", "3"): "tiny, softmax: data.length 3 cannot hold data.questions 2; at least 6",
    }.items():
        assert main(["ablate", "tiny.py", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["ablate", "tony.py"]) == 2
    assert "did you mean 'tiny.py'?" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]


def test_a_grid_whose_points_all_fail_has_its_report_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "false")
    (tmp_path / "tiny.py").write_text(ABLATION)
    assert main(["ablate", "tiny.py"]) == 2
    captured = capsys.readouterr()
    assert "report: runs/tiny/report.html" in captured.out and Path("runs/tiny/report.html").is_file()
    assert captured.err.splitlines()[-1] == (
        "headway: none of 2 points came to its end; the first: ended with exit code 1 (see log.txt)"
    )
