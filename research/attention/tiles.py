"""The tiles of flash attention: what is computed in one, and which of them there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from research.attention.biases import Bias
from research.attention.block_map import EMPTY, Visits, block_map, visits
from research.attention.dropout import keep
from research.attention.masks import AnyArray, Mask, Tokens
from research.attention.softmax import FLOOR, MASKED

UNROLLED = 8
"""Tiles that are written out one by one, at most; more of them become loops."""
CACHED = 2**21
"""Bytes of a tile's scores on a CPU."""
SHARED = 512
"""Size of blocks from which on XLA computes a tile on more than one core of a CPU."""
ALONE = 1.5
"""How much narrower blocks cost for that."""
NARROW = 16
"""How much narrow blocks cost besides: the time of a pair of tokens is taken as 1 + NARROW / size."""
_Carry = TypeVar("_Carry")


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut into tiles."""

    q_block: int
    """Queries in a tile, at most the queries there are."""
    kv_block: int
    """Keys in a tile, at most the keys there are."""
    rows: int
    """Rows of the batch in a tile; divides the batch."""
    heads: int
    """Key/value heads in a tile; divides their number."""
    dynamic: bool = True
    """Whether blocks are skipped by what positions and segments turn out to be at run time."""


def tiling_of(
    mask: Mask, batch: int, q_len: int, kv_len: int, heads: int, kv_heads: int, *, cpu: bool
) -> Tiling:
    """Returns how to cut the work of a call.

    On one CPU a tile of all its rows and heads stays in the caches, and narrower blocks are taken where the
    mask leaves enough of them empty. Elsewhere (``cpu`` is False: an accelerator, or several
    devices) a tile spans all rows and heads, which the compiler may then have split over devices, and nothing
    is looked up in the tokens.
    """
    if not cpu:
        return Tiling(min(q_len, 512), min(kv_len, 512), batch, kv_heads, dynamic=False)

    def cost(size: int) -> float:
        q_block, kv_block = min(size, q_len), min(size, kv_len)
        visited = int((block_map(mask, q_len, kv_len, q_block, kv_block) != EMPTY).sum())
        alone = 1.0 if size >= SHARED else ALONE
        return visited * q_block * kv_block * (1 + NARROW / size) * alone

    size = min((512, 256, 128, 64), key=cost) if max(q_len, kv_len) > 64 else 64
    q_block, kv_block = min(size, q_len), min(size, kv_len)
    room = max(1, CACHED // (4 * q_block * kv_block * (heads // kv_heads)))
    tile_heads = max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n <= room)
    room = room // kv_heads if tile_heads == kv_heads else 1
    rows = max((n for n in range(1, batch + 1) if batch % n == 0 and n <= room), default=1)
    return Tiling(q_block, kv_block, rows, tile_heads)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is static of a call."""

    mask: Mask
    soft_cap: float | None
    dropout: float
    tiling: Tiling
    known: bool
    """Whether positions are 0, 1, 2 … on both sides."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operands:
    """The arrays of a call."""

    q: Float[Array, "batch kv_heads group q_len head_dim"]
    k: Float[Array, "batch kv_heads kv_len head_dim"]
    v: Float[Array, "batch kv_heads kv_len value_dim"]
    bias: Bias | None
    sink: Float[Array, "kv_heads group"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The arrays that have no gradient."""

    q_tokens: Tokens
    kv_tokens: Tokens
    key: Key[Array, ""] | None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tile of queries lies: its first row, key/value head and query, and its block's number."""

    chunk: Any
    block: Any
    row: Any
    head: Any
    query: Any


