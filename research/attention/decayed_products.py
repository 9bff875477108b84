"""Products of queries and keys that decay, channel by channel, from one to the other, without overflow.

Within a chunk of linear attention with a vector decay, every pair has decays of its own,

    A_ij = sum_d q_id k_jd prod(a_td for j < t <= i),  j <= i,

and the split into (q_i b_i)(k_j / b_j), with b the cumulative decay, overflows as soon as decay is strong.
Here pairs are taken by halves: those across the middle of a block decay from j to the middle and from the
middle to i, two factors of at most 1 that a matrix product takes; pairs within either half are left to the
smaller blocks. Gated linear attention (Yang et al., 2023, section 4.3) splits a chunk once and computes what
remains elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Rows = tuple[Float[Array, "batch heads chunks chunk key_dim"], ...]
Scores = tuple[Float[Array, "batch heads chunks chunk chunk"], ...]


@jax.custom_vjp
def decayed_products(
    rows: Rows,
    k: Float[Array, "batch heads chunks chunk key_dim"],
    log_decay: Float[Array, "batch heads chunks chunk key_dim"],
) -> tuple[
    Scores,
    Float[Array, "batch heads chunks chunk key_dim"],
    Float[Array, "batch heads chunks chunk key_dim"],
]:
    """Returns A for every array of rows (0 above the diagonal), and the decays from and to the chunk's ends.

    Args:
      rows: arrays that take the part of q.
      k: keys.
      log_decay: log a, at most 0, -inf included; float32. Chunks have a power of two of tokens.

    The decays are those from the start of the chunk through a token, and from the next token to the end of
    the chunk. Everything returned is float32. Differentiable once, in reverse mode.
    """
    since, until, total = _ends(log_decay)
    if k.shape[-2] == 1:
        return tuple(_dot("bhnid,bhnjd->bhnij", row, k) for row in rows), since, until
    blocks = []
    for row in rows:  # blocks of two tokens, by their four entries
        q0, q1 = (_halves(row, 1)[half].astype(jnp.float32) for half in (0, 1))
        k0, k1 = (_halves(k, 1)[half].astype(jnp.float32) for half in (0, 1))
        entries = [q0 * k0, jnp.zeros_like(q0), q1 * _halves(since, 1)[1] * k0, q1 * k1]
        blocks.append(jnp.stack([entry.sum(-1) for entry in entries], axis=-1).reshape(*q0.shape[:3], 2, 2))
    since, until, total = _doubled(since, until, total)
    width = 2
    while width < k.shape[-2]:
        first = _scaled(k, until, width, 0)
        for n, row in enumerate(rows):
            across = _dot("bhpid,bhpjd->bhpij", _scaled(row, since, width, 1), first)
            blocks[n] = assembled(blocks[n][:, :, 0::2], across, blocks[n][:, :, 1::2])
        since, until, total = _doubled(since, until, total)
        width *= 2
    return tuple(block.reshape(*k.shape[:-1], k.shape[-2]) for block in blocks), since, until


def _forward(
    rows: Rows, k: Array, log_decay: Array
) -> tuple[tuple[Scores, Array, Array], tuple[Rows, Array, Array]]:
    return decayed_products(rows, k, log_decay), (rows, k, log_decay)


def _backward(
    saved: tuple[Rows, Array, Array], cotangents: tuple[Sequence[Array], Array, Array]
) -> tuple[Rows, Array, Array]:
    """Returns the gradients, from whole chunks down to single tokens.

    A pair's gradient by log a_t is the pair's own share of q dq = k dk, for all t between its tokens. What a
    level finds is added to ``after``, to be summed over tokens t <= i, or to ``before``, over j < t; sums
    over blocks become constants of their neighbours (``between``): no sum is a difference of longer ones.
    """
    rows, k, log_decay = saved
    scores, d_since, d_until = cotangents
    levels = [_ends(log_decay)]
    while 2 ** (len(levels) - 1) < k.shape[-2]:
        levels.append(_doubled(*levels[-1]))
    since, until, _ = levels[-1]
    after, before = d_since * since, d_until * until
    between = jnp.zeros((*k.shape[:2], k.shape[2], 1, k.shape[-1]))
    diagonals = [jnp.diagonal(score, axis1=-2, axis2=-1)[..., None] for score in scores]
    d_rows = [diagonal * k.astype(jnp.float32) for diagonal in diagonals]
    d_k = sum(diagonal * row.astype(jnp.float32) for diagonal, row in zip(diagonals, rows, strict=True))
    blocks = [score.reshape(*k.shape[:2], -1, *score.shape[-2:]) for score in scores]
    for level in reversed(range(len(levels) - 1)):
        width = 1 << level
        since, until, _ = levels[level]
        first, d_first = _scaled(k, until, width, 0), jnp.zeros((), jnp.float32)
        x = jnp.zeros((), jnp.float32)
        for n, row in enumerate(rows):
            across = blocks[n][..., width:, :width].astype(k.dtype)
            second = _scaled(row, since, width, 1)
            d_second = _dot("bhpij,bhpjd->bhpid", across, first)
            d_first = d_first + _dot("bhpij,bhpid->bhpjd", across, second)
            d_rows[n] = d_rows[n] + _placed(d_second * _halves(since, width)[1], 1, k.shape)
            x = x + d_second * second.astype(jnp.float32)
            blocks[n] = jnp.stack([blocks[n][..., :width, :width], blocks[n][..., width:, width:]], axis=3)
            blocks[n] = blocks[n].reshape(*k.shape[:2], -1, width, width)
        d_k = d_k + _placed(d_first * _halves(until, width)[0], 0, k.shape)
        after_first, after_second = _halves(after, width)
        before_first, before_second = _halves(before, width)
        # What came from longer blocks holds for all of the other half; this level's own pairs end within it.
        between = jnp.stack(
            [between + after_second.sum(-2, keepdims=True), between + before_first.sum(-2, keepdims=True)],
            axis=3,
        ).reshape(*k.shape[:2], -1, 1, k.shape[-1])
        after_second, before_first = after_second + x, before_first + d_first * first.astype(jnp.float32)
        after = jnp.stack([after_first, after_second], axis=3).reshape(k.shape)
        before = jnp.stack([before_first, before_second], axis=3).reshape(k.shape)
    d_log_decay = between.reshape(k.shape) + after
    return (
        tuple(d.astype(row.dtype) for d, row in zip(d_rows, rows, strict=True)),
        d_k.astype(k.dtype),
        d_log_decay,
    )


decayed_products.defvjp(_forward, _backward)


def assembled(
    first: Float[Array, "*lead width width"],
    across: Float[Array, "*lead width width"],
    second: Float[Array, "*lead width width"],
) -> Float[Array, "*lead double double"]:
    """Returns [[first, 0], [across, second]]."""
    above = jnp.concatenate([first, jnp.zeros_like(across)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([across, second], axis=-1)], axis=-2)


def _dot(equation: str, *operands: Array) -> Array:
    """Returns an einsum accumulated in float32."""
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def scaled(x: Float[Array, "*shape"], decay: Float[Array, "*decay_shape"]) -> Float[Array, "*shape"]:
    """Returns x * decay, dtype of x, multiplied in float32."""
    return (x.astype(jnp.float32) * decay).astype(x.dtype)


def _ends(log_decay: Array) -> tuple[Array, Array, Array]:
    """Returns, for blocks of one token, the decays since the start and until the end, and the total."""
    decay = jnp.exp(log_decay)
    return decay, jnp.ones_like(decay), decay.reshape(*decay.shape[:2], -1, 1, decay.shape[-1])


def _doubled(since: Array, until: Array, total: Array) -> tuple[Array, Array, Array]:
    """Returns the decays for blocks twice as long."""
    lead, dim = since.shape[:2], since.shape[-1]
    totals = total.reshape(*lead, -1, 2, 1, dim)
    one = jnp.ones_like(totals[:, :, :, :1])
    before = jnp.concatenate([one, totals[:, :, :, :1]], axis=3)
    behind = jnp.concatenate([totals[:, :, :, 1:], one], axis=3)
    pairs = (*lead, totals.shape[2], 2, -1, dim)
    return (
        (since.reshape(pairs) * before).reshape(since.shape),
        (until.reshape(pairs) * behind).reshape(until.shape),
        totals[:, :, :, 0] * totals[:, :, :, 1],
    )


def _placed(x: Array, half: int, shape: tuple[int, ...]) -> Array:
    """Returns an array of ``shape`` with x in one half of its blocks and 0 in the other."""
    zero = jnp.zeros_like(x)
    return jnp.stack([zero, x] if half else [x, zero], axis=3).reshape(shape)


def _halves(x: Float[Array, "batch heads chunks chunk dim"], width: int) -> tuple[Array, Array]:
    """Returns the first and the second half of every pair of blocks: [batch, heads, pairs, width, dim]."""
    # Pairs of all chunks on one axis: XLA's CPU backend is not safe with arrays of more than six.
    x = x.reshape(*x.shape[:2], -1, 2, width, x.shape[-1])
    return x[:, :, :, 0], x[:, :, :, 1]


def _scaled(x: Array, decay: Array, width: int, half: int) -> Array:
    """Returns one half of x times that of its decay, dtype of x."""
    return scaled(_halves(x, width)[half], _halves(decay, width)[half])
