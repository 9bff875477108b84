"""``kill -9`` of real processes at random moments: the run goes on, and ends where an unharmed one does."""

import random
import time

import pytest
from regression_program import build, experiment, run
from test_resume import assert_same_state, lines, start

from research.training import checkpoint, run_directory

SAVE = 3


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


def check_killed(path, steps, kills, straight):
    resumed = 0
    for seed in range(kills):
        logged = kill_at_random(path, steps, seed)
        directory = run_directory.open_run(path)
        saved = directory.newest() if directory.steps() else 0
        # An older one may have been half deleted when the kill came; those that are to be kept are whole.
        kept = directory.steps()[-2:]
        assert [checkpoint.damage(directory, step) for step in kept] == [None] * len(kept)
        # What was being saved while the process died may be lost, and nothing before it.
        assert saved >= resumed
        assert logged - saved < 2 * SAVE + 1
        resumed = saved
    outcome = run(path, build(), experiment(steps, SAVE))
    assert_same_state(outcome.state, straight.state)


def test_a_killed_run_goes_on(tmp_path):
    straight = run(tmp_path / "straight", build(), experiment(40, SAVE))
    check_killed(tmp_path / "killed", 40, 1, straight)
    assert lines(tmp_path / "killed") == lines(tmp_path / "straight")


@pytest.mark.slow
def test_a_run_killed_many_times_goes_on(tmp_path):
    straight = run(tmp_path / "straight", build(), experiment(60, SAVE))
    check_killed(tmp_path / "killed", 60, 8, straight)
    assert lines(tmp_path / "killed") == lines(tmp_path / "straight")
