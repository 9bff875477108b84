"""The run directory: one process, one experiment, readable without JAX."""

import json
import subprocess
import sys

import pytest

from research.errors import UserError
from research.training.run_directory import FORMAT, RunDirectory, claim, open_run

BASE = {"name": "x", "steps": 10, "model": {"kind": "gpt", "layers": 4, "width": 64}, "sharding": {"data": 1}}


def changed(**fields):
    return {**BASE, **fields}


def test_a_claimed_directory_is_refused_to_others_until_released(tmp_path):
    path = tmp_path / "run"
    with (
        claim(path, BASE),
        pytest.raises(UserError, match=r"is in use by process \d+ on .*choose another --workdir") as caught,
        claim(path, BASE),
    ):
        pass
    assert "\n" not in str(caught.value)
    with claim(path, BASE):
        pass


def test_the_lock_goes_with_the_process_that_holds_it(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from research.training.run_directory import claim\n"
            f"with claim({str(tmp_path / 'run')!r}, {BASE!r}): print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid} on"),
            claim(tmp_path / "run", BASE),
        ):
            pass
        holder.kill()
        holder.wait()
    with claim(tmp_path / "run", BASE):
        pass


@pytest.mark.parametrize(
    "other",
    [
        changed(steps=20),
        changed(log_every=5),
        changed(sharding={"data": 8}),
        changed(model={"kind": "gpt", "layers": 4, "width": 64, "engine": "ring"}),
        changed(evaluation={"every": 3}, checkpointing={"every": 4}),
    ],
)
def test_training_longer_or_elsewhere_is_the_same_experiment(tmp_path, other):
    with claim(tmp_path, BASE):
        pass
    with claim(tmp_path, other) as directory:
        assert directory.description() == other


def test_a_different_experiment_is_refused_naming_the_fields(tmp_path):
    with claim(tmp_path, BASE):
        pass
    other = changed(model={"kind": "gpt", "layers": 6, "width": 64, "window": 3})
    expected = (
        r"different experiment: model.layers \(4 there, 6 now\), model.window \('absent' there, 3 now\);"
    )
    with pytest.raises(UserError, match=expected), claim(tmp_path, other):
        pass
    assert open_run(tmp_path).description() == BASE
    many = changed(name="y", model={"kind": "bert", "layers": 5, "width": 65})
    with pytest.raises(UserError, match="and 1 more; choose another --workdir"), claim(tmp_path, many):
        pass


def test_fewer_steps_than_were_taken_are_refused(tmp_path):
    with claim(tmp_path, BASE) as directory:
        (directory.checkpoints / "10").mkdir()
    with (
        pytest.raises(UserError, match=r"is at step 10 already, beyond steps 9; choose 10 or more"),
        claim(tmp_path, changed(steps=9)),
    ):
        pass
    assert open_run(tmp_path).description()["steps"] == 10
    with claim(tmp_path, BASE):
        pass


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with (
        pytest.raises(UserError, match=r"not empty and not a run directory \(it has thesis.tex\)"),
        claim(tmp_path, BASE),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_was_killed_while_being_made_is_taken_up(tmp_path):
    (tmp_path / "lock").write_text("")
    (tmp_path / "experiment.json.tmp").write_text('{"na')
    with claim(tmp_path, BASE) as directory:
        assert directory.description() == BASE


def test_a_path_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot use .*file/run as run directory"),
        claim(tmp_path / "file" / "run", BASE),
    ):
        pass


def test_a_tokenizer_that_differs_is_refused(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.keep({"tokenizer.json": "{}"})
    directory.keep({"tokenizer.json": "{}"})
    with pytest.raises(UserError, match=r"data of .* has changed since the run began"):
        directory.keep({"tokenizer.json": "{ }"})


def test_reading_something_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run directory at"):
        open_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"is not a run directory: it has no experiment.json"):
        open_run(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(UserError, match="is damaged: it is not JSON"):
        open_run(tmp_path).description()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        open_run(tmp_path).newest()


def test_checkpoints_by_name(tmp_path):
    losses = {2: None, 5: 3.0, 10: 1.0, 40: 2.0, 100: None, 120: float("nan")}
    for step, loss in losses.items():
        folder = tmp_path / "checkpoints" / str(step) / "metrics"
        folder.mkdir(parents=True)
        if loss is not None:
            (folder / "metrics").write_text(json.dumps({"valid/loss": 9.0, "valid/bits_per_byte": loss}))
    (tmp_path / "checkpoints" / "130.orbax-checkpoint-tmp").mkdir()
    directory = RunDirectory(tmp_path)
    directory.experiment.write_text(json.dumps({"format": FORMAT}))
    assert directory.steps() == sorted(losses)
    assert directory.checkpoint_step("newest") == 120
    assert directory.checkpoint_step("best") == 10
    assert directory.checkpoint_step("40") == directory.checkpoint_step(40) == 40
    with pytest.raises(
        UserError, match=r"no checkpoint 'last': choose newest, best or a step \(2, 5, 10, 40"
    ):
        directory.checkpoint_step("last")


def test_a_cut_off_line_of_metrics_is_left_out(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.rows() == []
    directory.metrics.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert directory.rows() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", [b"step 2\n", b"\0\0\0\n", b"\xff\n", b"3\n"])
def test_a_line_of_metrics_that_is_no_object_is_one_line(tmp_path, line):
    directory = RunDirectory(tmp_path)
    directory.metrics.write_bytes(b'{"step": 1}\n' + line)
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: "):
        directory.rows()


def test_looking_into_a_run_imports_no_jax():
    code = "import sys, research.training.run_directory; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
