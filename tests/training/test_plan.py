"""Plans for chips that are not here, compiled by the real compiler (extra ``tpu``)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from research.errors import UserError
from research.training.plan import _beats, _shortage

QUICK = ["--model.layers", "2", "--model.width", "128", "--optimizer", "adamw", "--model.depth", "scan"]


def run(*words):
    """Runs ``headway plan`` in a process of its own: a compiler for TPUs is loaded once and for all."""
    command = [sys.executable, "-m", "research.cli", "plan", "experiments/gpt/quickstart.py", *QUICK, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TPU_MIN_LOG_LEVEL": "3"}
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu'")
def test_a_step_compiles_for_two_slices_and_says_what_crosses_between_them():
    code, out, err = run("--topology", "v5e:2x2", "--slices", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1} and found["chips"] == 8
    between = [row for row in found["collectives"] if row["between_slices"]]
    inside = [row for row in found["collectives"] if not row["between_slices"]]
    assert between and {row["kind"] for row in between} == {"all-reduce"}
    # Each chip sends its quarter of the gradients to its twin in the other slice, once, and little else.
    parameters = sum(row["bytes_per_device"] for row in found["sharding"])
    sent = sum(row["bytes"] for row in between)
    assert parameters / 2 <= sent <= 1.5 * 4 * parameters and inside
    memory = found["memory_per_device"]
    assert memory["parameters"] < memory["total"] < 2**28


def test_what_does_not_fit_is_said_in_bytes():
    line = _shortage("the total memory required for HLO temporaries (35.91G) exceeds available HBM (15.75G).")
    assert line == "35.9 GiB are needed, 20.2 GiB more than there are (21,646,635,171 bytes)"
    assert _shortage("something else") is None


def test_a_row_is_beaten_by_one_that_is_no_worse_and_somewhere_better():
    one, two = {"bytes": 1, "seconds": 2.0}, {"bytes": 2, "seconds": 2.0}
    assert _beats(one, two) and not _beats(two, one) and not _beats(one, one)
    assert not _beats(one, {"bytes": 5, "seconds": 1.0})


def test_errors_of_the_command_are_one_line():
    from research.cli.planning import Plan, plan

    with pytest.raises(UserError, match=r"needs --topology CHIP:AxB, such as v5e:4x4"):
        plan("experiments/gpt/quickstart.py", Plan(), {})
    with pytest.raises(UserError, match=r"--step sample: train or eval"):
        plan("experiments/gpt/quickstart.py", Plan(topology="v5e:2x2", step="sample"), {})
