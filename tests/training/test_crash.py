"""``kill -9`` of real processes at random moments: the run goes on, and ends where an unharmed one does."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from regression_program import build, experiment, run
from test_resume import assert_same_state, lines, start

from research.training import checkpoint, run_directory

SAVE = 3
CHAOS = Path(__file__).parents[2] / "experiments" / "benchmarks" / "chaos.py"


def kill_at_random(path, steps, seed):
    """Starts the run, kills it some time after its first new step; returns how many steps it had logged."""
    process = start(path, "--steps", steps, "--save", SAVE, "--pause", 0.005)
    with process:
        for line in process.stderr:
            if line.startswith("step "):
                break
        # The kill is to come at any moment, of a step or a save: there is nothing to wait for.
        time.sleep(random.Random(seed).uniform(0.0, 0.6))
        process.kill()
    rows = run_directory.open_run(path).rows()
    return rows[-1]["step"] if rows else 0


def test_a_killed_run_goes_on(tmp_path):
    straight = run(tmp_path / "straight", build(), experiment(40, SAVE))
    killed = tmp_path / "killed"
    logged = kill_at_random(killed, 40, seed=0)
    directory = run_directory.open_run(killed)
    saved = directory.newest() if directory.steps() else 0
    # An older one may have been half deleted when the kill came; those that are to be kept are whole.
    kept = directory.steps()[-2:]
    assert [checkpoint.damage(directory, step) for step in kept] == [None] * len(kept)
    # What was being saved while the process died may be lost, and nothing before it.
    assert logged - saved < 2 * SAVE + 1
    outcome = run(killed, build(), experiment(40, SAVE))
    assert_same_state(outcome.state, straight.state)
    assert lines(killed) == lines(tmp_path / "straight")


@pytest.mark.slow
def test_a_language_model_killed_many_times_ends_bit_for_bit(tmp_path):
    # The script asserts that it does; here, that it was killed.
    command = [
        sys.executable,
        str(CHAOS),
        "--kills",
        "3",
        "--steps",
        "30",
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] == 3 and found["runs that ended identically"] >= 1
