"""Two real processes: one is lost, one hangs, and a run goes on with another number of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import zlib

import pytest
from regression_program import example
from test_resume import finish, lines, start

from research.training import run_directory

pytestmark = pytest.mark.slow


@pytest.fixture
def both(request):
    """Starts the program in two processes with a device each; ``environment`` is that of the second."""

    def both(path, *options, environment=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        common = ("--devices", 2, "--port", port, *options)
        processes = [start(path, *common, "--rank", 0), start(path, *common, "--rank", 1, env=environment)]
        for process in processes:
            request.addfinalizer(process.kill)
        return processes

    return both


def ends(processes):
    """Returns exit codes and standard errors."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 30 steps that one process with both devices makes at once."""
    path = tmp_path_factory.mktemp("straight")
    code, _, error = finish(path, "--devices", 2, "--steps", 30)
    assert code == 0, error
    return path


def losses(path):
    """Returns the training metrics of a run by step."""
    return {row["step"]: row for row in lines(path) if "train/loss" in row}


def test_with_another_number_of_processes_no_row_is_lost_or_seen_twice(tmp_path, both, straight):
    path = tmp_path / "run"
    seen = []
    for steps, several in ((8, True), (14, False), (20, True)):
        record = tmp_path / str(steps)
        record.mkdir()
        options = ("--steps", steps, "--record", record)
        if several:
            codes, errors = ends(both(path, *options))
            assert codes == [0, 0], errors
        else:
            code, _, error = finish(path, "--devices", 2, *options)
            assert code == 0, error
        parts = [list(map(json.loads, file.read_text().splitlines())) for file in record.iterdir()]
        assert len(parts) == 1 + several
        seen += [sorted(row for part in step for row in part) for step in zip(*parts, strict=True)]
    expected = [zlib.crc32(example(i)["x"].tobytes()) for i in range(20 * 8)]
    assert seen == [sorted(expected[i : i + 8]) for i in range(0, len(expected), 8)]
    # The devices are the same two, so the losses are those of a run that one process made.
    of_run, of_straight = losses(path), losses(straight)
    assert of_run == {step: of_straight[step] for step in range(2, 21, 2)}


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_says_so_and_both_go_on(tmp_path, both, straight, victim):
    processes = both(tmp_path, "--steps", 100000, "--pause", 0.01)
    for line in processes[0].stderr:
        if line.startswith("step 12/"):
            break
    processes[victim].kill()
    codes, errors = ends(processes)
    assert codes[victim] == -signal.SIGKILL
    saved = run_directory.open_run(tmp_path).newest()
    assert saved >= 5
    if codes[1 - victim] == -signal.SIGABRT:
        # JAX may notice that a process is gone before a collective operation of ours does.
        assert "Terminating process because the JAX distributed service" in errors[1 - victim], errors
    else:
        assert codes[1 - victim] == 4, errors
        last = errors[1 - victim].splitlines()[-1]
        assert last.startswith("another process of the run is gone (")
        assert last.endswith("; the same command on all processes goes on from the last checkpoint")
    if victim == 0:
        return  # going on once is enough
    codes, errors = ends(both(tmp_path, "--steps", 30))
    assert codes == [0, 0], errors
    assert f"resumed from step {saved}" in errors[0]
    assert losses(tmp_path) == losses(straight)


def test_when_one_process_hangs_both_print_their_stacks_and_end(tmp_path, both):
    processes = both(tmp_path, "--steps", 20, "--hang", 7)
    codes, errors = ends(processes)
    # The first to strike may take the other with it.
    assert 4 in codes and set(codes) <= {4, -signal.SIGABRT}, errors
    said = "".join(errors)
    assert re.search(r"no headway for 12 s while taking step \d", said)  # 6, if the machine is not too busy
    assert "thread 0x" in said
    if "while taking step 6" in errors[1]:
        assert "in corrupt" in errors[1]  # where it hangs


def test_what_one_process_cannot_do_stops_both_with_the_users_code(tmp_path, both):
    (tmp_path / "file").write_text("")
    processes = both(tmp_path / "file", "--steps", 20)
    codes, errors = ends(processes)
    assert codes == [2, 2], errors
    assert "cannot use" in errors[0]
    assert errors[1].splitlines()[-1] == "process 0 could not start: see what it says"


def test_clocks_and_names_of_machines_may_differ(tmp_path, both, straight):
    """The second process, on another machine by its name, is two hours ahead, then two behind."""
    for steps, hours in ((16, 2), (30, -2)):
        folder = tmp_path / f"{steps}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import socket, time\n"
            "seconds, nanoseconds = time.time, time.time_ns\n"
            f"time.time = lambda: seconds() + {3600 * hours}\n"
            f"time.time_ns = lambda: nanoseconds() + {3600 * hours} * 10**9\n"
            "socket.gethostname = lambda: 'another-machine'\n"
            "print('here', time.time(), socket.gethostname())\n"
        )
        paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        processes = both(tmp_path / "run", "--steps", steps, environment={**os.environ, "PYTHONPATH": paths})
        found = processes[1].stdout.readline().split()
        assert found[2] == "another-machine" and abs(float(found[1]) - time.time()) > 3600
        codes, errors = ends(processes)
        assert codes == [0, 0], errors
    assert losses(tmp_path / "run") == losses(straight)


def test_the_process_that_keeps_the_other_waiting_is_named_once(tmp_path, both):
    codes, errors = ends(both(tmp_path, "--steps", 20, "--lag", 0.2))
    assert codes == [0, 0], errors
    found = re.findall(r"process (\d) keeps the others waiting: making its batches takes (\d+)%", errors[0])
    assert [process for process, _ in found] == ["1"] and int(found[0][1]) > 50, errors[0]
