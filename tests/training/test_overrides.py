"""Overrides from the command line: every field, every kind, and one clear line for each mistake."""

from __future__ import annotations

import dataclasses

import pytest

from research.attention.block_choice import MoBA
from research.attention.low_rank import Linformer
from research.attention.recurrent_mechanisms import Performer
from research.errors import UserError
from research.models.gpt import GPT
from research.models.transformer import Transformer
from research.objectives.causal_lm import CausalLM
from research.training.experiment import Experiment
from research.training.optimizer import AdamW, Muon
from research.training.overrides import choices, leaves, override, split_options
from research.training.schedule import ReciprocalSqrt

BASE = Experiment(name="x", optimizer=AdamW(learning_rate=0.5))


def test_options_are_split_from_positional_arguments():
    words = [
        "a",
        "--model.kv-heads",
        "3",
        "--model.kv_heads=4",
        "b",
        "--json",
        "--fsdp",
        "-1",
        "--bias",
        "false",
    ]
    with pytest.raises(UserError, match=r"^--model.kv_heads: given twice$"):
        split_options(words)
    words.remove("--model.kv_heads=4")
    assert split_options(words, flags={"json", "bias"}) == (
        ["a", "b"],
        {"model.kv_heads": "3", "json": "true", "fsdp": "-1", "bias": "false"},
    )
    assert split_options(["--prompt=--a=b"]) == ([], {"prompt": "--a=b"})


@pytest.mark.parametrize("words", [["--steps"], ["--steps", "--seed", "3"]])
def test_an_option_without_its_value(words):
    with pytest.raises(UserError, match=r"^--steps: needs a value$"):
        split_options(words)


def test_every_field_can_be_given_back_its_own_value():
    """The text of every default parses to that default: no field is out of reach of the command line."""
    for base in (BASE, dataclasses.replace(BASE, optimizer=Muon(), schedule=ReciprocalSqrt())):
        kinds = {option for option, _, _ in choices(base)}
        for name, _ in leaves(base):
            value = base
            for part in name.split("."):
                value = getattr(value, part)
            if "--" + name not in kinds:
                assert override(base, {name: str(value)}) == base


def test_values_are_read_by_type():
    given = {
        "model.layers": "3",
        "clip": "none",
        "ema": "0.9",
        "model.bias": "False",
        "data.path": "a,b",
        "objective.z_loss": "1",
    }
    changed = override(BASE, given)
    assert (changed.model.layers, changed.clip, changed.ema) == (3, None, 0.9)
    assert (changed.model.bias, changed.data.path, changed.objective.z_loss) == (False, "a,b", 1.0)
    assert changed == dataclasses.replace(
        BASE,
        model=dataclasses.replace(BASE.model, layers=3, bias=False),
        data=dataclasses.replace(BASE.data, path="a,b"),
        clip=None,
        ema=0.9,
        objective=CausalLM(z_loss=1.0),
    )


def test_a_kind_replaces_the_default_and_then_its_fields_are_there_in_any_order():
    options = {"optimizer.beta": "0.9", "optimizer": "muon", "schedule": "reciprocal-sqrt"}
    changed = override(BASE, options)
    assert changed.optimizer == Muon(beta=0.9) and changed.schedule == ReciprocalSqrt()


def test_the_kind_it_is_already_keeps_its_values():
    assert override(BASE, {"optimizer": "adamw"}) == BASE


def test_each_side_of_a_transformer_has_an_attention_of_its_own():
    options = {
        "model.attention": "linformer",
        "model.decoder_attention": "moba",
        "model.decoder_attention.block": "16",
        "model.cross_attention": "performer",
    }
    changed = override(Experiment(name="x", model=Transformer()), options).model
    assert changed == Transformer(
        attention=Linformer(), decoder_attention=MoBA(block=16), cross_attention=Performer()
    )
    assert list(changed.problems()) == []


def test_kinds_nested_in_kinds():
    @dataclasses.dataclass(frozen=True)
    class BigBird:
        block: int = 16

    @dataclasses.dataclass(frozen=True)
    class Full:
        pass

    @dataclasses.dataclass(frozen=True)
    class Encoder:
        attention: BigBird | Full | None = dataclasses.field(default_factory=Full)

    @dataclasses.dataclass(frozen=True)
    class Task:
        model: GPT | Encoder = dataclasses.field(default_factory=GPT)

    # Resolved types of local classes: what get_type_hints would find at module level.
    for cls in (Encoder, Task):
        cls.__annotations__ = {
            name: {"attention": BigBird | Full | None, "model": GPT | Encoder}[name]
            for name in cls.__annotations__
        }
    options = {"model.attention.block": "64", "model.attention": "big-bird", "model": "encoder"}
    assert override(Task(), options) == Task(Encoder(BigBird(64)))
    assert override(Task(Encoder()), {"model.attention": "none"}) == Task(Encoder(None))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model.layer": "3"}, "unknown option --model.layer; did you mean --model.layers?"),
        ({"model.kv_head": "3"}, "unknown option --model.kv-head; did you mean --model.kv-heads?"),
        ({"workdri": "3"}, "unknown option --workdri; did you mean --workdir?"),
        ({"qqqqqqqqqqqq": "3"}, "unknown option --qqqqqqqqqqqq; --help lists all options"),
        ({"optimizer.beta": "3"}, "unknown option --optimizer.beta; did you mean --optimizer.beta2?"),
        ({"model.layers": "x"}, "--model.layers: expected a whole number, found 'x'"),
        ({"model.layers": "3.5"}, "--model.layers: expected a whole number, found '3.5'"),
        ({"model.bias": "yes"}, "--model.bias: expected true or false, found 'yes'"),
        ({"clip": "much"}, "--clip: expected a number or none, found 'much'"),
        ({"clip": "inf"}, "--clip: expected a number or none, found 'inf'"),
        ({"optimizer": "moun"}, "--optimizer: unknown kind 'moun'; did you mean 'muon'?"),
        (
            {"model.dtype": "f16"},
            "--model.dtype: expected one of float32, bfloat16, found 'f16'",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_choice(options, line):
    with pytest.raises(UserError) as error:
        override(BASE, options, other_names=["workdir", "profile"])
    assert str(error.value) == line
