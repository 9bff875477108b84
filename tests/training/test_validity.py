"""Rules about an experiment's values: one line naming the field, its value and the nearest valid choice."""

from __future__ import annotations

import dataclasses

import pytest

from research.attention import Linformer
from research.data.labelled_text import LabelledText
from research.data.masked_text import MaskedText
from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.training.description import _reachable, alternatives, field_types
from research.training.experiment import Evaluation, Experiment, Sharding
from research.training.overrides import override
from research.training.validity import _RANGES, validate

BASE = Experiment(name="x", model=GPT(width=192, heads=3, context=256))


ONE = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model.heads": "5"}, "model.heads 5 does not divide model.width 192; nearest: 4 or 6"),
        ({"model.kv_heads": "2"}, "model.kv_heads 2 does not divide model.heads 3; nearest: 1 or 3"),
        ({"model.kv_heads": "6"}, "model.kv_heads 6 does not divide model.heads 3; nearest: 3"),
        ({"model.layers": "0"}, "model.layers is 0; it must be at least 1"),
        ({"model.norm_epsilon": "0"}, "model.norm_epsilon is 0.0; it must be above 0"),
        ({"model.dropout": "1"}, "model.dropout is 1.0; it must be at least 0 and below 1"),
        (
            {"model.attention": "sliding-window", "model.attention.window": "0"},
            "model.attention.window is 0; it must be at least 1",
        ),
        (
            {"model.attention": "interleaved", "model.layers": "8"},
            "model.attention repeats every 6 layers, which does not divide the 8 layers; nearest: 6 layers",
        ),
        (
            {"model.attention": "gla", "model.engine": "ring"},
            "model.engine 'ring' computes softmax attention, and GLA has none",
        ),
        ({"model.heads": "64", "model.positions": "rotary"}, "even number of channels per head"),
        (
            {"model.width": "3", "model.positions": "sinusoidal"},
            "'sinusoidal' needs an even model.width, not 3",
        ),
        (
            {"model.positions": "relative-bias", "model.positions.max_distance": "16"},
            "needs at least 2 buckets and a max_distance above a half of them, not 32 and 16",
        ),
        (
            {"model.positions": "rotary", "model.positions.base": "1", "model.positions.scaling": "yarn"},
            "model.positions.base is 1.0; it must be above 1",
        ),
        (
            {
                "model.positions": "rotary",
                "model.positions.scaling": "yarn",
                "model.positions.scaling.fast": "1",
            },
            "model.positions.scaling.fast 1 must be above model.positions.scaling.slow 1",
        ),
        (
            {
                "model.positions": "rotary",
                "model.positions.scaling": "yarn",
                "model.positions.scaling.factor": "0.5",
            },
            "model.positions.scaling.factor is 0.5; it must be at least 1",
        ),
        ({"model.attention": "differential"}, "'differential' needs an even number of model.heads, not 3"),
        ({"model.attention": "latent", "model.kv_heads": "1"}, "leave model.kv_heads out"),
        (
            {"model.attention": "big-bird", "model.attention.block": "0"},
            "model.attention.block is 0; it must be at least 1",
        ),
        (
            {"data.length": "257"},
            "data.length 257 is longer than model.context 256; the longest possible is 256",
        ),
        ({"data.valid_fraction": "1"}, "data.valid_fraction is 1.0; it must be above 0 and below 1"),
        ({"data.source": "file"}, "data.source 'file' is unknown; did you mean 'files'?"),
        ({"data.path": "a.txt"}, "add --data.source files"),
        ({"steps": "0"}, "steps is 0; it must be at least 1"),
        ({"seed": "-1"}, "seed is -1; it must be between 0 and 4294967295"),
        ({"clip": "0"}, "clip is 0.0; it must be above 0"),
        ({"optimizer.beta2": "1"}, "optimizer.beta2 is 1.0; it must be at least 0 and below 1"),
        ({"optimizer": "muon", "optimizer.learning_rate": "-1"}, "optimizer.learning_rate is -1.0"),
        ({"schedule.final": "1.5"}, "schedule.final is 1.5; it must be between 0 and 1"),
        ({"checkpointing.keep_last": "0"}, "checkpointing.keep_last is 0; it must be at least 1"),
        ({"evaluation.best": "accuracy"}, "which this objective's validation does not have; choose 'loss'"),
        ({"evaluation.batches": "0"}, "evaluation.batches is 0; it must be at least 1"),
        ({"name": ""}, "name is empty"),
        ({"steps": "2147483648"}, "steps is 2147483648; it must be at least 1 and below 2147483648"),
        ({"schedule.warmup": "3000000000"}, "schedule.warmup is 3000000000; it must be at least 0 and below"),
        ({"model.layers": "1" * 20}, "model.layers is 11111111111111111111; it must be at least 1 and below"),
    ],
)
def test_a_value_out_of_place_is_one_line(options, line):
    with pytest.raises(UserError) as error:
        validate(override(BASE, options))
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "classes", "best", "choices"),
    [
        ("labels", 2, "pearson", "'loss' or 'accuracy' or 'f1' or 'matthews'"),
        ("tags", 3, "f1", "'loss' or 'accuracy'"),
        ("score", 1, "accuracy", "'loss' or 'pearson'"),
    ],
)
def test_the_best_checkpoint_is_by_what_the_task_measures(task, classes, best, choices):
    model = Classifier(BERT(), classes=classes, per_token=task == "tags")
    data, learn = LabelledText(task=task, classes=classes), Classification()
    described = Experiment("task", model, data, learn, evaluation=Evaluation(best=best))
    with pytest.raises(UserError, match=rf"evaluation.best is '{best}', .*; choose {choices}$"):
        validate(described)
    for admitted in choices.replace("'", "").split(" or "):
        validate(dataclasses.replace(described, evaluation=Evaluation(best=admitted)))
    with pytest.raises(UserError, match=f"data.classes {classes} and model.classes 7 must agree|needs model"):
        validate(dataclasses.replace(described, model=dataclasses.replace(model, classes=7)))


