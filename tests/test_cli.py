"""The command line: exit codes, one line for each mistake, help, and what goes to which stream."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.cli.command import Command
from research.cli.commands import COMMANDS
from research.cli.main import main

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "experiments" / "gpt" / "quickstart.py")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train"], "train: needs EXPERIMENT; usage: headway train EXPERIMENT"),
        (["train", "a", "b"], "train: unexpected argument 'b'"),
        (["train", "nowhere.py"], "nowhere.py: no such experiment file or run directory"),
        (
            ["train", QUICKSTART, "--model.layer", "6"],
            "unknown option --model.layer; did you mean --model.layers?",
        ),
        (["train", QUICKSTART, "--wrokdir", "x"], "unknown option --wrokdir; did you mean --workdir?"),
        (
            ["train", QUICKSTART, "--model.layers", "six"],
            "--model.layers: expected a whole number, found 'six'",
        ),
        (["train", QUICKSTART, "--steps"], "--steps: needs a value"),
        (
            ["train", QUICKSTART, "--model.heads", "5"],
            "model.heads 5 does not divide model.width 128; nearest: 4 or 8",
        ),
        (
            ["train", QUICKSTART, "--profile", "10"],
            "--profile: expected FIRST:END in steps, such as 10:13, found '10'",
        ),
        (["train", QUICKSTART, "--sharding.tensor", "64"], "tensor 64"),
        (["train", QUICKSTART, "--watchdog", "0"], "--watchdog 0: above 0, in seconds"),
        (["train", QUICKSTART, "--process", "1"], "--process needs --coordinator and --processes as well"),
        (
            ["train", QUICKSTART, "--workdir", "s3://bucket/run"],
            "s3://bucket/run: of object stores gs:// alone is known; mount this one",
        ),
        (["evaluate", "s3://bucket/run"], "s3://bucket/run: of object stores gs:// alone is known"),
        (["train", QUICKSTART, "--accumulate", "3"], "data.batch 16 does not divide into"),
        (["show", QUICKSTART, "--accumulate", "3"], "data.batch 16 does not divide into"),
        (
            ["show", QUICKSTART, "--optimizer", "moun"],
            "--optimizer: unknown kind 'moun'; did you mean 'muon'?",
        ),
        (["sample", "nowhere", "--prompt", "x"], "no run directory at nowhere"),
        (["sample", "nowhere", "--promt", "x"], "unknown option --promt; did you mean --prompt?"),
        (["sample", "nowhere", "--count", "0"], "--count 0: at least 1"),
        (["sample", "nowhere", "--seed", "9" * 20], "--seed 99999999999999999999: between 0 and 4294967295"),
        (["sample", "nowhere", "--seed", "-1"], "--seed -1: between 0 and 4294967295"),
        (["sample", "nowhere", "--top-p", "2"], "top-p 2: above 0 and at most 1"),
        (["evaluate", "nowhere"], "no run directory at nowhere"),
        (["evaluate", "nowhere", "--model.layers", "3"], "unknown option --model.layers"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_exit_code_2(
    capsys, tmp_path, monkeypatch, arguments, line
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("headway: ") and err.count("\n") == 1 and line in err
    assert not list(tmp_path.iterdir())


def test_an_experiment_with_a_bug_of_its_own_is_named_by_file_and_line(capsys, tmp_path):
    (tmp_path / "bug.py").write_text("def experiment():\n    return 1 / 0\n")
    code, _, err = run(capsys, "show", str(tmp_path / "bug.py"))
    assert code == 2 and f"{tmp_path / 'bug.py'}, line 2: ZeroDivisionError: division by zero\n" in err


def test_a_disk_that_takes_no_more_is_one_line(capsys):
    def full(*, options, overrides):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/tokenizer.json")

    code = main(["full"], {"full": Command(COMMANDS["show"].options, "", full)})
    said = "No space left on device; make room and run the same command again"
    assert (code, capsys.readouterr().err) == (2, f"headway: runs/x/tokenizer.json: {said}\n")


def test_help_without_a_command_names_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = run(capsys, *arguments)
        assert code == 0 and not err and all(f"headway {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_a_command_lists_its_options(capsys, name):
    code, out, err = run(capsys, name, "--help")
    assert code == 0 and not err and "--json" in out
    assert "-h, --help" not in out and out.startswith(f"usage: headway {name} ")


def test_help_takes_the_options_of_the_command(capsys):
    for command in (["plan", QUICKSTART, "--search", "--json"], ["train", QUICKSTART, "--from", "runs/x"]):
        code, out, _ = run(capsys, *command, "--help")
        assert code == 0 and "Every field of the experiment is an option" in out


def test_help_of_an_experiment_lists_every_field_with_docstring_and_value(capsys):
    code, out, _ = run(capsys, "train", QUICKSTART, "--help")
    words = " ".join(out.split())
    assert code == 0
    assert "--model.layers INT Blocks. (default: 4)" in words
    assert "--optimizer {adamw,lion,adafactor,muon} (default: muon" in words
    assert "--checkpointing.keep-last INT" in words and "--optimizer.beta FLOAT" in words
    code, out, _ = run(capsys, "train", QUICKSTART, "--optimizer", "muon", "--steps", "7", "--help")
    words = " ".join(out.split())
    assert (
        "--optimizer.adam-learning-rate FLOAT" in words
        and "--steps INT Optimizer steps. (default: 7)" in words
    )


def test_every_field_has_a_docstring_in_the_help(capsys):
    _, out, _ = run(capsys, "train", QUICKSTART, "--help")
    words = " ".join(word for word in out.split() if set(word) != {"-"})
    entries = words.partition("One training run")[2].split(" --")[1:]
    assert len(entries) > 50
    for entry in entries:
        option, _, rest = entry.partition(" ")
        described = rest.partition("(default")[0].split()
        assert len(described) >= 2, f"--{option} has no docstring"


def test_show_json_is_one_object(capsys):
    code, out, _ = run(capsys, "show", QUICKSTART, "--json", "--optimizer", "lion", "--model.layers=2")
    found = json.loads(out)
    assert code == 0
    assert found["experiment"]["optimizer"]["kind"] == "lion" and found["experiment"]["model"]["layers"] == 2
    assert found["parameters"]["total"] == sum(_size(row["shape"]) for row in found["sharding"])
    assert found["memory_per_device"]["parameters"] == 4 * found["parameters"]["total"]
    assert found["memory_per_device"]["total"] > found["memory_per_device"]["activations_and_other"] > 0


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def test_show_counts_gpt2_as_published(capsys, tmp_path):
    (tmp_path / "gpt2.py").write_text(
        "from research.models.gpt import GPT\nfrom research.data.text import TextData\n"
        "from research.training.experiment import Experiment\n"
        "def experiment():\n"
        "    data = TextData(length=1024, batch=1)\n"
        "    return Experiment(name='gpt2', model=GPT(vocabulary=50257), data=data)\n"
    )
    code, out, _ = run(capsys, "show", str(tmp_path / "gpt2.py"))
    assert code == 0
    assert "124,439,808 (85,056,000 without embeddings)" in out
    assert "token_embedding/table" in out and "learning_rate: 0.001" in out


def test_help_is_quick_because_nothing_heavy_is_imported():
    """Neither JAX nor anything over it is imported for the overview."""
    program = (
        "import sys, research.cli.main; code = research.cli.main.main(['--help']); "
        "sys.exit(code or len({'jax', 'numpy', 'flax', 'optax', 'tyro'} & set(sys.modules)))"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0 and "headway train" in done.stdout
    assert time.monotonic() - start < 10


def test_a_reader_that_stops_early_is_no_error():
    program = "import sys, research.cli.main; sys.exit(research.cli.main.main(['train', '--help']))"
    command = f'{sys.executable} -c "{program}" | head -1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.startswith("usage: headway train") and done.stderr == ""
