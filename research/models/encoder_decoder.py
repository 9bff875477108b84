"""What encoder-decoder models have in common: teacher forcing, and the view that decoding has of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, Key

from research.attention.masks import Tokens


class EncoderDecoder(nn.Module):
    """A network that reads a source, and predicts a target from what it made of it."""

    def __call__(
        self,
        source: Int[Array, "batch source_length"],
        tokens: Int[Array, "batch length"],
        source_place: Tokens | None = None,
        place: Tokens | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length vocabulary"]:
        """Returns the logits, float32, of the token after each of ``tokens``, given the whole source.

        Args:
          source: source tokens.
          tokens: target tokens, the first of them the one that every target begins with.
          source_place: positions and segments of the source; None: 0, 1, 2 … and no padding.
          place: those of the target.
          key: key of the dropout; None: no dropout.
        """
        encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        memory = self.encode(source, source_place, key=encoder_key)
        return self.decode(tokens, memory, place, key=decoder_key)[0]

    def encode(
        self,
        source: Int[Array, "batch source_length"],
        place: Tokens | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Any:
        """Returns what the decoder knows of the source, its memory; arguments as for the call."""
        raise NotImplementedError

    def decode(
        self,
        tokens: Int[Array, "batch length"],
        memory: Any,
        place: Tokens | None = None,
        *,
        cache: Any = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length vocabulary"], Any]:
        """Returns logits, and the decoding state (``cache`` is the one before the tokens) after them."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ModelDecoder:
    """A model as decoding drives it, but for its state (see `research.inference.beam.Decoder`)."""

    model: Any
    """Its description."""

    def module(self) -> EncoderDecoder:
        """Returns the network as decoding needs it."""
        module: EncoderDecoder = self.model.build()
        return module

    def encode(self, params: Any, source: Int[Array, "batch source_length"], place: Tokens) -> Any:
        """Returns the memory of the sources."""
        return self.module().apply({"params": params}, source, place, method="encode")

    def step(
        self, params: Any, tokens: Int[Array, "rows 1"], memory: Any, place: Tokens, cache: Any
    ) -> tuple[Float[Array, "rows vocabulary"], Any]:
        """Returns the logits of the next token, and the state with these tokens."""
        logits, cache = self.module().apply(
            {"params": params}, tokens, memory, place, cache=cache, method="decode"
        )
        return logits[:, -1], cache

    def apart(self, params: Any, cache: Any) -> tuple[Any, Any]:
        """Returns parameters and state as CPUs read them fastest; here as they are."""
        return params, cache