@pytest.mark.parametrize(
    ("options", "mesh", "line"),
    [
        ({"data.batch": "12"}, {"fsdp": 8}, "data.batch 12 does not divide into 8 shards"),
        ({"data.batch": "12"}, {"data": 2, "fsdp": 4}, "nearest: 8 or 16"),
        ({"data.batch": "12", "accumulate": "8"}, {}, "8 micro-batches (accumulate); nearest: 8 or 16"),
        ({"data.batch": "3"}, {"fsdp": 4}, "nearest: 4"),
        ({}, {"sequence": 3}, "mesh axis sequence 3 does not divide data.length 256; nearest: 2 or 4"),
    ],
)
def test_a_batch_that_does_not_divide_over_the_mesh_is_one_line(options, mesh, line):
    with pytest.raises(UserError) as error:
        validate(override(BASE, options), ONE | mesh)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "mesh"),
    [
        ({}, {}),
        ({}, {"fsdp": 8, "tensor": 4}),
        ({"steps": "20"}, {}),
        ({"accumulate": "4"}, {"data": 2, "fsdp": 4}),
        ({"model.heads": "64", "model.positions": "learned"}, {}),
    ],
)
def test_what_is_valid_passes(options, mesh):
    validate(override(BASE, options), ONE | mesh)


def test_every_number_has_a_range():
    without = {
        (cls, name)
        for cls in _reachable(Experiment)
        for name, declared in field_types(cls).items()
        if {int, float} & set(alternatives(declared)) and name not in _RANGES.get(cls, {})
    }
    assert {cls for cls, _ in without} == {Sharding}  # which is for the mesh to say


def test_a_mechanism_that_reads_a_row_as_one_document_needs_such_rows():
    model = BERT(width=192, heads=3, attention=Linformer())
    refusals = {MaskedText(): True, MaskedText(packed=False): False, MaskedText(pairs="next"): False}
    for data, refused in refusals.items():
        experiment = Experiment(name="x", model=model, data=data, objective=MaskedLM())
        try:
            validate(experiment)
        except UserError as error:
            assert refused and "choose data.packed false" in str(error)
        else:
            assert not refused
