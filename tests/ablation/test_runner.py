"""Running a grid: order, learning rates, what is done already, failures, interruptions."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.ablation.grid import Ablation, Factor, Row
from research.ablation.runner import run
from research.attention.positions import Sinusoidal
from research.data.associative_recall import AssociativeRecall
from research.errors import StoppedError, UserError
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Experiment

BASE = Experiment(
    "base",
    GPT(vocabulary=32, context=16, layers=1, width=16, heads=2, depth="unroll"),
    AssociativeRecall(vocabulary=32, length=16, pairs=2, batch=4, valid_batches=1),
    Recall(),
    steps=3,
)
GRID = Ablation(
    "grid",
    BASE,
    (Factor("attention", ("model.attention",), {"full": {}, "window": {}}),),
    learning_rates=(1e-3, 2e-3),
    seeds=(0, 1),
    contexts=(8, 16),
)
ROWS = tuple(Row((("attention", label),), BASE, 1000) for label in ("full", "window"))
FAKE = str(Path(__file__).parent / "fake_worker.py")


def fake(directory, cores):
    return [sys.executable, FAKE, str(directory)]


def started(place):
    return (place / "started").read_text().split()


def test_rates_are_tried_with_the_first_seed_and_the_best_serves_the_others(tmp_path):
    said = []
    results = run(GRID, ROWS, tmp_path, report=said.append, command=fake)
    assert [(r["labels"]["attention"], r["learning_rate"], r["seed"]) for r in results] == [
        ("full", 1e-3, 0), ("full", 2e-3, 0), ("full", 2e-3, 1),
        ("window", 1e-3, 0), ("window", 2e-3, 0), ("window", 2e-3, 1),
    ]  # fmt: skip
    assert said[0].startswith("[1/6] full, learning rate 0.001, seed 0: valid/loss 1.0000 (0:0")
    assert "about 0:0" in said[0] and said[-1].startswith("[6/6]")


def test_what_is_done_is_not_run_again_and_what_has_changed_is(tmp_path):
    grid = dataclasses.replace(GRID, seeds=(0,))
    first = run(grid, ROWS, tmp_path, report=lambda line: None, command=fake)
    (tmp_path / "started").unlink()
    said = []
    assert run(grid, ROWS, tmp_path, report=said.append, command=fake) == first
    assert said == ["4 points are done already"] and not (tmp_path / "started").exists()
    result = tmp_path / "full--rate-0.001--seed-0" / "result.json"
    older = json.loads(result.read_text())
    del older["experiment"]["log_every"]  # a field that did not exist then
    result.write_text(json.dumps(older))
    assert len(run(grid, ROWS, tmp_path, report=said.append, command=fake)) == 4
    assert not (tmp_path / "started").exists()
    longer = tuple(dataclasses.replace(row, experiment=dataclasses.replace(BASE, steps=5)) for row in ROWS)
    run(grid, longer, tmp_path, report=said.append, command=fake)
    assert len(started(tmp_path)) == 4


def test_a_row_that_is_called_otherwise_is_done_already(tmp_path):
    grid = dataclasses.replace(GRID, seeds=(0,), learning_rates=(1e-3,))
    run(grid, ROWS, tmp_path, report=lambda line: None, command=fake)
    (tmp_path / "started").unlink()
    renamed = tuple(Row((("mechanism", label.upper()),), BASE, 1000) for label in ("full", "window"))
    results = run(grid, renamed, tmp_path, report=lambda line: None, command=fake)
    assert [result["labels"] for result in results] == [{"mechanism": "FULL"}, {"mechanism": "WINDOW"}]
    assert not (tmp_path / "started").exists()


def test_what_other_descriptions_have_found_is_not_lost_by_a_mistake(tmp_path):
    grid = dataclasses.replace(GRID, seeds=(0,), learning_rates=(1e-3,))
    first = run(grid, ROWS, tmp_path, report=lambda line: None, command=fake)
    for result in first:  # as a point's training leaves it
        place = tmp_path / result["directory"] / "run"
        place.mkdir(exist_ok=True)
        (place / "experiment.json").write_text(json.dumps(result["experiment"]))
    wider = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, width=32))
    rows = tuple(dataclasses.replace(row, experiment=wider) for row in ROWS)
    with pytest.raises(UserError, match=r"model\.width \(16 there, 32 now\)"):
        run(grid, rows, tmp_path, report=lambda line: None, command=fake)
    said = []
    assert run(grid, ROWS, tmp_path, report=said.append, command=fake) == first
    assert said == ["2 points are done already"]


def test_a_point_of_an_older_format_is_what_it_was_then(tmp_path):
    grid = dataclasses.replace(GRID, seeds=(0,), learning_rates=(1e-3,))
    model = dataclasses.replace(BASE.model, positions=Sinusoidal())
    rows = tuple(dataclasses.replace(row, experiment=dataclasses.replace(BASE, model=model)) for row in ROWS)
    run(grid, rows, tmp_path, report=lambda line: None, command=fake)
    (tmp_path / "started").unlink()
    result = tmp_path / "full--rate-0.001--seed-0" / "result.json"
    older = json.loads(result.read_text())
    older["experiment"]["format"] = 2
    del older["experiment"]["model"]["positions"]["amplitude"]  # 1 in format 2, another now
    result.write_text(json.dumps(older))
    run(grid, rows, tmp_path, report=lambda line: None, command=fake)
    assert started(tmp_path) == ["full--rate-0.001--seed-0"]


def test_a_point_that_fails_is_a_result_that_says_why_and_is_tried_again(tmp_path):
    (tmp_path / "die").touch()
    grid = dataclasses.replace(GRID, learning_rates=(1e-3, 0.9), seeds=(0, 1))
    said = []
    results = run(grid, ROWS, tmp_path, parallel=2, report=said.append, command=fake)
    assert len(results) == 6
    reasons = {result["directory"]: result.get("failed") for result in results}
    killed = "killed by SIGKILL, as the system does when memory runs out (see log.txt)"
    assert reasons == {
        "full--rate-0.001--seed-0": None,
        "full--rate-0.9--seed-0": "not finite at step 3: first bad tensor is the loss",
        "full--rate-0.001--seed-1": None,
        "window--rate-0.001--seed-0": killed,
        "window--rate-0.9--seed-0": killed,
        "window--rate-0.001--seed-1": killed,
    }
    assert any("failed: not finite at step 3" in line for line in said)
    (tmp_path / "die").unlink()
    (tmp_path / "started").unlink()
    again = run(grid, ROWS, tmp_path, report=said.append, command=fake)
    assert sum("failed" in result for result in again) == 2  # the rate of 0.9, tried again in vain
    assert len(started(tmp_path)) == 4


def test_a_signal_has_the_points_save_and_the_next_run_goes_on(tmp_path):
    (tmp_path / "hang").touch()
    grid = dataclasses.replace(GRID, seeds=(0,), learning_rates=())
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from research.errors import StoppedError\n"
        "from test_runner import BASE, GRID, ROWS, fake, run, dataclasses\n"
        "grid = dataclasses.replace(GRID, seeds=(0,), learning_rates=())\n"
        "try: run(grid, ROWS, Path(sys.argv[1]), parallel=2, report=print, command=fake)\n"
        "except StoppedError as error: sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/hanging"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # files are looked for: nothing tells when they are there
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert "stopped by SIGTERM with 0 of 2 points done" in said
    assert len(list(tmp_path.glob("*/saved"))) == 2
    (tmp_path / "hang").unlink()
    assert len(run(grid, ROWS, tmp_path, report=lambda line: None, command=fake)) == 2
    assert StoppedError.exit_code == 3


def test_a_directory_in_use_is_refused(tmp_path):
    with open(tmp_path / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another headway ablate; wait for it"):
            run(GRID, ROWS, tmp_path, report=lambda line: None, command=fake)


def test_a_quality_that_runs_do_not_have_is_refused(tmp_path):
    grid = dataclasses.replace(GRID, quality="valid/bleu")
    with pytest.raises(UserError, match="'valid/bleu' is no metric of its runs; they have valid/loss, valid"):
        run(grid, ROWS, tmp_path, report=lambda line: None, command=fake)
