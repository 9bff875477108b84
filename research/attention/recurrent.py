"""Linear attention with a matrix state: one chunked engine for every decay, additive or delta rule.

The state S of a head is a matrix [key_dim, value_dim] that a token first decays, then writes to, then reads:

    additive:  S <- diag(a_t) S,  S <- S + k_t v_t^T,                                  o_t = S^T q_t
    delta:     S <- diag(a_t) S,  S <- S + beta_t k_t (v_t - S^T k_t)^T,               o_t = S^T q_t
    removal:   S <- diag(a_t) S,  S <- S + k_t v_t^T - e_t (S^T r_t)^T,                o_t = S^T q_t

The sequence is cut into chunks. What a chunk does to the state is affine, S <- transition S + update, and so
is what it reads: all chunks are summarised at once by matrix products, one short scan carries the state from
chunk to chunk, and one more product reads it (Hua et al., 2022; Sun et al., 2023; Yang et al., 2023, 2024;
Dao & Gu, 2024). Time and memory are linear in length, the gradient's too; a chunk of one token is the
recurrence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from research.attention.decayed_products import assembled, decayed_products, scaled
from research.attention.engines import blank
from research.attention.masks import Tokens

CHUNK = 64
"""Tokens in a chunk."""

Removal = tuple[Float[Array, "batch length heads key_dim"], Float[Array, "batch length heads key_dim"]]
"""What a token reads of the decayed state (r_t), and where it takes that away (e_t)."""
Summary = Callable[..., tuple[Array, Array, Array | None, Array]]
"""From what is cut into chunks to every chunk's local, read, transition and update."""


def recurrent(
    q: Float[Array, "batch length heads key_dim"],
    k: Float[Array, "batch length heads key_dim"],
    v: Float[Array, "batch length heads value_dim"],
    *,
    log_decay: Float[Array, "*decay"] | None = None,
    strength: Float[Array, "batch length heads"] | None = None,
    removal: Removal | None = None,
    tokens: Tokens | None = None,
    state: Float[Array, "batch heads key_dim value_dim"] | None = None,
    itself: bool = True,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "batch length heads value_dim"], Float[Array, "batch heads key_dim value_dim"]]:
    """Returns what every token reads, dtype of v, and the state after the last token, float32.

    Args:
      q: queries, dtype of v.
      k: keys, dtype of v.
      v: values.
      log_decay: log a_t, at most 0 (-inf forgets everything): [heads], the same for every token; [batch,
        length, heads]; or [batch, length, heads, key_dim]; None: nothing is forgotten.
      strength: beta_t of the delta rule; None: additive, or with a removal.
      removal: r_t and e_t, dtype of v, where what is removed is read by another key than the one written;
        (k, beta k), with keys beta k, is the delta rule. None: none.
      tokens: positions and segments; None: one document without padding.
      state: state before the first token; None: 0.
      itself: whether a token reads what it writes itself (False: additive only).
      chunk: tokens in a chunk, a power of two; what it is changes rounding only.

    A token whose segment differs from that of the real token before it starts a document, with a state of 0;
    the first document of a row continues ``state``. Tokens of segment 0, or at position ABSENT, are padding:
    they may hold NaN, change nothing, and read 0. States and sums are float32. No exponential is ever taken
    of a positive number: decay may be as strong as it likes. A vector decay can be differentiated once, in
    reverse mode; everything else any number of times, in both.

    Raises:
      ValueError: ``chunk`` is no power of two, a token must not read itself under the delta rule, or both
        a strength and a removal are given.
    """
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunks of {chunk} tokens: a power of two")
    if not (strength is None and removal is None) and not itself:
        raise ValueError("under the delta rule a token reads what it writes")
    if strength is not None and removal is not None:
        raise ValueError(
            "a strength or a removal, not both: the delta rule is the removal of what its key reads"
        )
    batch, length, heads, _ = q.shape
    if log_decay is not None:
        log_decay = log_decay.astype(jnp.float32)
        shape = (1, 1, heads, 1) if log_decay.ndim == 1 else (*log_decay.shape[:3], -1)
        log_decay = log_decay.reshape(shape)
    # What the rule of the update has beside keys and values, and what it makes of a chunk.
    rule: tuple[Array, ...] = ()
    summary: Summary = functools.partial(_additive, itself=itself)
    if strength is not None:
        rule, summary = (strength.astype(jnp.float32)[..., None],), _delta
    elif removal is not None:
        rule, summary = removal, _removal
    if tokens is not None:
        q, k, v, log_decay, rule = _within_documents(tokens, q, k, v, log_decay, rule)
    chunk = min(chunk, 1 << (length - 1).bit_length())
    cut = functools.partial(_cut, length=length, chunk=chunk)
    summarise = jax.checkpoint(summary)
    local, read, transition, update = summarise(*(cut(x) for x in (q, k, v, log_decay, *rule)))
    first = state
    if first is None:
        first = jnp.zeros((batch, heads, k.shape[-1], v.shape[-1]), jnp.float32)

    def carry(state: Array, step: tuple[Array | None, Array]) -> tuple[Array, Array]:
        transition, update = step
        kept = state
        if rule:  # tokens change what they read: the transition is a matrix
            assert transition is not None
            kept = _product(transition, state)
        elif transition is not None:
            kept = state * transition
        return kept + update, state

    chunks = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (transition, update))
    last, states = jax.lax.scan(carry, first, chunks)
    out = local + _dot("bhnik,bhnkv->bhniv", read, jnp.moveaxis(states, 0, 2).astype(read.dtype))
    out = out.reshape(batch, heads, -1, v.shape[-1])[:, :, :length]
    return out.swapaxes(1, 2).astype(v.dtype), last


