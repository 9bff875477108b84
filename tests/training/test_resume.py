"""A run that was stopped and goes on is the run that was never stopped."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import regression_program
from regression_program import build, experiment, run

from research.errors import StoppedError
from research.training import run_directory

TIMES = {"seconds", "tokens_per_second", "model_flops_per_second", "model_flops_per_second_causal"}
SCRIPT = Path(regression_program.__file__)


def start(path, *options, **keywords):
    """Starts the program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


def finish(path, *options):
    """Runs the program in a process of its own to its end; returns exit code, standard output and error."""
    process = start(path, *options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def lines(path):
    """metrics.jsonl without times."""
    rows = run_directory.RunDirectory(Path(path)).rows()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same_state(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_100_steps_straight_equal_60_resumed_for_40(tmp_path):
    # 60 is not a multiple of log_every: the line that spans the stop must come out the same as well.
    straight = run(tmp_path / "straight", build(), experiment(100, save=20, evaluate=30, log=7))
    run(tmp_path / "parts", build(), experiment(60, save=20, evaluate=30, log=7))
    second = run(tmp_path / "parts", build(), experiment(100, save=20, evaluate=30, log=7))
    assert second.step == straight.step == 100
    assert int(straight.state.step) == 100
    assert_same_state(straight.state, second.state)
    # The first part also logged its last step, 60; all other lines are those of the straight run.
    rows = [row for row in lines(tmp_path / "parts") if not (row["step"] == 60 and "train/loss" in row)]
    expected = lines(tmp_path / "straight")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row for row in rows if row["step"] != 63] == [row for row in expected if row["step"] != 63]
    assert second.validation == straight.validation


def test_the_line_that_spans_a_stop_is_the_line_of_a_straight_run(tmp_path):
    run(tmp_path / "straight", build(), experiment(30, save=10, log=10))
    program = build()
    program.batches = signalling(program.batches, 15)
    with pytest.raises(StoppedError, match="stopped by SIGTERM at step 15 of 30"):
        run(tmp_path / "parts", program, experiment(30, save=10, log=10))
    assert run_directory.open_run(tmp_path / "parts").newest() == 15
    run(tmp_path / "parts", build(), experiment(30, save=10, log=10))
    assert lines(tmp_path / "parts") == lines(tmp_path / "straight")


def signalling(batches, step, number=signal.SIGTERM):
    """Makes the iterator send this process a signal when the batch of a step is asked for."""

    def wrapped():
        iterator = batches()
        original = type(iterator).__next__
        count = 0

        class Signalling(type(iterator)):
            def __next__(self):
                nonlocal count
                count += 1
                if count == step:
                    signal.raise_signal(number)
                return original(self)

        iterator.__class__ = Signalling
        return iterator

    return wrapped


def test_ctrl_c_saves_and_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    program = build()
    program.batches = signalling(program.batches, 3, signal.SIGINT)
    with pytest.raises(StoppedError, match=r"SIGINT at step 3 of 20; saved in .*the same command goes on"):
        run(tmp_path, program, experiment())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert run_directory.open_run(tmp_path).newest() == 3


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    program = build()
    program.batches = signalling(signalling(program.batches, 2, signal.SIGINT), 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, program, experiment())
    assert run_directory.open_run(tmp_path).steps() == []


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run(tmp_path, build(), experiment(20))
    before = lines(tmp_path)
    program = build()
    program.step = None
    program.evaluate = None  # its result is in metrics.jsonl
    second = run(tmp_path, program, experiment(20))
    assert second.step == 20
    assert second.validation == first.validation
    assert lines(tmp_path) == before


def test_metrics_after_the_restored_step_are_dropped(tmp_path):
    run(tmp_path, build(), experiment(20))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 22, "train/loss": 1.0}\n{"step": 24, "train/lo')
    run(tmp_path, build(), experiment(20))
    assert path.read_text() == whole


@pytest.mark.slow
def test_sigterm_of_a_process_exits_with_code_3(tmp_path):
    process = start(tmp_path, "--steps", 100000, "--pause", 0.01)
    for line in process.stderr:
        if line.startswith("step 7/"):
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert re.fullmatch(r"stopped by SIGTERM at step \d+ of 100000; saved in .*", err.splitlines()[-1])
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_state_of_eight_devices_goes_on_with_one_and_two(tmp_path):
    _, out, _ = finish(tmp_path / "straight", "--steps", 20)
    expected = float.fromhex(out.split()[1])
    for devices in (1, 2):
        code, _, err = finish(tmp_path / str(devices), "--steps", 10, "--devices", 8)
        assert code == 0, err
        code, out, err = finish(tmp_path / str(devices), "--steps", 20, "--devices", devices)
        assert code == 0, err
        assert "resumed from step 10" in err
        # Eight devices add in another order, so not bit for bit.
        assert float.fromhex(out.split()[1]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_stop_together_and_go_on(tmp_path, request):
    def both(steps, *options):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        common = ("--steps", steps, "--devices", 2, "--port", port, *options)
        started = [start(tmp_path / "run", *common, "--rank", rank) for rank in (0, 1)]
        for process in started:
            request.addfinalizer(process.kill)
        return started

    processes = both(100000, "--pause", 0.01)
    for line in processes[0].stderr:
        if line.startswith("step 12/"):
            break
    processes[1].send_signal(signal.SIGTERM)  # one of them alone
    ends = [process.communicate(timeout=60)[1].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [3, 3]
    assert "stopped by a signal to another process at step" in ends[0]
    assert "stopped by SIGTERM at step" in ends[1]
    stopped = run_directory.open_run(tmp_path / "run").newest()
    processes = both(stopped + 10)
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    assert f"resumed from step {stopped}" in found[0][1]
    _, out, _ = finish(tmp_path / "straight", "--steps", stopped + 10)
    for text, _ in found:
        end = text.splitlines()[-1]  # gloo prints before it
        assert float.fromhex(end.split()[1]) == pytest.approx(float.fromhex(out.split()[1]), rel=1e-5)
    # Only one of the two has written the metrics.
    steps = [row["step"] for row in lines(tmp_path / "run") if "train/loss" in row]
    assert steps == list(range(2, stopped + 11, 2))
