"""The loop: what it guards, reports, and refuses."""

import json

import jax
import numpy as np
import pytest
from regression_program import build, experiment, run

from research.errors import NonFiniteError, UserError
from research.training import run_directory
from research.training.progress import Display


class Silent(Display):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__(every=0.0)
        self.steps, self.notes = [], []

    def update(self, step, loss, seconds, work):
        self.steps.append(step)

    def note(self, text):
        self.notes.append(text)


def rows(path, name):
    return {row["step"]: row[name] for row in run_directory.open_run(path).rows() if name in row}


def test_metrics_against_a_plain_loop_of_the_step(tmp_path):
    outcome = run(tmp_path, build(), experiment(20, log=4, evaluate=8))
    program = build()
    state, batches, losses = program.init(), program.batches(), []
    for _ in range(20):
        state, metrics = program.step(state, program.place(next(batches)))
        losses.append(float(metrics["train/loss"]))
    means = {4 * i + 4: np.mean(losses[4 * i : 4 * i + 4]) for i in range(5)}
    logged = rows(tmp_path, "train/loss")
    assert logged.keys() == means.keys()
    for step, mean in means.items():
        assert logged[step] == pytest.approx(mean, rel=1e-12)
    # The learning rate is not averaged: it is a function of the step.
    assert rows(tmp_path, "train/learning_rate")[8] == pytest.approx(0.003 * 8, rel=1e-6)
    assert list(rows(tmp_path, "valid/loss")) == [8, 16, 20]
    assert outcome.validation["valid/loss"] == rows(tmp_path, "valid/loss")[20]
    np.testing.assert_array_equal(outcome.state.params["w"], state.params["w"])


def test_metrics_hold_speed_and_both_flop_counts(tmp_path):
    run(tmp_path, build(), experiment(20, log=5))
    for row in (row for row in run_directory.open_run(tmp_path).rows() if "train/loss" in row):
        assert row["tokens_per_second"] > 0
        assert row["model_flops_per_second"] / row["tokens_per_second"] == pytest.approx(100 / 8)
        assert row["model_flops_per_second_causal"] / row["tokens_per_second"] == pytest.approx(50 / 8)
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))


def test_every_step_is_shown_once_in_order(tmp_path):
    display = Silent()
    run(tmp_path, build(), experiment(20), display=display)
    assert display.steps == list(range(1, 21))


def test_an_implicit_transfer_in_the_hot_loop_fails(tmp_path):
    program = build()
    program.place = lambda batch: batch  # NumPy arrays go to the device behind one's back
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tmp_path, program, experiment())


@pytest.mark.parametrize("bad_step", [1, 8, 10, 20])
def test_nan_names_step_and_path_and_keeps_batch_and_checkpoint(tmp_path, bad_step):
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, build(bad_step=bad_step), experiment())
    assert (caught.value.step, caught.value.path) == (bad_step, "batch/x")
    with np.load(caught.value.batch) as saved:
        assert np.isnan(saved["x"]).any()
        assert set(saved) == {"x", "y"}
    last = (bad_step - 1) // 5 * 5
    directory = run_directory.open_run(tmp_path)
    assert directory.steps()[-1:] == ([last] if last else [])
    assert all(step < bad_step for step in rows(tmp_path, "train/loss"))
    # The batch mended, the run goes on from the last good checkpoint as if nothing had happened.
    mended = run(tmp_path, build(), experiment())
    straight = run(tmp_path / "straight", build(), experiment())
    np.testing.assert_array_equal(mended.state.params["w"], straight.state.params["w"])


def test_profile_window_is_traced(tmp_path):
    run(tmp_path, build(), experiment(8), profile=(3, 5))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("window", [(0, 3), (5, 5), (3, 22), (30, 40)])
def test_a_profile_window_outside_the_run_is_refused(tmp_path, window):
    with pytest.raises(UserError, match=r"--profile \d+:\d+ is no window of the steps to come.*END <= 21"):
        run(tmp_path, build(), experiment(20), profile=window)


def test_a_profile_window_is_closed_when_the_run_fails(tmp_path):
    with pytest.raises(NonFiniteError):
        run(tmp_path, build(bad_step=6), experiment(20), profile=(4, 12))
    run(tmp_path / "next", build(), experiment(4), profile=(2, 4))  # a second trace may start


def test_metrics_of_the_last_step_are_written_once_per_kind(tmp_path):
    run(tmp_path, build(), experiment(10, save=5, evaluate=5, log=3))
    found = [(row["step"], "train/loss" in row) for row in run_directory.open_run(tmp_path).rows()]
    assert found == [(3, True), (5, False), (6, True), (9, True), (10, True), (10, False)]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_the_transfer_guard_is_off_again_afterwards(tmp_path):
    run(tmp_path, build(), experiment(4))
    assert float(jax.jit(lambda x: x + 1)(np.float32(1))) == 2.0
