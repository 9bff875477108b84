"""Using what a run has learned: loading it, sampling from it, measuring it on text."""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from research.data.cache import build_once, cache_directory, content_hash
from research.data.files import TextFiles
from research.data.packing import valid_batches
from research.data.stream import StreamWriter, TokenStream
from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.sampling import Apply, Decoding, sample
from research.models.gpt import GPT
from research.scale.mesh import make_mesh
from research.training.checkpoint import restore
from research.training.description import load_experiment
from research.training.experiment import Experiment, Sharding
from research.training.program import Functions, evaluation, functions, place_rows
from research.training.run_directory import RunDirectory, open_run
from research.training.sharding import BATCH
from research.training.state import State


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, ready to use."""

    directory: RunDirectory
    experiment: Experiment
    step: int
    """Steps that the checkpoint was trained for."""
    tokenizer: Tokenizer
    functions: Functions
    params: Any
    """Parameters to evaluate and sample with: their moving average if the run keeps one."""


def load(path: str | Path, checkpoint: str = "best") -> Trained:
    """Returns a run's checkpoint ("best", "newest" or a step), on the devices that are here.

    Raises:
      UserError: no run directory, no such checkpoint, or one that is damaged.
    """
    directory = open_run(path)
    experiment = load_experiment(directory.experiment)
    step = directory.checkpoint_step(checkpoint)
    parts = _functions_here(experiment)
    name = "params" if experiment.ema is None else "average"
    restored = restore(directory, {name: getattr(parts.abstract_state, name)}, step)
    tokenizer = Tokenizer.load(directory.tokenizer)
    return Trained(directory, experiment, step, tokenizer, parts, restored.state[name])


def _functions_here(experiment: Experiment) -> Functions:
    """Returns the functions on the devices that are here (as many as divide the batch)."""
    rows = experiment.data.batch // experiment.accumulate
    mesh = make_mesh(devices=jax.devices()[: math.gcd(len(jax.devices()), rows)])
    try:
        return functions(dataclasses.replace(experiment, sharding=Sharding("fsdp")), mesh)
    except UserError:  # a width that does not divide
        return functions(dataclasses.replace(experiment, sharding=Sharding("replicated")), mesh)


def evaluate(
    trained: Trained, data: TextData, *, whole: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    """Returns how well a checkpoint predicts text: nats per token, perplexity, bits per byte, and the sizes.

    Args:
      trained: the checkpoint.
      data: the text.
      whole: measure all of the files that ``data`` names, and not only the part that it holds out.
      report: receives messages.
    """
    if whole:
        stream = _all_of(data, trained.tokenizer)
    else:
        vocabulary = trained.experiment.model.vocabulary
        stream = data.prepare(vocabulary=vocabulary, tokenizer=trained.tokenizer, report=report).valid
    found = whole_validation(trained.experiment, trained.functions, stream, trained.params)
    return {
        "run": str(trained.directory.path),
        "step": trained.step,
        "loss": found["valid/loss"],
        "perplexity": math.exp(found["valid/loss"]),
        "bits_per_byte": found["valid/bits_per_byte"],
        "tokens": len(stream),
        "bytes": stream.bytes,
    }


def _all_of(data: TextData, tokenizer: Tokenizer) -> TokenStream:
    """Returns the tokens of all the files that ``data`` names; they are cached."""
    source = TextFiles(str(data.path), data.field)

    def build(directory: Path) -> None:
        with StreamWriter(directory / "text", tokenizer) as writer:
            for document in source.documents():
                pieces = enumerate(tokenizer.pieces(document["text"]))
                writer.write([(piece, number == 0) for number, piece in pieces])

    key = content_hash("all", source.fingerprint(), tokenizer.to_json())
    return TokenStream.open(build_once(cache_directory() / "tokens" / key, build) / "text")


def whole_validation(
    experiment: Experiment, parts: Functions, stream: TokenStream, params: Any
) -> dict[str, float]:
    """Returns the same metrics as validation during training, over every token of a stream."""
    data = experiment.data
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = valid_batches(stream, length=data.length, batch=data.batch, **share)
    place = functools.partial(place_rows, NamedSharding(parts.mesh, BATCH))
    state = State(jnp.zeros((), jnp.int32), params, None, None, jnp.ones((), bool))
    return evaluation(parts.loss, batches, stream, place)(state)


def continuations(
    model: GPT,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    tokens: int | None = None,
    how: Decoding | None = None,
    seed: int = 0,
) -> list[str]:
    """Returns each prompt with its continuation; an empty prompt begins a new document.

    Args:
      model: the network's description.
      params: its parameters.
      tokenizer: the run's tokenizer.
      prompts: any text.
      tokens: most tokens to draw for each; default: 200, or half of the model's context.
      how: how tokens are chosen; default: temperature 1.
      seed: decides the draw.

    Raises:
      UserError: a prompt with characters that the tokenizer lacks, or more tokens than the context holds.
    """
    texts = [tokenizer.encode(prompt) for prompt in prompts]
    drawn = sample(
        cast(Apply, model.build().apply),
        params,
        model.empty_cache,
        [[tokenizer.end_of_text, *ids] for ids in texts],
        context=model.context,
        tokens=min(200, max(model.context // 2, 1)) if tokens is None else tokens,
        how=how,
        stop=(tokenizer.end_of_text,),
        seed=seed,
    )
    return [tokenizer.decode([*ids, *more]) for ids, more in zip(texts, drawn, strict=True)]


def is_python(text: str) -> bool:
    """Returns whether the whole lines of ``text`` parse as Python with at least one statement."""
    whole = text[: text.rfind("\n") + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in strings, say
        try:
            return bool(ast.parse(whole).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
