"""Scoring a run on minimal pairs, be it of a masked or of a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.attention.masks import Tokens
from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.errors import UserError
from research.evaluation.minimal_pairs import (
    Pair,
    Score,
    accuracies,
    log_likelihoods,
    pseudo_log_likelihoods,
    published,
    read_pairs,
)
from research.models.bert import BERT
from research.models.gpt import GPT
from research.training.trained import Trained


def evaluate(trained: Trained, path: str, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Returns accuracies on minimal pairs: by paradigm, by phenomenon, and their mean (see ``accuracies``).

    Args:
      trained: a run of a masked or causal language model.
      path: file or directory of pairs.
      report: receives messages.

    Raises:
      UserError: the run is of no language model, the pairs cannot be read, or the sentences of one differ
        only behind what the model reads.
    """
    data = trained.experiment.data
    if not isinstance(data, (TextData, MaskedText)):
        raise UserError(f"{trained.directory} is not a run of a language model")
    pairs = read_pairs(path)
    sentences = list(dict.fromkeys(text for pair in pairs for text in (pair.good, pair.bad)))
    report(f"scoring {len(pairs):,} pairs: {len(sentences):,} different sentences")
    sequences, cut = _sequences(trained, sentences)
    if truncated := sum(cut):
        # The tokens of what was cut, the text of what was not: that says what sentences differ in.
        read = (str(ids) if was else text for text, ids, was in zip(sentences, sequences, cut, strict=True))
        _check_differ(pairs, dict(zip(sentences, read, strict=True)), trained.experiment.model.context)
        report(f"{truncated:,} sentences are longer than the model's context, and cut")
    scores = _scores(trained, sequences, report)
    of = dict(zip(sentences, scores.tolist(), strict=True))
    good, bad = (np.array([of[getattr(pair, side)] for pair in pairs]) for side in ("good", "bad"))
    return {
        "run": str(trained.directory),
        "step": trained.step,
        "pairs": len(pairs),
        "truncated": truncated,
        **accuracies(pairs, good, bad),
        "published": published(path, pairs),
    }


def _check_differ(pairs: Sequence[Pair], read: Mapping[str, str], context: int) -> None:
    """Raises UserError if the sentences of a pair differ only behind what is read of them."""
    for pair in pairs:
        if pair.good != pair.bad and read[pair.good] == read[pair.bad]:
            raise UserError(
                f"{pair.paradigm}: {pair.good!r} and {pair.bad!r} differ only behind the {context} tokens "
                "that the model reads; leave the pair out"
            )


def _sequences(trained: Trained, sentences: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
    """Returns the tokens of sentences as the model expects them, and which had to be cut."""
    tokenizer, model = trained.tokenizer, trained.experiment.model
    encoded = tokenizer.encode_batch(sentences)
    if isinstance(model, BERT):
        room = model.context - 2
        sequences = [[tokenizer.first, *ids[:room], tokenizer.separator] for ids in encoded]
    else:
        room = model.context - 1
        sequences = [[tokenizer.end_of_text, *ids[:room]] for ids in encoded]
    return sequences, [len(ids) > room for ids in encoded]


def _scores(
    trained: Trained, sequences: Sequence[Sequence[int]], report: Callable[[str], None]
) -> np.ndarray:
    if isinstance(trained.experiment.model, BERT):
        return pseudo_log_likelihoods(masked_score(trained), sequences, report)
    return log_likelihoods(causal_score(trained), sequences, report)


def masked_score(trained: Trained) -> Score:
    """Returns log p(token at a place | the rest of the row) of a BERT run."""
    model, mask = trained.experiment.model, trained.tokenizer.mask
    assert isinstance(model, BERT)
    apply = model.build().apply

    @jax.jit
    def score(
        params: Any,
        tokens: Int[Array, "rows width"],
        lengths: Int[Array, " rows"],
        place: Int[Array, " rows"],
    ) -> Float[Array, " rows"]:
        at = place[:, None]
        targets = jnp.take_along_axis(tokens, at, axis=1)
        hidden = jnp.where(jnp.arange(tokens.shape[1])[None] == at, mask, tokens)
        where = Tokens.of_lengths(lengths, tokens.shape[1])
        logits, _ = apply({"params": params}, hidden, where, None, at)
        return jnp.take_along_axis(jax.nn.log_softmax(logits[:, 0]), targets, axis=1)[:, 0]

    return lambda tokens, lengths, place: score(trained.params, tokens, lengths, place)


def causal_score(trained: Trained) -> Score:
    """Returns log p(row after its first token) of a GPT run."""
    model = trained.experiment.model
    assert isinstance(model, GPT)
    apply = model.build().apply

    @jax.jit
    def score(
        params: Any, tokens: Int[Array, "rows width"], lengths: Int[Array, " rows"]
    ) -> Float[Array, " rows"]:
        where = Tokens.of_lengths(lengths, tokens.shape[1])
        (nats, _), _ = apply({"params": params}, tokens, where, targets=jnp.roll(tokens, -1, axis=1))
        predicted = jnp.arange(tokens.shape[1])[None] < lengths[:, None] - 1
        return -jnp.where(predicted, nats, 0.0).sum(1)

    return lambda tokens, lengths, place: score(trained.params, tokens, lengths)