class Work:
    """The tiles of a call, and what is computed in them.

    A last block that is shorter than the others is moved back to the full size, over tokens of the one
    before it: their keys are masked there, and their queries' gradients are 0.
    """

    def __init__(self, problem: Problem, operands: Operands, context: Context) -> None:
        self.problem, self.operands, self.context = problem, operands, context
        self.tiling = tiling = problem.tiling
        self.batch, self.kv_heads, self.group, self.q_len, self.head_dim = operands.q.shape
        self.kv_len, self.value_dim = operands.v.shape[2:]
        self.q_tokens, self.kv_tokens = context.q_tokens, context.kv_tokens
        if problem.known:
            self.q_tokens = _in_order(self.q_tokens, self.q_len)
            self.kv_tokens = _in_order(self.kv_tokens, self.kv_len)
        self.visits = visits(
            problem.mask, self.q_tokens, self.kv_tokens, tiling.q_block, tiling.kv_block,
            rows=tiling.rows, dynamic=tiling.dynamic,
        )  # fmt: skip
        self.chunks = self.batch // tiling.rows * (self.kv_heads // tiling.heads)
        self.ragged = self.kv_len % tiling.kv_block != 0
        if self.ragged:
            self.visits = _last_is_partial(self.visits)

    def each_block(self, body: Callable[[Place, _Carry], _Carry], carry: _Carry) -> _Carry:
        """Returns the carry after every block of queries of every chunk of rows and heads."""
        blocks = -(-self.q_len // self.tiling.q_block)
        heads = self.kv_heads // self.tiling.heads

        def place(index: Any) -> Place:
            chunk, block = index // blocks, index % blocks
            query = _least(block * self.tiling.q_block, self.q_len - self.tiling.q_block)
            return Place(
                chunk, block, chunk // heads * self.tiling.rows, chunk % heads * self.tiling.heads, query
            )

        if self.chunks * blocks <= UNROLLED:
            for index in range(self.chunks * blocks):
                carry = body(place(index), carry)
            return carry
        return jax.lax.fori_loop(0, self.chunks * blocks, lambda index, c: body(place(index), c), carry)

    def each_tile(self, place: Place, body: Callable[[Any, bool, _Carry], _Carry], carry: _Carry) -> _Carry:
        """Returns the carry after every block of keys that the block of queries visits."""
        listed = self.visits
        heads = self.kv_heads // self.tiling.heads
        row: Any = place.chunk // heads if listed.count.shape[0] > 1 else 0
        if listed.known and isinstance(place.block, int) and isinstance(row, int):
            full, count = int(listed.full[row, place.block]), int(listed.count[row, place.block])
            if count * self.chunks * listed.count.shape[1] <= UNROLLED:
                for index in range(count):
                    carry = body(int(listed.order[row, place.block, index]), index >= full, carry)
                return carry
        order = jnp.asarray(listed.order)[row, place.block]
        middle, end = (jnp.asarray(x)[row, place.block] for x in (listed.full, listed.count))
        if not (listed.known and not listed.full.any()):
            carry = jax.lax.fori_loop(0, middle, lambda index, c: body(order[index], False, c), carry)
        if not (listed.known and (listed.full == listed.count).all()):
            carry = jax.lax.fori_loop(middle, end, lambda index, c: body(order[index], True, c), carry)
        return carry

    def rows_of(self, place: Place) -> tuple[Array, Array]:
        """Returns the output and the log-sum-exp (FLOOR where there is no key) of queries, float32."""
        q = self.queries(self.operands.q, place)
        shape = q.shape[:2]
        top = jnp.full(shape, FLOOR, jnp.float32)
        total = jnp.zeros(shape, jnp.float32)
        if self.operands.sink is not None:
            sink = jax.lax.dynamic_slice_in_dim(self.operands.sink, place.head, self.tiling.heads)
            sink = jnp.broadcast_to(
                sink[None, :, :, None],
                (self.tiling.rows, *sink.shape, self.tiling.q_block),
            ).reshape(shape)
            top = jnp.maximum(top, sink)
            total = jnp.exp(sink - top)

        def tile(block: Any, masked: bool, carry: Any) -> Any:
            out, top, total = carry
            key = self.key_start(block)
            scores, _, _ = self.scores(q, place, block, key, masked)
            new_top = jnp.maximum(top, scores.max(-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            total = total * shrink + weights.sum(-1)
            if self.problem.dropout:
                weights = self.dropped(weights, place, key)
            v = self.keys(self.operands.v, place, key)
            out = out * shrink[..., None] + _dot("nqk,nkd->nqd", weights.astype(v.dtype), v)
            return out, new_top, total

        out = jnp.zeros((*shape, self.value_dim), jnp.float32)
        out, top, total = self.each_tile(place, tile, (out, top, total))
        out = out / jnp.where(total == 0.0, 1.0, total)[..., None]
        return out, top + jnp.log(jnp.where(total == 0.0, 1.0, total))

    def gradients_of(
        self,
        place: Place,
        d_out: Array,
        flipped: tuple[Array, Array],
        lse: Array,
        delta: Array,
        carry: Any,
    ) -> Any:
        """Returns the gradients with what a tile of queries adds to them.

        Those of keys and values have their last two axes exchanged; ``flipped`` are q and d_out as [rows,
        heads, dim, group, queries].
        """
        q = self.queries(self.operands.q, place)
        q_t, d_out_t = (self.flipped_queries(x, place) for x in flipped)
        lse = self.queries(lse, place)
        # Queries that the block before has done add nothing: their weights are 0.
        lse = jnp.where(self.fresh(place), lse, -MASKED)
        d_out, delta = self.queries(d_out, place), self.queries(delta, place)
        d_q, *rest = carry

        def tile(block: Any, masked: bool, carry: Any) -> Any:
            d_q, d_k, d_v, d_bias = carry
            start = self.key_start(block)
            k, v = self.keys(self.operands.k, place, start), self.keys(self.operands.v, place, start)
            scores, slope, pull = self.scores(q, place, block, start, masked, k=k, gradient=True)
            weights = jnp.exp(scores - lse[..., None])
            d_weights = _dot("nqd,nkd->nqk", d_out, v)
            kept = weights
            if self.problem.dropout:
                kept = self.dropped(weights, place, start)
                d_weights = self.dropped(d_weights, place, start)
            d_scores = weights * (d_weights - delta[..., None])
            if pull is not None:
                (more,) = pull(self.by_head(d_scores))
                d_bias = jax.tree.map(jnp.add, d_bias, more)
            if slope is not None:
                d_scores = d_scores * slope
            d_scores = d_scores.astype(q.dtype)
            d_v = self.add_keys(d_v, _dot("ndq,nqk->ndk", d_out_t, kept.astype(d_out.dtype)), place, start)
            d_k = self.add_keys(d_k, _dot("ndq,nqk->ndk", q_t, d_scores), place, start)
            return d_q + _dot("nqk,nkd->nqd", d_scores, k), d_k, d_v, d_bias

        tile_d_q, *rest = self.each_tile(place, tile, (jnp.zeros(q.shape, jnp.float32), *rest))
        old = self.queries(d_q, place)
        return self.put(d_q, old + tile_d_q, place), *rest

    def scores(
        self,
        q: Array,
        place: Place,
        block: Any,
        start: Any,
        masked: bool,
        *,
        k: Array | None = None,
        gradient: bool = False,
    ) -> tuple[Array, Array | None, Any]:
        """Returns the scores of a tile, [rows * heads, group * queries, keys].

        With ``gradient`` also the slope of the soft cap and the pullback of the bias, where there are such.
        """
        k = self.keys(self.operands.k, place, start) if k is None else k
        scores, slope, pull = _dot("nqd,nkd->nqk", q, k), None, None
        if (cap := self.problem.soft_cap) is not None:
            bent = jnp.tanh(scores / cap)
            scores = cap * bent
            slope = 1.0 - bent * bent if gradient else None
        q_tokens, kv_tokens = self.tokens_of(place, start)
        if self.operands.bias is not None:
            parts, bias_of = split_bias(self.operands.bias)

            def bias(parts: Any) -> Array:
                here = bias_of(parts).rows(place.query, self.tiling.q_block)
                here = here.columns(start, self.tiling.kv_block)
                return jnp.broadcast_to(here(q_tokens, kv_tokens), self.by_head(scores).shape)

            added, pull = jax.vjp(bias, parts) if gradient else (bias(parts), None)
            scores = scores + added.reshape(scores.shape)
        if masked:
            allowed = jnp.asarray(self.problem.mask(q_tokens, kv_tokens))
            if self.ragged:
                fresh = start + jnp.arange(self.tiling.kv_block) >= block * self.tiling.kv_block
                allowed = allowed & fresh[None, None]
            by_head = jnp.where(allowed[:, None], self.by_head(scores), MASKED)
            scores = by_head.reshape(scores.shape)
        return scores, slope, pull

    def dropped(self, x: Array, place: Place, start: Any) -> Array:
        """Returns x with the elements zeroed that the reference engine drops, and the others scaled up."""
        rate, shape = self.problem.dropout, self.by_head(x).shape
        first = (place.row, place.head * self.group, place.query, start)
        whole = (self.batch, self.kv_heads * self.group, self.q_len, self.kv_len)
        kept = keep(self.context.key, rate, whole, start=first, size=shape).reshape(x.shape)  # type: ignore[arg-type]
        return jnp.where(kept, x * (1.0 / (1.0 - rate)), 0.0)

    def fresh(self, place: Place) -> AnyArray:
        """Returns which queries of a tile the block before has not done, [1, group * queries]."""
        if self.q_len % self.tiling.q_block == 0:
            return np.ones((1, 1), bool)
        fresh = place.query + jnp.arange(self.tiling.q_block) >= place.block * self.tiling.q_block
        return jnp.tile(fresh, self.group)[None]

    def key_start(self, block: Any) -> Any:
        """Returns the first key of a block."""
        return _least(block * self.tiling.kv_block, self.kv_len - self.tiling.kv_block)

    def by_head(self, x: Array) -> Array:
        """Returns x as [rows, heads, queries, keys]."""
        return x.reshape(self.tiling.rows, -1, self.tiling.q_block, x.shape[-1])

    def queries(self, x: Array, place: Place) -> Array:
        """Returns a tile of x as [rows * heads, group * queries, …]."""
        start = (place.row, place.head, 0, place.query, 0)[: x.ndim]
        size = (self.tiling.rows, self.tiling.heads, self.group, self.tiling.q_block, *x.shape[4:])
        tile = jax.lax.dynamic_slice(x, start, size)
        return tile.reshape(size[0] * size[1], size[2] * size[3], *size[4:])

    def flipped_queries(self, x: Array, place: Place) -> Array:
        """Returns a tile of x, [batch, kv_heads, dim, …], as [rows * heads, dim, group * queries]."""
        size = (self.tiling.rows, self.tiling.heads, *x.shape[2:4], self.tiling.q_block)
        tile = jax.lax.dynamic_slice(x, (place.row, place.head, 0, 0, place.query), size)
        return tile.reshape(size[0] * size[1], size[2], size[3] * size[4])

    def put(self, x: Array, tile: Array, place: Place) -> Array:
        """Returns x with the tile of queries replaced."""
        size = (self.tiling.rows, self.tiling.heads, self.group, self.tiling.q_block, *x.shape[4:])
        start = (place.row, place.head, 0, place.query, 0)[: x.ndim]
        return jax.lax.dynamic_update_slice(x, tile.reshape(size), start)

    def keys(self, x: Array, place: Place, start: Any) -> Array:
        """Returns a tile of x as [rows * heads, keys, dim]."""
        size = (self.tiling.rows, self.tiling.heads, self.tiling.kv_block, x.shape[-1])
        return jax.lax.dynamic_slice(x, (place.row, place.head, start, 0), size).reshape(-1, *size[2:])

    def add_keys(self, x: Array, tile: Array, place: Place, start: Any) -> Array:
        """Returns x, [batch, kv_heads, dim, kv_len], with the tile added to its keys."""
        at = (place.row, place.head, 0, start)
        size = (self.tiling.rows, self.tiling.heads, x.shape[2], self.tiling.kv_block)
        new = jax.lax.dynamic_slice(x, at, size) + tile.reshape(size)
        return jax.lax.dynamic_update_slice(x, new, at)

    def tokens_of(self, place: Place, start: Any) -> tuple[Tokens, Tokens]:
        """Returns the tokens of a tile's queries and keys."""

        def cut(tokens: Tokens, first: Any, size: int) -> Tokens:
            def part(x: AnyArray) -> Array:
                rows = (1, 0) if x.shape[0] == 1 else (self.tiling.rows, place.row)
                return jax.lax.dynamic_slice(jnp.asarray(x), (rows[1], first), (rows[0], size))

            segments = None if tokens.segments is None else part(tokens.segments)
            return Tokens(part(tokens.positions), segments)

        return (
            cut(self.q_tokens, place.query, self.tiling.q_block),
            cut(self.kv_tokens, start, self.tiling.kv_block),
        )


def _dot(equation: str, x: Array, y: Array) -> Array:
    """Returns the batched product, accumulated in float32."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _least(x: Any, y: int) -> Any:
    return min(x, y) if isinstance(x, int) else jnp.minimum(x, y)


def _in_order(tokens: Tokens, length: int) -> Tokens:
    """Returns the tokens at positions 0, 1, 2 …, known when the program is built."""
    return Tokens(np.arange(length, dtype=np.int32)[None], tokens.segments)


def _last_is_partial(listed: Visits) -> Visits:
    """Returns visits of which the last block of keys, shorter than the others, never counts as full."""
    last = listed.order.shape[-1] - 1
    places = np.arange(listed.order.shape[-1])[None, None]
    lost = ((listed.order == last) & (places < listed.full[..., None])).any(-1)
    return dataclasses.replace(listed, full=listed.full - lost.astype(np.int32))


def split_bias(bias: Bias | None) -> tuple[Any, Callable[[Any], Bias]]:
    """Returns the bias's floating-point arrays, and the function that puts such into the bias."""
    leaves, tree = jax.tree.flatten(bias)
    places = [i for i, x in enumerate(leaves) if floats(x)]

    def join(parts: list[Array]) -> Bias:
        new = list(leaves)
        for place, part in zip(places, parts, strict=True):
            new[place] = part
        return jax.tree.unflatten(tree, new)

    return [leaves[i] for i in places], join


def floats(x: Array) -> bool:
    """Returns whether x has a gradient."""
    return jnp.issubdtype(x.dtype, jnp.floating)
