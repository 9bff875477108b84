"""A BERT with a head for sentences, pairs of sentences, or tags of words (Devlin et al., 2019, section 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.dropout import dropout
from research.attention.masks import Tokens
from research.models.bert import BERT, BERTModule
from research.modules.linear import Linear


@dataclasses.dataclass(frozen=True)
class Classifier:
    """An encoder with a fresh head; its encoder's parameters may be those of a pre-trained run."""

    bert: BERT = dataclasses.field(default_factory=BERT)
    """The encoder."""
    classes: int = 2
    """Outputs: labels to choose from; 1 for a score."""
    per_token: bool = False
    """Whether every token is classified (tagging), not the row as a whole."""
    pooling: Literal["first", "mean"] = "first"
    """What stands for a row: its first token, through the pooler, or the mean over its tokens."""
    head_dropout: float = 0.1
    """Dropout rate before the head."""

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.bert.vocabulary

    @property
    def context(self) -> int:
        """Longest row, in tokens."""
        return self.bert.context

    @property
    def dropout(self) -> float:
        """The highest dropout rate."""
        return max(self.bert.dropout, self.head_dropout)

    def build(self) -> ClassifierModule:
        """Returns the Flax module."""
        return ClassifierModule(self)

    def training_flops(self, shapes: Mapping[str, tuple[int, ...]], *, visible: bool) -> float:
        """Returns the FLOPs of a training step on a batch with arrays of these shapes."""
        batch, length = shapes["tokens"]
        body = batch * length * self.bert.body_flops_per_token(length, visible=visible)
        classified = batch * (length if self.per_token else 1)
        pooler = 0 if self.per_token or self.pooling == "mean" else self.bert.width
        return body + 6.0 * classified * self.bert.width * (pooler + self.classes)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        for problem in self.bert.problems():
            yield problem.replace("model.", "model.bert.")


class ClassifierModule(nn.Module):
    """The network a ``Classifier`` describes; the encoder's parameters are below "bert"."""

    classifier: Classifier

    def setup(self) -> None:
        """Names the parts."""
        width = self.classifier.bert.width
        self.bert = BERTModule(self.classifier.bert)
        if self._own_pooler():
            self.pooler = Linear((width,), (width,), True)
        self.class_head = Linear((width,), (self.classifier.classes,), True)

    def _own_pooler(self) -> bool:
        classifier = self.classifier
        return not (classifier.per_token or classifier.pooling == "mean" or classifier.bert.pooler)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        place: Tokens,
        types: Int[Array, "batch length"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *length classes"]:
        """Returns a logit per class, float32: [batch, classes], or [batch, length, classes] per token.

        Args:
          tokens: token ids.
          place: positions and segments of the tokens; segment 0 is padding.
          types: which sentence of a pair each token is of.
          key: key of the dropout; None: no dropout.
        """
        classifier = self.classifier
        body_key, head_key = (None, None) if key is None else jax.random.split(key)
        x = self.bert.encode(tokens, place, types, key=body_key)
        if not classifier.per_token:
            x = self._pooled(x, place)
        x = dropout(x, classifier.head_dropout, head_key)
        return self.class_head(x).astype(jnp.float32)

    def _pooled(self, x: Float[Array, "batch length width"], place: Tokens) -> Float[Array, "batch width"]:
        if self.classifier.pooling == "mean":
            assert place.segments is not None
            real = (place.segments != 0)[..., None]
            count = jnp.maximum(real.sum(1), 1).astype(x.dtype)
            return jnp.where(real, x, jnp.zeros((), x.dtype)).sum(1) / jnp.broadcast_to(count, x[:, 0].shape)
        if self._own_pooler():
            return jnp.tanh(self.pooler(x[:, 0]))
        return self.bert.pool(x[:, 0])
