"""``launch/local`` with real processes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TINY = ROOT / "tests" / "launch" / "tiny.py"
LOCAL = [sys.executable, str(LAUNCH / "local"), str(TINY)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What a process has compiled, the next one finds."""
    path = str(tmp_path_factory.mktemp("compiled"))
    return {"JAX_COMPILATION_CACHE_DIR": path, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def start(path, cache, *options):
    """Starts a run; its words go to a file beside it."""
    with open(f"{path}.log", "wb") as log:
        environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT)}
        command = [*LOCAL, "--workdir", str(path), *options]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def losses(path):
    """Returns the training losses that a run has logged so far, by step."""
    file = path / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, cache):
    # The devices of both processes hold all rows: the mesh axis tensor runs between them.
    sharding = ("--sharding.strategy", "fsdp+tensor", "--sharding.tensor", "2")
    found = []
    for processes in (2, 1):
        path = tmp_path / str(processes)
        options = ("--processes", str(processes), "--devices-per-process", str(2 // processes), *sharding)
        run = start(path, cache, *options)
        said = Path(f"{path}.log")
        assert run.wait(300) == 0, said.read_text()
        assert said.read_text().count("validation after 16 steps") == 1  # one process speaks for all
        found.append(losses(path))
    assert list(found[0]) == list(found[1]) == list(range(1, 17))
    # Two processes add in another order.
    np.testing.assert_allclose(list(found[0].values()), list(found[1].values()), rtol=1e-4)


@pytest.fixture
def local(monkeypatch):
    """The launcher as a module, on commands of a test's own."""
    monkeypatch.syspath_prepend(LAUNCH)
    loader = importlib.machinery.SourceFileLoader("launch_local", str(LAUNCH / "local"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("launch_local", loader))
    monkeypatch.setitem(sys.modules, "launch_local", module)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("codes", "restarts", "expected", "starts"),
    [
        ("4", 0, 4, 1),
        ("4 0", 1, 0, 2),
        ("4 4 4", 2, 4, 3),
        ("9 0", 5, 0, 2),
        ("2 0", 5, 2, 1),
        ("3 0", 5, 0, 2),
    ],
)
def test_it_starts_again_when_a_process_is_lost(
    local, monkeypatch, tmp_path, codes, restarts, expected, starts
):
    # The second of two processes ends with these codes, by turns; the first with 0. 9: it is killed.
    (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
    script = f"cd {tmp_path}; c=$(head -n 1 codes); sed -i 1d codes; [[ $c == 9 ]] && kill -9 $$; exit $c"
    calls = []

    def commands(command, options):
        calls.append(command)
        return {}, [["true"], ["bash", "-c", script]]

    monkeypatch.setattr(local, "_commands", commands)
    with pytest.raises(SystemExit) as end:
        local.launch(str(TINY), local.Local(restarts=restarts), {})
    assert (end.value.code, len(calls)) == (expected, starts)


def test_sigterm_goes_to_every_process(local, monkeypatch, tmp_path):
    stop = "trap 'exit 3' TERM; touch {}/{}; while :; do sleep 0.05; done"
    processes = [["bash", "-c", stop.format(tmp_path, i)] for i in range(2)]
    monkeypatch.setattr(local, "_commands", lambda command, options: ({}, processes))

    def terminate():
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)  # files say that the handlers are there
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(SystemExit) as end:
        local.launch(str(TINY), local.Local(), {})
    thread.join()
    assert end.value.code == 3