def both_ways(
    q: Float[Array, "batch length heads key_dim"],
    k: Float[Array, "batch length heads key_dim"],
    v: Float[Array, "batch length heads value_dim"],
    *,
    log_decay: Float[Array, "*decay"] | None = None,
    strength: Float[Array, "batch length heads"] | None = None,
    removal: Removal | None = None,
    tokens: Tokens | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "batch length heads value_dim"]:
    """Returns what every token reads of its whole document: one pass forwards and one backwards, summed.

    The arguments are those of ``recurrent``. Additive: every pair counts once, so that without decay this is
    q_t^T times the sum of k v^T over the document; with decay, a pair is weighted by the decays of all
    tokens between and of the later one (forwards) or the earlier one (backwards). Delta: each pass has a
    memory of its own, to which the token itself has been written.
    """
    out, _ = recurrent(
        q, k, v, log_decay=log_decay, strength=strength, removal=removal, tokens=tokens, chunk=chunk
    )
    turn = functools.partial(jax.tree.map, lambda x: x if x.ndim == 1 else x[:, ::-1])
    turned = turn((q, k, v, log_decay, strength, removal, tokens))
    back, _ = recurrent(
        *turned[:3], log_decay=turned[3], strength=turned[4], removal=turned[5], tokens=turned[6],
        itself=not (strength is None and removal is None), chunk=chunk,
    )  # fmt: skip
    return out + back[:, ::-1]


def written(
    k: Float[Array, "memories kv_len heads key_dim"],
    v: Float[Array, "memories kv_len heads value_dim"],
    tokens: Tokens | None = None,
) -> Float[Array, "memories heads key_dim value_dim"]:
    """Returns the sum of k v^T over all real tokens, float32: what cross-attention with a kernel reads.

    Padding (segment 0) is left out; segments are not told apart otherwise.
    """
    if tokens is not None:
        k, v = blank(k, tokens), blank(v, tokens)
    return _dot("bjhk,bjhv->bhkv", k, v)


def read(
    q: Float[Array, "memories q_len heads key_dim"],
    state: Float[Array, "memories heads key_dim value_dim"],
    tokens: Tokens | None = None,
) -> Float[Array, "memories q_len heads value_dim"]:
    """Returns q^T times the state, float32; 0 at padding."""
    q = q if tokens is None else blank(q, tokens)
    return _dot("bihk,bhkv->bihv", q, state.astype(q.dtype))


def document_starts(tokens: Tokens) -> Bool[Array, "#batch length"]:
    """Returns True at the first token of every document of a row but its first.

    Padding starts nothing, wherever it stands: a document goes on after it.
    """
    real = tokens.real
    if tokens.segments is None:
        return jnp.zeros_like(real)
    index = jnp.where(real, jnp.arange(tokens.length, dtype=jnp.int32)[None], -1)
    last = jax.lax.cummax(index, axis=1)
    before = jnp.concatenate([jnp.full_like(last[:, :1], -1), last[:, :-1]], axis=1)
    segment_before = jnp.take_along_axis(tokens.segments, jnp.maximum(before, 0), axis=1)
    return real & (before >= 0) & (segment_before != tokens.segments)


def _within_documents(
    tokens: Tokens, q: Array, k: Array, v: Array, log_decay: Array | None, rule: tuple[Array, ...]
) -> tuple[Array, Array, Array, Array, tuple[Array, ...]]:
    """Returns the arguments, padding changing nothing and decay forgetting all where a document starts."""
    real = tokens.real[:, :, None, None]
    decay = jnp.zeros((1, 1, 1, 1), jnp.float32) if log_decay is None else log_decay
    q, k, v, decay, *kept = (jnp.where(real, x, jnp.zeros((), x.dtype)) for x in (q, k, v, decay, *rule))
    starts = document_starts(tokens)[:, :, None, None]
    return q, k, v, jnp.where(starts, -jnp.inf, decay), tuple(kept)


