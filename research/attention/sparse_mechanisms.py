"""Sparse softmax attention as descriptions: a mask each, on the engines of softmax attention."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from research.attention.cache import RecentKeyValues
from research.attention.masks import Mask, Window
from research.attention.mechanisms import Geometry, Softmax, window_sides
from research.attention.positions import Positions
from research.attention.sparse_masks import BlockMask, DilatedWindow, Fixed, Global, RandomBlocks, Strided


@dataclasses.dataclass(frozen=True)
class Longformer(Softmax):
    """A window, dilated if asked for, and global tokens (Beltagy et al., 2020, section 3.1).

    Every head has the same dilation, the global tokens are the first of each document, and their attention
    shares the projections of the others. In a decoder these are the "sinks" of Xiao et al. (2023). Decoding
    keeps the global tokens and the reach of the window.
    """

    cross: ClassVar[bool] = False

    window: int = 128
    """Tokens of the window, the token itself included: those before it, or in an encoder both sides."""
    dilation: int = 1
    """Distance between neighbours in the window."""
    global_tokens: int = 1
    """First tokens of a document, which see all and are seen by all."""

    def pattern(self, geometry: Geometry, *, causal: bool) -> Mask:
        """Returns the window or the global tokens."""
        del geometry
        sides = window_sides(self.window, causal=causal)
        near = Window(*sides) if self.dilation == 1 else DilatedWindow(*sides, self.dilation)
        return near | Global(self.global_tokens) if self.global_tokens else near

    def visible_keys(self, geometry: Geometry, length: int, *, causal: bool) -> float:
        """Returns the window, less what the ends cut off, and the global tokens outside it."""
        del geometry
        before, after = window_sides(self.window, causal=causal)
        row, first = np.arange(length), min(self.global_tokens, length)
        past = np.minimum(before, np.maximum(row - first, 0) // self.dilation)
        future = np.minimum(after, (length - 1 - row) // self.dilation)
        everything = row + 1 if causal else np.full_like(row, length)
        return float(np.where(row < first, everything, first + past + 1 + future).mean())

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """Returns room for the keys and values of the global tokens and the latest."""
        first = min(self.global_tokens, slots)
        recent = min((self.window - 1) * self.dilation + 1, max(slots - first, 1))
        return RecentKeyValues.empty(batch, first, recent, geometry.kv_heads, geometry.head_dim, dtype)


@dataclasses.dataclass(frozen=True)
class BigBird(Softmax):
    """Blocks of tokens: a window of them, global ones and random ones (Zaheer et al., 2020, section 2, ITC).

    Random blocks are drawn once for a seed, the same for all heads and layers, from all blocks of the model's
    context (in a decoder, which the paper has not, from those up to the token's own); some may lie in the
    window. Positions count from the beginning of each document.
    """

    cross: ClassVar[bool] = False

    block: int = 64
    """Tokens in a block."""
    window: int = 3
    """Blocks of the window, the token's own included: those before it, or in an encoder both sides."""
    global_blocks: int = 2
    """First blocks of a document, which see all and are seen by all."""
    random_blocks: int = 3
    """Random blocks that a token sees."""
    seed: int = 0
    """Seed of the random blocks."""

    def pattern(self, geometry: Geometry, *, causal: bool) -> Mask:
        """Returns the union of the three kinds of blocks."""
        return functools.reduce(operator.or_, self._masks(geometry, causal=causal))

    def _masks(self, geometry: Geometry, *, causal: bool) -> list[BlockMask | Global | RandomBlocks]:
        blocks = -(-geometry.context // self.block)
        before, after = window_sides(self.window, causal=causal)
        rows = (range(max(row - before, 0), min(row + after + 1, blocks)) for row in range(blocks))
        masks: list[BlockMask | Global | RandomBlocks] = [BlockMask(self.block, tuple(map(tuple, rows)))]
        if self.global_blocks:
            masks.append(Global(self.global_blocks * self.block))
        if self.random_blocks:
            masks.append(RandomBlocks(self.block, self.random_blocks, geometry.context, self.seed, causal))
        return masks

    def visible_keys(self, geometry: Geometry, length: int, *, causal: bool) -> float:
        """Returns the mean over tokens of the tokens in the blocks that they see."""
        blocks = -(-length // self.block)
        seen: Bool[np.ndarray, "blocks blocks"] = np.zeros((blocks, blocks), bool)
        seen[: self.global_blocks], seen[:, : self.global_blocks] = True, True
        for mask in self._masks(geometry, causal=causal):
            if not isinstance(mask, Global):
                table = mask.table[:blocks, :blocks]
                seen[: table.shape[0], : table.shape[1]] |= table
        sizes = np.full(blocks, self.block, np.int64)
        sizes[-1] = length - (blocks - 1) * self.block
        pairs = np.outer(sizes, sizes)
        if causal:  # of the token's own block, which is always seen, the part up to it
            pairs = np.tril(pairs, -1) + np.diag(sizes * (sizes + 1) // 2)
        return float((pairs * seen).sum() / length)


@dataclasses.dataclass(frozen=True)
class SparseTransformer(Softmax):
    """Strided or fixed factors of causal attention, both in every head (Child et al., 2019, section 4.2-4.3).

    The union of the two factors is what the paper calls a merged head.
    """

    encoder: ClassVar[bool] = False
    cross: ClassVar[bool] = False

    factors: Literal["strided", "fixed"] = "strided"
    """"strided": the latest ``stride`` tokens, and every ``stride``-th before; "fixed": the token's own block
    of ``stride``, and the last ``summary`` tokens of every block before."""
    stride: int = 64
    """Tokens in a stride or block; the square root of the length makes both factors equal."""
    summary: int = 8
    """Tokens at the end of a block that later ones see ("fixed" only)."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields that its patterns are causal, and a summary longer than its block."""
        yield from super().problems(geometry, positions, causal=causal)
        if not causal:
            yield (
                "model.attention 'sparse-transformer' has causal patterns only; in an encoder choose "
                "'longformer' or 'big-bird'"
            )
        if self.factors == "fixed" and self.summary > self.stride:
            yield (
                f"model.attention.summary {self.summary} is more than the model.attention.stride "
                f"{self.stride} tokens of a block"
            )

    def pattern(self, geometry: Geometry, *, causal: bool) -> Mask:
        """Returns the union of both factors."""
        del geometry, causal
        return Strided(self.stride) if self.factors == "strided" else Fixed(self.stride, self.summary)

    def visible_keys(self, geometry: Geometry, length: int, *, causal: bool) -> float:
        """Returns the mean over tokens of both factors' tokens, each counted once."""
        del geometry, causal
        row = np.arange(length)
        if self.factors == "strided":
            return float((np.minimum(row + 1, self.stride) + row // self.stride).mean())
        return float((row % self.stride + 1 + row // self.stride * self.summary).mean())
