"""Checkpoints: what is kept, what is noticed, what survives a full disk."""

import asyncio
import dataclasses
import gc
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from regression_program import build, experiment, run
from test_resume import assert_same_state, finish

from research.errors import UserError
from research.training import checkpoint, run_directory
from research.training.experiment import Checkpointing, Evaluation
from research.training.metrics import MetricsWriter
from research.training.progress import Display


class Notes(Display):
    """Keeps the notes."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def note(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 10 steps with checkpoints 5 and 10, and its final state."""
    path = tmp_path_factory.mktemp("finished")
    return path, run(path, build(), experiment(10)).state


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of that run, to be damaged."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_what_is_kept(tmp_path):
    values = {2: 9.0, 4: 5.0, 6: 1.0, 8: 2.0, 10: 3.0, 12: 4.0, 14: 5.0, 16: 6.0}
    program = build()
    program.evaluate = lambda state: {"valid/loss": 0.0, "valid/bits_per_byte": values[int(state.step)]}
    run(tmp_path, program, experiment(16, save=2, evaluate=2, keep_last=2, keep_every=4))
    # 14 and 16 are the newest, 6 is the best, the multiples of 4 stay for good.
    directory = run_directory.open_run(tmp_path)
    assert directory.steps() == [4, 6, 8, 12, 14, 16]
    assert directory.best() == 6
    assert directory.checkpoint_metrics(6) == {"valid/loss": 0.0, "valid/bits_per_byte": 1.0}


def test_the_best_is_kept_over_a_resume_and_beside_checkpoints_without_evaluation(tmp_path):
    program = build()
    program.evaluate = lambda state: {"valid/loss": float(abs(state.step - 6))}
    run(tmp_path, program, experiment(12, save=2, evaluate=3, keep_last=1))
    assert run_directory.open_run(tmp_path).steps() == [6, 12]
    run(tmp_path, program, experiment(18, save=2, evaluate=3, keep_last=1))
    assert run_directory.open_run(tmp_path).steps() == [6, 18]


def test_the_best_by_accuracy_is_kept_and_patience_counts_from_it(tmp_path):
    program = build()
    accuracies = {2: 0.5, 4: 0.6, 6: 0.9, 8: 0.8, 10: 0.7, 12: 0.95}
    program.evaluate = lambda state: {  # the lowest loss is that of step 2
        "valid/loss": float(state.step),
        "valid/accuracy": accuracies[int(state.step)],
    }
    wanted = dataclasses.replace(
        experiment(12, save=2, evaluate=2, keep_last=1),
        evaluation=Evaluation(every=2, best="accuracy", patience=2),
    )
    run(tmp_path, program, wanted)
    directory = run_directory.open_run(tmp_path)
    assert (directory.steps(), directory.best()) == ([6, 10], 6)  # 8 and 10 were no better


def test_what_is_saved_is_the_state_of_the_step_though_its_buffers_are_donated(tmp_path):
    straight = build()
    state, batches, expected = straight.init(), straight.batches(), {}
    for step in range(1, 13):
        state, _ = straight.step(state, straight.place(next(batches)))
        expected[step] = jax.tree.map(lambda leaf: np.array(leaf), state)
    run(tmp_path, build(), experiment(12, save=2, keep_last=12))
    directory = run_directory.open_run(tmp_path)
    assert directory.steps() == [2, 4, 6, 8, 10, 12]
    for step in directory.steps():
        assert_same_state(checkpoint.restore(directory, build().abstract_state, step).state, expected[step])


def test_part_of_a_checkpoint_can_be_restored(finished):
    directory = run_directory.open_run(finished[0])
    abstract = {"params": build().abstract_state.params}
    restored = checkpoint.restore(directory, abstract, 10).state
    assert restored.keys() == {"params"}
    assert_same_state(restored["params"], finished[1].params)


def test_the_record_holds_experiment_format_and_versions(finished):
    directory = run_directory.open_run(finished[0])
    record = directory.checkpoint_record(10)
    assert record["format"] == checkpoint.FORMAT
    assert record["step"] == 10
    assert record["experiment"] == directory.description()
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"].keys() >= {
        "python",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "headway",
    }


def test_every_file_of_a_checkpoint_is_watched(copy):
    # Truncated, altered, or gone: each is noticed, whatever the file. The two that are written after
    # the manifest hold nothing that is read back.
    directory = run_directory.open_run(copy)
    assert checkpoint.damage(directory, 10) is None
    folder = copy / "checkpoints" / "10"
    unread = {folder / "_CHECKPOINT_METADATA", folder / "commit_success.txt"}
    watched = [path for path in files(folder) if path not in unread and path.stat().st_size]
    assert len(watched) > 8
    for path in watched:
        content = path.read_bytes()
        for harm in (truncate, flip, Path.unlink):
            harm(path)
            assert checkpoint.damage(directory, 10) is not None, (path, harm)
            path.write_bytes(content)
    assert checkpoint.damage(directory, 10) is None


