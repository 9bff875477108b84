"""Flash attention in portable JAX: softmax by tiles, forward and backward, only where a mask needs them.

The forward pass keeps a running maximum and sum per row (Milakov & Gimelshein, 2018; Rabe & Staats, 2021) and
saves the output and the logarithm of the sum; the backward pass computes the tiles anew from them
(FlashAttention; Dao et al., 2022). Memory grows with the length, time with the number of blocks that the mask
does not leave empty, so that this is the block-sparse engine too.

Differentiable once, in reverse mode; the reference engine is there for the rest.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from research.attention.biases import Bias
from research.attention.masks import Mask, Tokens
from research.attention.tiles import Context, Operands, Place, Problem, Tiling, Work, floats, split_bias


def flash(
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    v: Float[Array, "batch kv_len kv_heads value_dim"],
    *,
    mask: Mask,
    q_tokens: Tokens,
    kv_tokens: Tokens,
    tiling: Tiling,
    scale: float,
    soft_cap: float | None = None,
    bias: Bias | None = None,
    sink: Float[Array, " heads"] | None = None,
    dropout: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "batch q_len heads value_dim"]:
    """Returns what `softmax.reference` returns, dtype of v, the same weights dropped under the same key.

    Where both sides' positions are NumPy arrays they must be 0, 1, 2 …: empty blocks are then known when the
    program is built. Output and log-sum-exp carry the names ``attention_out`` and ``attention_lse`` for
    checkpoint policies: where these are saved, the forward pass does not run again.
    """
    batch, q_len, heads, _ = q.shape
    known = isinstance(q_tokens.positions, np.ndarray) and isinstance(kv_tokens.positions, np.ndarray)
    rate = 0.0 if dropout_key is None else dropout
    if bias is not None:  # which can be restricted to tokens, not to rows or heads
        tiling = dataclasses.replace(tiling, rows=batch, heads=k.shape[2])
    operands = by_key_head(q, k, v, scale, bias, sink)
    context = Context(q_tokens, kv_tokens, dropout_key if rate else None)
    # Arrays alone pass the rule of differentiation: descriptions would be rebuilt around placeholders.
    arrays, tree = jax.tree.flatten((operands, context))
    out = _attention(Problem(mask, soft_cap, rate, tiling, known), tree, *arrays)
    return out.reshape(batch, heads, q_len, -1).transpose(0, 2, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    problem: Problem, tree: Any, *arrays: Any
) -> Float[Array, "batch kv_heads group q_len value_dim"]:
    return _forward(problem, tree, *arrays)[0]


def _forward(problem: Problem, tree: Any, *arrays: Any) -> tuple[Array, Any]:
    """Returns the output, and what the backward pass needs."""
    operands, context = jax.tree.unflatten(tree, arrays)
    out, lse = forward(Work(problem, operands, context), operands.v.dtype)
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return out, (arrays, out, lse)


def _backward(problem: Problem, tree: Any, saved: Any, d_out: Array) -> tuple[Array | None, ...]:
    """Returns the gradients of the operands' arrays; the others have none."""
    arrays, out, lse = saved
    operands, context = jax.tree.unflatten(tree, arrays)
    work = Work(problem, operands, context)
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)
    bias_parts, _ = split_bias(operands.bias)
    turned = flipped(operands.q, d_out)

    def block(place: Place, carry: Any) -> Any:
        return work.gradients_of(place, d_out, turned, lse, delta, carry)

    zero = no_gradients(operands)
    d_q, *d_kv, d_bias = work.each_block(block, (*zero, jax.tree.map(jnp.zeros_like, bias_parts)))
    d_k, d_v = (x.swapaxes(2, 3) for x in jax.lax.optimization_barrier(d_kv))
    gradients: list[Array | None] = [d_q, d_k, d_v]
    parts = iter(d_bias)
    gradients += [next(parts) if floats(x) else None for x in jax.tree.leaves(operands.bias)]
    if operands.sink is not None:
        gradients.append(-(jnp.exp(operands.sink[None, :, :, None] - lse) * delta).sum((0, 3)))
    gradients += [None] * (len(arrays) - len(gradients))
    return tuple(None if d is None else d.astype(x.dtype) for d, x in zip(gradients, arrays, strict=True))


_attention.defvjp(_forward, _backward)


def by_key_head(
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    v: Float[Array, "batch kv_len kv_heads value_dim"],
    scale: float,
    bias: Bias | None,
    sink: Float[Array, " heads"] | None,
) -> Operands:
    """Returns the arrays of a call as tiles are cut from them, the queries scaled."""
    batch, q_len, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = (q * jnp.asarray(scale, q.dtype)).transpose(0, 2, 1, 3)
    return Operands(
        q.reshape(batch, kv_heads, heads // kv_heads, q_len, head_dim),
        k.transpose(0, 2, 1, 3),
        v.transpose(0, 2, 1, 3),
        bias,
        None if sink is None else sink.astype(jnp.float32).reshape(kv_heads, -1),
    )


def forward(work: Work, dtype: jax.typing.DTypeLike) -> tuple[Array, Array]:
    """Returns the output, of ``dtype``, and the log-sum-exp, float32, of all queries over all keys."""
    q = work.operands.q
    out = jnp.zeros((*q.shape[:4], work.value_dim), dtype)
    lse = jnp.zeros(q.shape[:4], jnp.float32)

    def block(place: Place, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        out, lse = carry
        tile_out, tile_lse = work.rows_of(place)
        fresh = work.fresh(place)
        tile_out = jnp.where(fresh[..., None], tile_out.astype(dtype), work.queries(out, place))
        tile_lse = jnp.where(fresh, tile_lse, work.queries(lse, place))
        return work.put(out, tile_out, place), work.put(lse, tile_lse, place)

    return work.each_block(block, (out, lse))


def flipped(q: Array, d_out: Array) -> tuple[Array, Array]:
    """Returns queries and the output's gradient as ``Work.gradients_of`` takes them beside the plain ones.

    Products that contract over the rows of a tile's scores are slow on a CPU (30 instead of 80 GFLOP/s a
    core): with d_k and d_v transposed, and the small operand transposed beforehand, there are none. The
    barriers keep the compiler from folding the transpositions back into the products.
    """
    return jax.lax.optimization_barrier((jnp.moveaxis(q, 4, 2), jnp.moveaxis(d_out, 4, 2)))


def no_gradients(operands: Operands) -> tuple[Array, Array, Array]:
    """Returns the float32 zeros that tiles' gradients are added to: of q, and of k and v transposed."""
    return (
        jnp.zeros(operands.q.shape, jnp.float32),
        *(jnp.zeros(x.swapaxes(2, 3).shape, jnp.float32) for x in (operands.k, operands.v)),
    )  # type: ignore[return-value]
