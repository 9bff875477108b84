"""Plans for chips that are not here, compiled by the real compiler (extra ``tpu``)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.errors import UserError
from research.models.bert import BERT
from research.models.gpt import GPT
from research.models.transformer import Transformer
from research.objectives.masked_lm import MaskedLM
from research.objectives.translation import Translation
from research.scale.chips import CHIPS, Topology, topology
from research.training.experiment import Bitext, Experiment, Sharding
from research.training.plan import _beats, _shortage, _within, plan, search, text

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
    from research.cli.planning import Plan
    from research.cli.planning import plan as command

    with pytest.raises(UserError, match=r"needs --topology CHIP:AxB, such as v5e:4x4"):
        command("experiments/gpt/quickstart.py", Plan(), {})
    with pytest.raises(UserError, match=r"--step simple: train, eval or sample"):
        command("experiments/gpt/quickstart.py", Plan(topology="v5e:2x2", step="simple"), {})


SMALL = Experiment(
    name="small",
    model=GPT(vocabulary=64, context=32, layers=2, width=32, heads=2, remat="block"),
    data=TextData(length=32, batch=16),
    accumulate=2,
)


def test_gpus_are_planned_from_shapes():
    found = plan(dataclasses.replace(SMALL, sharding=Sharding("fsdp")), topology("h100:8"))
    assert found["compiled"] is False and "collectives" not in found
    memory = found["memory_per_device"]
    count = 64 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    # Norms and biases that are not split are whole on every device.
    assert count * 4 / 8 <= memory["parameters"] < count * 4 / 8 + 4 * 13 * 32 * 2
    assert memory["gradients"] == memory["parameters"] and memory["optimizer"] >= 2 * memory["parameters"]
    # Of every block its input alone is kept, float32, one of a micro-batch's eight rows on each device; and
    # what the head needs.
    inputs = 2 * 32 * 32 * 4
    assert inputs <= memory["activations_kept"] < inputs + 10 * 32 * (32 + 64) * 4
    assert "not compiled: memory is what the shapes" in text(found)


def test_what_does_not_fit_a_gpu_is_refused_in_bytes():
    large = dataclasses.replace(SMALL.model, width=8192, heads=64, layers=64)
    with pytest.raises(UserError, match=r"does not fit 1 x h100:8: .* GiB are needed, .* \([\d,]+ bytes\)"):
        plan(dataclasses.replace(SMALL, model=large), topology("h100:8"))


@pytest.mark.parametrize("step", ["eval", "sample"])
def test_other_steps_are_planned_too(step):
    found = plan(SMALL, topology("cpu:1"), step)
    memory = found["memory_per_device"]
    assert found["compiled"] is True and memory["optimizer"] == 0 and "estimate" not in found
    train = SMALL.model.training_flops({"tokens": (16, 32)}, visible=False)
    assert found["flops_per_step"]["full"] == pytest.approx(train / 3)
    if step == "sample":  # keys and values of every layer, and then some
        assert memory["gradients_activations_and_other"] > 2 * 2 * 16 * 32 * 32 * 4
    assert f"its {step} step compiles for 1 x cpu:1 (1 chips)" in text(found)


@pytest.mark.parametrize("place", ["cpu:1", "h100:4"])
def test_an_encoder_decoder_is_planned_too(place):
    model = Transformer(vocabulary=64, context=32, layers=2, decoder_layers=1, width=32, heads=2)
    pairs = Bitext(corpus="files", length=16, batch_tokens=128)  # 8 rows of 16 tokens on either side
    found = plan(Experiment("pairs", model, pairs, Translation()), topology(place))
    # Encoder blocks, and a decoder block with its second attention, of which keys and values read the source.
    count = 64 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 16 * 32 * 32 + 19 * 32
    chips = found["chips"]
    memory = found["memory_per_device"]
    assert count * 4 / chips <= memory["parameters"] <= count * 4 / chips + 4 * 45 * 32
    assert memory["batch"] == 6 * 8 * 16 * 4 / chips
    of_source, of_target = 2 * 12 * 32 * 32 + 2 * 32 * 32, 14 * 32 * 32 + 32 * 64
    flops = 8 * 16 * (6 * (of_source + of_target) + 3 * (2 + 1 + 1) * 4 * 32 * 16)
    assert found["flops_per_step"]["full"] == flops
    assert f"1 x {place}" in text(found)


def test_what_cannot_be_sampled_is_one_line():
    with pytest.raises(
        UserError, match="--step sample is planned for TPUs and cpu:N, whose compilers are here"
    ):
        plan(SMALL, topology("h100:8"), "sample")
    masked = Experiment("masked", BERT(vocabulary=64, layers=1, width=32, heads=2), MaskedText(), MaskedLM())
    with pytest.raises(
        UserError, match="--step sample needs objective 'causal-lm'; masked learns 'masked-lm'"
    ):
        plan(masked, topology("cpu:1"), "sample")


@pytest.mark.parametrize("place", ["cpu:1", "h100:8"])
def test_a_search_where_no_time_is_estimated_is_one_line(place):
    with pytest.raises(UserError, match=f"estimated for TPUs only, not for {place}; choose one, such"):
        search(SMALL, topology(place), print)


def test_what_the_compiler_lets_pass_and_the_chip_does_not_hold_is_refused_with_the_bytes():
    place = Topology("v5e:2x2", CHIPS["v5e"], 1, ())
    held = {"parameters": 1, "total": 16 * 2**30}
    assert _within(held, place, "train") == {**held, "share_of_memory": 1.0}
    with pytest.raises(
        UserError, match=r"does not fit 1 x v5e:2x2: 16.0 GiB are needed, .*\(7 bytes\); take"
    ):
        _within({"total": 16 * 2**30 + 7}, place, "train")
