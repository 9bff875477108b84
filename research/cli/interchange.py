"""Commands that take weights in and out, compare them and average them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from research.errors import UserError
from research.training.progress import say
from research.training.run_directory import on_disk


@dataclasses.dataclass(frozen=True)
class Import:
    """Makes a run of a checkpoint in the format of Hugging Face transformers (config.json, safetensors,
    tokenizer.json), from a directory or by its id on the hub: GPT-2, Llama, Qwen3, BERT, RoBERTa, ModernBERT,
    Marian or T5."""

    out: str | None = None
    """Run directory to make."""
    allow_pickle: bool = False
    """Read pytorch_model.bin where there is no safetensors file: a pickle can run any code; PyTorch reads it
    with everything but tensors forbidden."""
    json: bool = False
    """Print what was read as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a run as a directory that Hugging Face transformers loads."""

    dtype: str | None = None
    """Of the tensors: float32, bfloat16 or float16; default: that of the import the run came from, or
    float32. int8 makes a run of Headway's instead, to sample from: the blocks' matrices as 8-bit integers,
    with a scale for each output."""
    checkpoint: str = "best"
    """Checkpoint to write: best (on the validation data), newest, or a step."""
    json: bool = False
    """Print what was written as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Diff:
    """Says in what two runs differ: fields of their descriptions, and weights."""

    checkpoint: str = "best"
    """Checkpoint of each to compare: best (on the validation data), newest, or a step."""
    json: bool = False
    """Print the differences as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Average:
    """Makes a run whose parameters are the mean of a run's last checkpoints."""

    out: str | None = None
    """Run directory to make."""
    last: int = 5
    """Checkpoints to average, the newest ones."""
    json: bool = False
    """Print what was averaged as one JSON object."""


def import_(source: str, options: Import, overrides: Mapping[str, str]) -> None:
    """Makes a run directory of another tool's checkpoint."""
    del overrides
    if options.out is None:
        raise UserError("import: needs --out RUN, the run directory to make")

    from research.interchange.hub import located
    from research.interchange.runs import import_run
    from research.models.bert import BERT
    from research.models.transformer import Transformer
    from research.training.description import load_experiment

    pickle = options.allow_pickle
    directory = located(source, say, allow_pickle=pickle)
    found = import_run(directory, on_disk(options.out), say, allow_pickle=pickle)
    if options.json:
        print(json.dumps(found))
    else:
        try_it = {BERT: "fill {} TEXT", Transformer: "translate {} < SOURCE > TARGET"}
        model = type(load_experiment(options.out).model)
        print(
            f"{found['parameters']:,} parameters of {source} ({found['model_type']}, {found['dtype']}) "
            f"are in {options.out}\n"
            f"next: headway {try_it.get(model, 'sample {} --prompt TEXT').format(options.out)}"
        )


def export(run: str, directory: str, options: Export, overrides: Mapping[str, str]) -> None:
    """Writes a run for other tools."""
    del overrides
    if options.dtype not in (None, "float32", "bfloat16", "float16", "int8"):
        raise UserError(f"--dtype {options.dtype}: float32, bfloat16, float16 or int8")

    from research.interchange.eight_bit import quantize_run
    from research.interchange.export import export_run
    from research.training.trained import load

    if options.dtype == "int8":
        made = quantize_run(load(run, options.checkpoint), on_disk(directory))
        print(json.dumps(made) if options.json else f"{run} with 8-bit weights is in {directory}")
        return
    found = export_run(load(run, options.checkpoint), on_disk(directory), options.dtype, say)
    if options.json:
        print(json.dumps(found))
    else:
        files = ", ".join(found["files"])
        print(f"{found['model_type']} checkpoint, {found['dtype']}, in {directory}: {files}")


def diff(one: str, other: str, options: Diff, overrides: Mapping[str, str]) -> None:
    """Prints the differences of two runs."""
    del overrides
    from research.interchange.differences import differences, text
    from research.training.trained import load

    found = differences(*(load(run, options.checkpoint) for run in (one, other)))
    print(json.dumps(found) if options.json else text(found))


def average(run: str, options: Average, overrides: Mapping[str, str]) -> None:
    """Makes a run of averaged checkpoints."""
    del overrides
    if options.out is None:
        raise UserError("average: needs --out RUN, the run directory to make")
    if options.last < 1:
        raise UserError(f"--last {options.last}: at least 1")

    from research.interchange.averages import average_run

    found = average_run(run, on_disk(options.out), options.last)
    if options.json:
        print(json.dumps(found))
    else:
        steps = ", ".join(map(str, found["steps"]))
        print(f"the mean of the checkpoints at {steps} of {run} is in {options.out}")