def _cut(x: Array | None, *, length: int, chunk: int) -> Array | None:
    """Returns [batch, length, heads, dim] as [batch, heads, chunks, chunk, dim], filled up with zeros."""
    if x is None:
        return None
    x = jnp.broadcast_to(x, (x.shape[0], length, *x.shape[2:]))
    x = jnp.pad(x, ((0, 0), (0, -length % chunk), (0, 0), (0, 0))).swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, chunk, x.shape[-1])


def _dot(equation: str, *operands: Array) -> Array:
    """Returns an einsum accumulated in float32."""
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


# Each of the following returns local, read, transition and update of every chunk: one that starts with the
# state S outputs local + read S, and ends with transition S + update (additive: transition * S + update, or
# S + update where it is None).


def _additive(
    q: Float[Array, "batch heads chunks chunk key_dim"],
    k: Float[Array, "batch heads chunks chunk key_dim"],
    v: Float[Array, "batch heads chunks chunk value_dim"],
    log_decay: Float[Array, "#batch #heads chunks chunk #key_dim"] | None,
    *,
    itself: bool,
) -> tuple[Array, Array, Array | None, Array]:
    """Returns what chunks of the additive rule do."""
    ((scores,),), since, until, total = _decayed((q,), (k,), log_decay)
    local = _dot("bhnij,bhnjv->bhniv", _below(scores, 0 if itself else -1).astype(v.dtype), v)
    return local, _times(q, since), total, _dot("bhnjk,bhnjv->bhnkv", _times(k, until), v)


def _delta(
    q: Float[Array, "batch heads chunks chunk key_dim"],
    k: Float[Array, "batch heads chunks chunk key_dim"],
    v: Float[Array, "batch heads chunks chunk value_dim"],
    log_decay: Float[Array, "#batch #heads chunks chunk #key_dim"] | None,
    strength: Float[Array, "batch heads chunks chunk 1"],
) -> tuple[Array, Array, Array, Array]:
    """Returns what chunks of the delta rule do.

    Token i writes k_i beta_i (v_i - what k_i reads of S - what k_i reads of earlier writes): a triangular
    system, whose solution is affine in S (the UT transform of Yang et al., 2024).
    """
    ((by_query, by_key),), since, until, total = _decayed((q, k), (k,), log_decay)
    right = strength * jnp.concatenate([v, _times(k, since)], axis=-1).astype(jnp.float32)
    inverse = unit_lower_inverse(strength * _below(by_key, -1))
    written = _product(inverse, right).astype(v.dtype)
    split = functools.partial(jnp.split, indices_or_sections=[v.shape[-1]], axis=-1)
    local, less = split(_dot("bhnij,bhnjv->bhniv", _below(by_query, 0).astype(v.dtype), written))
    update, erased = split(_dot("bhnjk,bhnjv->bhnkv", _times(k, until), written))
    read = (_times(q, since).astype(jnp.float32) - less).astype(v.dtype)
    return local, read, _diagonal(total, k.shape[-1]) - erased, update


def _removal(
    q: Float[Array, "batch heads chunks chunk key_dim"],
    k: Float[Array, "batch heads chunks chunk key_dim"],
    v: Float[Array, "batch heads chunks chunk value_dim"],
    log_decay: Float[Array, "#batch #heads chunks chunk #key_dim"] | None,
    removed: Float[Array, "batch heads chunks chunk key_dim"],
    erased: Float[Array, "batch heads chunks chunk key_dim"],
) -> tuple[Array, Array, Array, Array]:
    """Returns what chunks do whose tokens write k v^T and take away e (S^T r)^T: the delta rule's system.

    What token i reads by r_i, u_i = r_i S + sum_(j < i) (r_i k_j) v_j - (r_i e_j) u_j, is affine in S.
    """
    scores, since, until, total = _decayed((q, removed), (k, erased), log_decay)
    (query_key, removed_key), (query_erased, removed_erased) = scores
    dots = functools.partial(_dot, "bhnij,bhnjv->bhniv")
    within = dots(_below(removed_key, -1).astype(v.dtype), v)
    right = jnp.concatenate([within, _times(removed, since).astype(jnp.float32)], axis=-1)
    inverse = unit_lower_inverse(_below(removed_erased, -1))
    gone = _product(inverse, right).astype(v.dtype)
    split = functools.partial(jnp.split, indices_or_sections=[v.shape[-1]], axis=-1)
    less_local, less = split(dots(_below(query_erased, 0).astype(v.dtype), gone))
    less_update, less_state = split(_dot("bhnjk,bhnjv->bhnkv", _times(erased, until), gone))
    local = dots(_below(query_key, 0).astype(v.dtype), v) - less_local
    update = _dot("bhnjk,bhnjv->bhnkv", _times(k, until), v) - less_update
    read = (_times(q, since).astype(jnp.float32) - less).astype(v.dtype)
    return local, read, _diagonal(total, k.shape[-1]) - less_state, update


