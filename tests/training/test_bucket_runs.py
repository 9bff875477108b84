"""Runs in a bucket, over HTTP: what is kept, that a bare machine goes on, what is ignored or refused."""

import dataclasses
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gcsfs")

from cloud_storage import in_use
from regression_program import build, experiment, run
from test_resume import assert_same_state, start

from research.data.cache import cache_directory
from research.errors import LostError, UserError
from research.training import checkpoint, run_directory
from research.training.experiment import Checkpointing

PROGRAM = Path(__file__).with_name("regression_program.py")


@pytest.fixture(scope="module")
def store():
    """A store with one bucket, "runs"; each test has a run of its own in it."""
    with in_use("runs") as serving:
        yield serving


@pytest.fixture(autouse=True)
def willing(store):
    """The store refuses nothing until a test says so."""
    store.refuse = lambda method, bucket, name: None


def become_bare():
    shutil.rmtree(cache_directory() / "runs", ignore_errors=True)


def losses(path):
    rows = run_directory.open_run(path).rows()
    return [(row["step"], row.get("train/loss"), row.get("valid/loss")) for row in rows]


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """Ten steps on a disk, and the same in the bucket by two machines, six steps and four."""
    disk = tmp_path_factory.mktemp("disk")
    states = [run(disk, build(), experiment(10)).state]
    for steps in (6, 10):
        become_bare()
        states.append(run("gs://runs/finished", build(), experiment(steps)).state)
    return disk, "gs://runs/finished", states


def test_a_bare_machine_goes_on_as_if_nothing_had_happened(finished):
    disk, bucket, (there, _, here) = finished
    assert_same_state(here, there)
    # The last step of a session is evaluated.
    assert [row for row in losses(bucket) if row[0] != 6 or row[2] is None] == losses(disk)
    assert (disk / "experiment.json").read_text() == run_directory.open_run(bucket).experiment.read_text()


def test_what_a_reader_finds(finished, store):
    directory = run_directory.open_run(finished[1])
    assert str(directory) == "gs://runs/finished"
    assert directory.steps() == [6, 10]
    assert directory.newest() == 10
    assert set(directory.checkpoint_metrics(10)) == {"valid/loss", "valid/bits_per_byte"}
    assert directory.checkpoint_record(6)["step"] == 6
    assert [checkpoint.damage(directory, step) for step in (6, 10)] == [None, None]
    restored = checkpoint.restore(directory, build().abstract_state, 10)
    assert_same_state(restored.state, finished[2][0])
    assert sum(name.startswith("finished/events/") for name in store.names("runs")) == 2


@pytest.mark.slow
def test_what_is_kept(store):
    program, values = build(), {2: 5.0, 4: 1.0, 6: 2.0, 8: 3.0}
    program.evaluate = lambda state: {"valid/loss": 0.0, "valid/bits_per_byte": values[int(state.step)]}
    run("gs://runs/kept", program, experiment(8, save=2, evaluate=2, keep_last=1))
    directory = run_directory.open_run("gs://runs/kept")
    assert (directory.steps(), directory.best()) == ([4, 8], 4)
    folders = {name.split("/")[2] for name in store.names("runs") if name.startswith("kept/checkpoints/")}
    assert folders == {"4", "8"}


def copied(store, name):
    """Copies the finished run within the store."""
    for old in store.names("runs"):
        if old.startswith("finished/"):
            store.put("runs", name + old.removeprefix("finished"), store.buckets["runs"][old].content)
    return f"gs://runs/{name}"


def test_an_unfinished_save_is_ignored_and_a_damaged_one_is_set_aside(finished, store):
    path = copied(store, "harmed")
    objects = store.buckets["runs"]
    del objects["harmed/checkpoints/10/commit_success.txt"]
    assert run_directory.open_run(path).steps() == [6]
    arrays = (name for name in objects if name.startswith("harmed/checkpoints/6/state/"))
    large = max(arrays, key=lambda name: len(objects[name].content))
    store.put("runs", large, objects[large].content[:-1] + b"?")
    assert "has been altered" in checkpoint.damage(run_directory.open_run(path), 6)
    become_bare()
    assert_same_state(run(path, build(), experiment(10)).state, finished[2][0])
    directory = run_directory.open_run(path)
    assert directory.steps() == [5, 10]
    assert [checkpoint.damage(directory, step) for step in (5, 10)] == [None, None]
    assert any(name.startswith("harmed/damaged/6/state/") for name in store.names("runs"))


