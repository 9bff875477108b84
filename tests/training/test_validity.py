"""Rules about an experiment's values: one line naming the field, its value and the nearest valid choice."""

from __future__ import annotations

import pytest

from research.errors import UserError
from research.models.gpt import GPT
from research.training.experiment import Experiment
from research.training.overrides import override
from research.training.validity import validate

BASE = Experiment(name="x", model=GPT(width=192, heads=3, context=256))


@pytest.mark.parametrize(
    ("options", "devices", "line"),
    [
        ({"model.heads": "5"}, 1, "model.heads 5 does not divide model.width 192; nearest: 4 or 6"),
        ({"model.kv_heads": "2"}, 1, "model.kv_heads 2 does not divide model.heads 3; nearest: 1 or 3"),
        ({"model.kv_heads": "6"}, 1, "model.kv_heads 6 does not divide model.heads 3; nearest: 3"),
        ({"model.layers": "0"}, None, "model.layers is 0; it must be at least 1"),
        ({"model.dropout": "1"}, None, "model.dropout is 1.0; it must be at least 0 and below 1"),
        ({"model.window": "0"}, None, "model.window is 0; it must be at least 1"),
        ({"model.heads": "64", "model.positions": "rotary"}, None, "even number of channels per head"),
        (
            {"data.length": "257"},
            None,
            "data.length 257 is longer than model.context 256; the longest possible is 256",
        ),
        ({"data.valid_fraction": "1"}, None, "data.valid_fraction is 1.0; it must be above 0 and below 1"),
        ({"data.source": "file"}, None, "data.source 'file' is unknown; did you mean 'files'?"),
        ({"data.path": "a.txt"}, None, "add --data.source files"),
        ({"steps": "0"}, None, "steps is 0; it must be at least 1"),
        ({"seed": "-1"}, None, "seed is -1; it must be between 0 and 4294967295"),
        ({"clip": "0"}, None, "clip is 0.0; it must be above 0"),
        ({"optimizer.beta2": "1"}, None, "optimizer.beta2 is 1.0; it must be at least 0 and below 1"),
        ({"optimizer": "muon", "optimizer.learning_rate": "-1"}, None, "optimizer.learning_rate is -1.0"),
        ({"schedule.final": "1.5"}, None, "schedule.final is 1.5; it must be between 0 and 1"),
        ({"checkpointing.keep_last": "0"}, None, "checkpointing.keep_last is 0; it must be at least 1"),
        ({"evaluation.batches": "0"}, None, "evaluation.batches is 0; it must be at least 1"),
        ({"sharding.fsdp": "0"}, None, "sharding.fsdp is 0; it must be at least 1, or -1"),
        (
            {"sharding.data": "16"},
            8,
            "a mesh of data 16 x fsdp -1 x tensor 1 x sequence 1 needs 16 devices, and there are 8",
        ),
        ({"sharding.tensor": "3"}, 8, "does not divide 8 devices; nearest: 2 or 4"),
        ({"data.batch": "12"}, 8, "data.batch 12 does not divide into 8 shards"),
        ({"data.batch": "12", "accumulate": "8"}, 1, "8 micro-batches (accumulate); nearest: 8 or 16"),
        ({"data.batch": "3", "sharding.fsdp": "4"}, None, "nearest: 4"),
        (
            {"sharding.sequence": "3"},
            None,
            "sharding.sequence 3 does not divide data.length 256; nearest: 2 or 4",
        ),
        ({"name": ""}, None, "name is empty"),
    ],
)
def test_a_value_out_of_place_is_one_line(options, devices, line):
    with pytest.raises(UserError) as error:
        validate(override(BASE, options), devices)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({}, 1),
        ({}, 8),
        ({"steps": "20"}, 1),
        ({"sharding.fsdp": "2"}, 8),
        ({"model.heads": "64", "model.positions": "learned"}, 1),
        ({"sharding.tensor": "4", "sharding.strategy": "fsdp+tensor"}, 8),
    ],
)
def test_what_is_valid_passes(options, devices):
    validate(override(BASE, options), devices)