def _decayed(
    rows: tuple[Array, ...], keys: tuple[Array, ...], log_decay: Array | None
) -> tuple[tuple[tuple[Array, ...], ...], Array | None, Array | None, Array | None]:
    """Returns products of rows and keys that decay from key to row, for each key those with all rows.

    And the decays since the chunk's start, until its end, and over all of it, [..., 1 or key_dim, 1]; None
    where nothing decays. Above the diagonal products mean nothing.
    """
    if log_decay is not None and log_decay.shape[-1] > 1:
        found = [decayed_products(rows, key, log_decay) for key in keys]
        _, since, until = found[0]
        return tuple(scores for scores, _, _ in found), since, until, since[..., -1, :, None]
    scores = tuple(tuple(_dot("bhnid,bhnjd->bhnij", row, key) for row in rows) for key in keys)
    if log_decay is None:
        return scores, None, None, None
    decays, since, until = _scalar_decays(log_decay)
    scores = tuple(tuple(score * decays for score in of_key) for of_key in scores)
    return scores, since, until, since[..., -1, :, None]


def _times(x: Array, decay: Array | None) -> Array:
    """Returns x, decayed if there is a decay, dtype of x."""
    return x if decay is None else scaled(x, decay)


def _below(scores: Array, diagonal: int) -> Array:
    """Returns scores up to a diagonal, 0 above it."""
    size = scores.shape[-1]
    return jnp.where(jnp.tri(size, k=diagonal, dtype=bool)[None, None, None], scores, 0.0)


def _diagonal(total: Array | None, size: int) -> Array:
    """Returns the decay of all of a chunk as a matrix."""
    kept = jnp.eye(size)[None, None, None]
    return kept if total is None else kept * total


def _scalar_decays(log_decay: Float[Array, "batch heads chunks chunk 1"]) -> tuple[Array, Array, Array]:
    """Returns the decays from j to i for all pairs, from the start through i, and after j to the end.

    Each sum of logarithms is taken on its own, by a product with a triangle of ones: differences of
    cumulative sums lose their digits where decay is strong.
    """
    size = log_decay.shape[-2]
    # exp(-200) is 0 in float32: the same decay, and no infinity times 0.
    log_decay = jnp.maximum(log_decay, -200.0)
    upto = jnp.tri(size)[None, None, None]
    sums = _product(upto, jnp.where(jnp.tri(size, k=-1, dtype=bool)[None, None, None], log_decay, 0.0))
    since, until = _product(upto, log_decay), _product(jnp.tri(size, k=-1).T[None, None, None], log_decay)
    return jnp.exp(sums), jnp.exp(since), jnp.exp(until)


@jax.custom_jvp
def unit_lower_inverse(
    below: Float[Array, "batch heads chunks chunk chunk"],
) -> Float[Array, "batch heads chunks chunk chunk"]:
    """Returns the inverse of 1 + below, of which ``below`` is 0 on and above the diagonal.

    By blocks, for sizes that are powers of two: the inverse of [[A, 0], [B, D]] is [[A^-1, 0], [-D^-1 B A^-1,
    D^-1]]. These are matrix products, many times as fast as a batched triangular solve on a CPU, and they are
    split over devices as the rest is.
    """
    size = below.shape[-1]
    width = min(8, size)

    def blocks(width: int, step: int, down: int) -> Array:
        starts = range(0, size, step)
        return jnp.stack([below[..., a + down : a + down + width, a : a + width] for a in starts], axis=3)

    # Blocks of 8 all at once: X - X B X, where B has the part below the diagonal blocks of 1, 2 and 4.
    corner = blocks(width, width, 0)
    index = np.arange(width)
    level = np.frexp(index[:, None] ^ index[None])[1] - 1  # of the pair's first difference; -1: none
    inverse = jnp.eye(width)[None, None, None, None] - jnp.where(level == 0, corner, 0.0)
    for n in range(1, width.bit_length() - 1):
        part = jnp.where(level == n, corner, 0.0)
        inverse = inverse - _product(_product(inverse, part), inverse)
    while width < size:
        first, second = inverse[:, :, :, 0::2], inverse[:, :, :, 1::2]
        across = -_product(_product(second, blocks(width, 2 * width, width)), first)
        inverse = assembled(first, across, second)
        width *= 2
    return inverse[:, :, :, 0]


def _product(a: Array, b: Array) -> Array:
    """Returns the matrix product, exact in float32 on every backend."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(*primals)
    return inverse, -_product(_product(inverse, tangents[0]), inverse)
