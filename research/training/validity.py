"""What a description must satisfy beyond its types: ranges of single fields, and agreement between fields."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from research.attention.catalogue import Interleaved, Single
from research.attention.mechanisms import Mechanism
from research.attention.positions import (
    NTK,
    Interpolation,
    Learned,
    RelativeBias,
    Rotary,
    Sinusoidal,
    YaRN,
)
from research.data.associative_recall import AssociativeRecall
from research.data.bitext import Bitext
from research.data.induction import Induction
from research.data.labelled_text import LabelledText
from research.data.list_operations import ListOperations
from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.models.seq2seq import Alignment, Seq2Seq
from research.models.stacks import nearest_divisors
from research.models.transformer import Transformer
from research.objectives.causal_lm import CausalLM
from research.objectives.masked_lm import MaskedLM
from research.objectives.recall import Recall
from research.objectives.translation import Translation
from research.training.description import kind
from research.training.experiment import LEARNABLE, Checkpointing, Evaluation, Experiment
from research.training.initial import LoRA
from research.training.optimizer import Adafactor, AdamW, Lion, Muon
from research.training.schedule import Cosine, Linear, ReciprocalSqrt, WarmupStableDecay

Range = tuple[str, Callable[[Any], bool]]

# Steps are counted, and sizes often are, in 32-bit integers.
AT_LEAST_1: Range = ("at least 1 and below 2147483648", lambda x: 1 <= x < 2**31)
AT_LEAST_0: Range = ("at least 0 and below 2147483648", lambda x: 0 <= x < 2**31)
ABOVE_0: Range = ("above 0", lambda x: x > 0)
ABOVE_1: Range = ("above 1", lambda x: x > 1)
RATE: Range = ("at least 0 and below 1", lambda x: 0 <= x < 1)
SHARE: Range = ("between 0 and 1", lambda x: 0 <= x <= 1)
WORD: Range = ("between 0 and 4294967295", lambda x: 0 <= x < 2**32)
PART: Range = ("above 0 and below 1", lambda x: 0 < x < 1)

_SCHEDULE = {"warmup": AT_LEAST_0, "final": SHARE, "decay": SHARE}
_OPTIMIZER = {
    "learning_rate": ABOVE_0,
    "adam_learning_rate": ABOVE_0,
    "beta": RATE,
    "beta1": RATE,
    "beta2": RATE,
    "epsilon": ABOVE_0,
    "weight_decay": AT_LEAST_0,
    "layer_decay": ("above 0 and at most 1", lambda x: 0 < x <= 1),
}
_ATTENTION = {
    **dict.fromkeys(("soft_cap", "scale", "norm_epsilon"), ABOVE_0),
    **dict.fromkeys(("window", "dilation", "block", "stride", "summary"), AT_LEAST_1),
    **dict.fromkeys(("global_tokens", "global_blocks", "random_blocks"), AT_LEAST_0),
    **dict.fromkeys(("rank", "query_rank", "rotary_dim", "rounds", "top"), AT_LEAST_1),
    **dict.fromkeys(("convolution", "key_dim", "random_features"), AT_LEAST_1),
    "buckets": ("at least 2", lambda x: x >= 2),
    "initial": RATE,
    "seed": WORD,
}
_NETWORK = {
    **dict.fromkeys(("vocabulary", "context", "layers", "decoder_layers", "width"), AT_LEAST_1),
    **dict.fromkeys(("source_vocabulary", "heads", "kv_heads", "head_dim", "feed_forward_width"), AT_LEAST_1),
    **dict.fromkeys(("logit_soft_cap", "norm_epsilon"), ABOVE_0),
    "token_types": AT_LEAST_0,
    "dropout": RATE,
    "attention_dropout": RATE,
}
_SCALING = {"factor": AT_LEAST_1, "context": AT_LEAST_1, "fast": ABOVE_0, "slow": ABOVE_0}
_RANGES: dict[type, dict[str, Range]] = {
    **dict.fromkeys((GPT, BERT, Transformer, Seq2Seq), _NETWORK),
    **dict.fromkeys(typing.get_args(Single), _ATTENTION),
    Interleaved: dict.fromkeys(("firsts", "seconds"), AT_LEAST_1),
    Learned: {"offset": AT_LEAST_0},
    Sinusoidal: {"amplitude": ABOVE_0},
    Rotary: {"base": ABOVE_1, "local_base": ABOVE_1},
    **dict.fromkeys((Interpolation, NTK, YaRN), _SCALING),
    RelativeBias: dict.fromkeys(("buckets", "max_distance"), AT_LEAST_1),
    TextData: {"valid_fraction": PART, "length": AT_LEAST_1, "batch": AT_LEAST_1},
    MaskedText: {
        **dict.fromkeys(("valid_fraction", "rate"), PART),
        **dict.fromkeys(("length", "batch"), AT_LEAST_1),
        **dict.fromkeys(("masked", "random"), SHARE),
    },
    MaskedLM: {"pair_weight": AT_LEAST_0},
    Classifier: {"classes": AT_LEAST_1, "head_dropout": RATE},
    LabelledText: {
        **dict.fromkeys(("classes", "length", "batch"), AT_LEAST_1),
        "valid_fraction": PART,
        "train_fraction": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    },
    AssociativeRecall: {
        **dict.fromkeys(("vocabulary", "length", "pairs", "batch", "valid_batches"), AT_LEAST_1),
        "power": ABOVE_0,
    },
    Induction: dict.fromkeys(
        ("symbols", "length", "questions", "test_rows", "batch", "valid_batches"), AT_LEAST_1
    ),
    ListOperations: {
        **dict.fromkeys(("min_length", "max_length", "train_rows", "valid_rows", "batch"), AT_LEAST_1),
        **dict.fromkeys(("depth", "arguments"), ("at least 2", lambda x: x >= 2)),
        "draw_seed": WORD,
    },
    Alignment: {"window": AT_LEAST_1},
    Bitext: {
        "valid_fraction": PART,
        "ratio": ("at least 1", lambda x: x >= 1),
        "bpe_dropout": RATE,
        **dict.fromkeys(("length", "batch_tokens", "buckets", "rows_multiple"), AT_LEAST_1),
    },
    Translation: {"label_smoothing": RATE},
    LoRA: {"rank": AT_LEAST_1, "alpha": ABOVE_0},
    **dict.fromkeys((AdamW, Lion, Adafactor, Muon), _OPTIMIZER),
    **dict.fromkeys((Cosine, Linear, WarmupStableDecay, ReciprocalSqrt), _SCHEDULE),
    CausalLM: {"z_loss": AT_LEAST_0},
    Evaluation: dict.fromkeys(("every", "batches", "patience"), AT_LEAST_1),
    Checkpointing: dict.fromkeys(("every", "keep_last", "keep_every"), AT_LEAST_1),
    Experiment: {
        **dict.fromkeys(("steps", "accumulate", "log_every"), AT_LEAST_1),
        "samples": AT_LEAST_0,
        "seed": WORD,
        "clip": ABOVE_0,
        "ema": RATE,
    },
}
"""Range of each number, by class; the fields of a class that it does not have play no part."""


def validate(experiment: Experiment, mesh: Mapping[str, int] | None = None) -> None:
    """Checks everything about an experiment that can be known before it is built.

    Args:
      experiment: the description, its types already checked.
      mesh: size of each mesh axis; None: what depends on it is not checked.

    Raises:
      UserError: one line naming the field, its value and the nearest valid choice.
    """
    for problem in _problems(experiment, mesh):
        raise UserError(problem)


def _problems(experiment: Experiment, mesh: Mapping[str, int] | None) -> Iterator[str]:
    if not experiment.name:
        yield "name is empty; it names the run directory, runs/NAME"
    yield from _out_of_range(experiment, "")
    models, datas = LEARNABLE[type(experiment.objective)]
    for name, value, admitted in (("model", experiment.model, models), ("data", experiment.data, datas)):
        if not isinstance(value, admitted):
            choices, objective = " or ".join(map(kind, admitted)), kind(type(experiment.objective))
            yield f"objective {objective!r} needs {name} {choices}, not {kind(type(value))!r}"
            return
    yield from experiment.model.problems()
    yield from experiment.data.problems()
    yield from experiment.objective.problems(experiment.model, experiment.data)
    yield from _packing_problems(experiment)
    if experiment.initial is not None:
        yield from experiment.initial.problems()
    evaluation, checkpointing = experiment.evaluation, experiment.checkpointing
    if evaluation.patience is not None and evaluation.every % checkpointing.every:
        yield (
            "evaluation.patience needs a checkpoint at every evaluation: evaluation.every "
            f"{evaluation.every} is no multiple of checkpointing.every {checkpointing.every}"
        )
    if evaluation.best not in (measured := _measured(experiment)):
        yield (
            f"evaluation.best is {evaluation.best!r}, which this objective's validation does not have; "
            f"choose {' or '.join(map(repr, measured))}"
        )
    if mesh is not None:
        yield from _mesh_problems(experiment, mesh)


def _measured(experiment: Experiment) -> tuple[str, ...]:
    """Returns what validation measures that may say which checkpoint is best."""
    data = experiment.data
    if isinstance(data, LabelledText):
        of_labels = ("accuracy", "f1", "matthews") if data.classes == 2 else ("accuracy",)
        return ("loss", *(("pearson",) if data.task == "score" else of_labels))
    right = isinstance(experiment.objective, (MaskedLM, Recall))
    return ("loss", "accuracy") if right else ("loss",)


def _out_of_range(description: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(description):
        value = getattr(description, field.name)
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, f"{prefix}{field.name}.")
        phrase, holds = _RANGES.get(type(description), {}).get(field.name, ("", lambda _: True))
        if value is not None and not holds(value):
            yield f"{prefix}{field.name} is {value}; it must be {phrase}"


def _packing_problems(experiment: Experiment) -> Iterator[str]:
    attention, data = getattr(experiment.model, "attention", None), experiment.data
    if not isinstance(attention, Mechanism) or not isinstance(data, MaskedText):
        return
    if data.pairs != "none" or not data.packed:
        return
    for mechanism in {type(mechanism): None for mechanism, _ in attention.layers()}:
        if not mechanism.packed:
            yield (
                f"model.attention {kind(mechanism)!r} reads a row as one document, and data.packed true puts "
                "several into one; choose data.packed false"
            )


def _mesh_problems(experiment: Experiment, mesh: Mapping[str, int]) -> Iterator[str]:
    batch = experiment.data.batch
    shards = mesh["data"] * mesh["fsdp"]
    parts = shards * experiment.accumulate
    if batch % parts:
        below, above = batch // parts * parts, -(-batch // parts) * parts
        yield (
            f"data.batch {batch} does not divide into {shards} shards (mesh axes data x fsdp) x "
            f"{experiment.accumulate} micro-batches (accumulate); nearest: "
            + (f"{below} or {above}" if below else f"{above}")
        )
    length = getattr(experiment.data, "length", 0)  # in data of one length, it is split too
    if length % mesh["sequence"]:
        yield (
            f"mesh axis sequence {mesh['sequence']} does not divide data.length {length}; "
            f"{nearest_divisors(length, mesh['sequence'])}"
        )