@pytest.mark.parametrize("unread", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_the_files_that_are_not_watched_are_not_needed(copy, finished, unread):
    directory = run_directory.open_run(copy)
    truncate(copy / "checkpoints" / "10" / unread)
    restored = checkpoint.restore(directory, build().abstract_state, 10)
    assert_same_state(restored.state, finished[1])


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy, finished, harm):
    largest = max(files(copy / "checkpoints" / "10" / "state"), key=lambda path: path.stat().st_size)
    harm(largest)
    display = Notes()
    again = run(copy, build(), experiment(10), display=display)
    assert [line for line in display.lines if "damaged" in line or "resumed" in line][1:] == [
        "resumed from step 5"
    ]
    assert display.lines[0].startswith("checkpoint 10 is damaged (state/")
    assert display.lines[0].endswith("): falling back to the one before")
    # It is kept aside, and the step is trained and saved again.
    assert (copy / "damaged" / "10").is_dir()
    assert run_directory.open_run(copy).steps() == [5, 10]
    assert checkpoint.damage(run_directory.open_run(copy), 10) is None
    assert_same_state(again.state, finished[1])


def test_with_no_whole_checkpoint_the_run_starts_again_and_says_so(copy, finished):
    for step in ("5", "10"):
        truncate(copy / "checkpoints" / step / "record" / "metadata")
    display = Notes()
    again = run(copy, build(), experiment(10), display=display)
    assert "no checkpoint is whole: starting from the beginning" in display.lines
    assert_same_state(again.state, finished[1])
    assert [row["step"] for row in run_directory.open_run(copy).rows()] == [2, 4, 6, 8, 10, 10]


def test_reading_a_damaged_checkpoint_is_one_line(copy):
    truncate(max(files(copy / "checkpoints" / "10" / "state"), key=lambda path: path.stat().st_size))
    line = r"checkpoint 10 of .* is damaged \(state/.* bytes instead of .*\); other checkpoints: 5$"
    with pytest.raises(UserError, match=line):
        checkpoint.restore(run_directory.open_run(copy), build().abstract_state, 10)


def test_a_newer_format_is_refused_and_left_alone(copy, monkeypatch):
    written = checkpoint.FORMAT
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    line = rf"format {written}, written by headway .*: this version reads up to 0, upgrade"
    with pytest.raises(UserError, match=line):
        run(copy, build(), experiment(20))
    assert run_directory.open_run(copy).steps() == [5, 10]


def test_a_state_that_does_not_fit_is_one_line(copy):
    with pytest.raises(
        UserError, match=r"checkpoint 10 of .* does not fit: ballast/0 has shape \(1,\) there, \(7,\)"
    ):
        run(copy, build(ballast=7), experiment(20))


def test_a_run_that_no_training_led_to_is_not_gone_on_with(tmp_path):
    with (
        run_directory.claim(tmp_path, dataclasses.asdict(experiment(5))) as made,
        checkpoint.Checkpoints(made, Checkpointing()) as checkpoints,
    ):
        checkpoints.save(0, build().init(), None, {}, {})
    with pytest.raises(UserError, match=r"was imported or averaged, not trained: begin another run with --f"):
        run(tmp_path, build(), experiment(5))


def test_an_unfinished_save_is_cleared_away(copy):
    shutil.copytree(copy / "checkpoints" / "10", copy / "checkpoints" / "15.orbax-checkpoint-tmp")
    run(copy, build(), experiment(20))
    assert [path.name for path in sorted((copy / "checkpoints").iterdir())] == ["15", "20"]


def test_background_errors_that_nobody_asks_for_are_not_printed(finished, caplog):
    async def fail():
        raise ValueError("no space for the second array")

    async def save():
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    checkpoint.restore(run_directory.open_run(finished[0]), build().abstract_state, 10)  # calls Orbax
    asyncio.run(save())
    gc.collect()
    assert not caplog.records


@pytest.mark.slow
def test_a_full_disk_stops_training_with_one_line_and_the_last_checkpoint_whole(tmp_path):
    options = ("--ballast", 200_000)
    assert finish(tmp_path, "--steps", 10, *options)[0] == 0
    code, _, err = finish(tmp_path, "--steps", 40, "--limit", 200_000, *options)
    assert code == 2, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last == (
        f"cannot save step 15 in {tmp_path}: File too large; the last good checkpoint is step 10;"
        " make room and run the same command again"
    )
    directory = run_directory.open_run(tmp_path)
    assert directory.newest() == 10
    assert checkpoint.damage(directory, 10) is None
    code, _, err = finish(tmp_path, "--steps", 20, *options)
    assert (code, "resumed from step 10" in err) == (0, True)


def test_metrics_that_the_disk_does_not_take_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").touch()
    writer = MetricsWriter(run_directory.RunDirectory(tmp_path), 0)
    writer._file.close()
    monkeypatch.setattr(writer, "_file", open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write the metrics of .*: No space left on device"):
        writer.write(1, {"train/loss": 1.0})
    writer.close()