def refused(path="gs://runs/new", steps=5):
    with pytest.raises(UserError) as error:
        run(path, build(), experiment(steps))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refused_before_training(finished, store):
    other = dataclasses.replace(experiment(10), seed=7)
    with pytest.raises(UserError, match="gs://runs/finished was made by a different experiment: seed"):
        run(finished[1], build(), other)
    store.put("runs", "holiday/photograph.jpg", b"")
    assert "gs://runs/holiday is not empty and not a run directory" in refused("gs://runs/holiday")
    assert "make it with: gcloud storage buckets create gs://absent" in refused("gs://absent/run")
    with pytest.raises(UserError, match="gs://runs/none is not a run directory"):
        run_directory.open_run("gs://runs/none")
    store.refuse = lambda method, bucket, name: 403 if method == "POST" else None
    assert "--role=roles/storage.objectUser" in refused()
    store.refuse = lambda method, bucket, name: 403 if not name else None
    assert "gs://runs/new: no permission" in refused()
    store.refuse = lambda method, bucket, name: 401
    assert "gcloud auth application-default login" in refused()


@pytest.mark.slow
def test_a_store_that_begins_to_refuse(store):
    store.refuse = lambda method, bucket, name: (
        403 if method == "POST" and "/checkpoints/10/" in name else None
    )
    line = refused("gs://runs/stopped", 10)
    assert "no permission" in line and "gcloud storage buckets add-iam-policy-binding gs://runs" in line
    store.refuse = lambda method, bucket, name: None
    assert run_directory.open_run("gs://runs/stopped").steps() == [5]
    run("gs://runs/stopped", build(), experiment(10))
    assert run_directory.open_run("gs://runs/stopped").steps() == [5, 10]


def test_two_processes_of_one_machine_do_not_share_a_run(store):
    description = {"name": "x", "steps": 1}
    with (
        run_directory.claim("gs://runs/locked", description),
        pytest.raises(UserError, match="gs://runs/locked is in use by process"),
        run_directory.claim("gs://runs/locked", description),
    ):
        pass


def test_a_store_that_is_gone_is_no_mistake_of_the_users(store):
    """The code says to start again, which schedulers do."""

    def gone(*_, **__):
        raise ValueError("UNAVAILABLE: CURL error Couldn't connect to server: writing state")

    with (
        run_directory.claim("gs://runs/gone", {"name": "x", "steps": 1}) as directory,
        pytest.raises(
            LostError, match=r"step 3 in gs://runs/gone: the store cannot be reached \(UNAV"
        ) as lost,
        checkpoint.Checkpoints(directory, Checkpointing()) as checkpoints,
    ):
        checkpoints._manager.save = gone
        checkpoints.save(3, {}, None, {}, {})
    assert lost.value.exit_code == 4


@pytest.mark.slow
def test_killed_in_the_middle_of_a_save(store, tmp_path):
    """Killed with objects of step 6 written and no commit, then on a bare machine to the end."""
    whole = run(tmp_path / "whole", build(), experiment(12, save=3)).state

    def refuse(method, bucket, name):
        if method == "POST" and name.startswith("killed/checkpoints/6/commit"):
            process.send_signal(signal.SIGKILL)
            time.sleep(0.5)
            return 503
        return None

    store.refuse = refuse
    command = [sys.executable, str(PROGRAM), "gs://runs/killed", "--steps", "12", "--save", "3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    store.refuse = lambda method, bucket, name: None
    assert any(name.startswith("killed/checkpoints/6/") for name in store.names("runs"))
    assert run_directory.open_run("gs://runs/killed").steps() == [3]
    become_bare()
    assert_same_state(run("gs://runs/killed", build(), experiment(12, save=3)).state, whole)
    assert losses("gs://runs/killed") == losses(tmp_path / "whole")
    assert run_directory.open_run("gs://runs/killed").steps() == [9, 12]


@pytest.mark.slow
def test_two_processes_write_a_run_in_a_bucket_and_one_goes_on_with_it(store):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ("--devices", 2, "--port", port, "--steps", 10)
    processes = [start("gs://runs/both", *common, "--rank", rank) for rank in (0, 1)]
    ends = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    become_bare()
    assert run_directory.open_run("gs://runs/both").steps() == [5, 10]
    run("gs://runs/both", build(), experiment(20))
    rows = run_directory.open_run("gs://runs/both").rows()
    assert [row["step"] for row in rows if "train/loss" in row] == [*range(2, 21, 2)]
    assert rows[-1]["valid/loss"] < rows[4]["train/loss"]
