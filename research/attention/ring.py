"""Ring attention: the length over devices, keys and values passed round (Liu, Zaharia & Abbeel, 2023).

Each device keeps its queries and sees the keys and values of all devices one after another, while the next
ones travel; what its tiles give for each is merged through the log-sum-exp. The backward pass sends the
gradients of keys and values round with them. Nothing is ever gathered: memory falls with the devices.

Under a causal mask the first tokens would have little to read and the last ones much. So each device takes
two pieces of the sequence, the i-th from the front and the i-th from the back, and has as much to do as any
other at every step ("zigzag").
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

from research.attention.devices import LENGTH_AXIS
from research.attention.flash import by_key_head, flipped, forward, no_gradients
from research.attention.masks import Causal, Mask, Tokens, conjuncts
from research.attention.softmax import FLOOR
from research.attention.tiles import Context, Operands, Place, Problem, Work, tiling_of


def pieces(mask: Mask) -> int:
    """Returns how many pieces of the sequence each device takes."""
    return 2 if Causal() in conjuncts(mask) else 1


def ring(
    q: Float[Array, "rows q_part heads head_dim"],
    k: Float[Array, "rows kv_part kv_heads head_dim"],
    v: Float[Array, "rows kv_part kv_heads value_dim"],
    *,
    mask: Mask,
    q_tokens: Tokens,
    kv_tokens: Tokens,
    devices: int,
    scale: float,
    soft_cap: float | None = None,
    sink: Float[Array, " heads"] | None = None,
    cpu: bool,
) -> Float[Array, "rows q_part heads value_dim"]:
    """Returns this device's part of what `softmax.reference` returns, dtype of v; inside ``shard_map``.

    Args:
      q: queries of the device's part of the sequence, the parts in order.
      k: keys of its part.
      v: values of its part.
      mask: which token may attend to which.
      q_tokens: tokens of the part, positions and segments as arrays.
      kv_tokens: those of the keys.
      devices: devices of the mesh axis "sequence".
      scale: factor on q k^T.
      soft_cap: c of c * tanh(scores / c).
      sink: a logit per head that takes its share of the softmax and gives nothing.
      cpu: whether tiles are cut for a CPU.

    The parts are of one size, and even where ``pieces`` of the mask are two.
    """
    heads, shared = q.shape[2], pieces(mask)
    if shared == 2:
        deal = functools.partial(dealt, devices=devices)
        q, k, v, q_tokens, kv_tokens = jax.tree.map(deal, (q, k, v, q_tokens, kv_tokens))
    rows, q_part = q.shape[:2]
    tiling = tiling_of(mask, rows, q_part // shared, k.shape[1] // shared, heads, k.shape[2], cpu=cpu)
    problem = Problem(mask, soft_cap, 0.0, dataclasses.replace(tiling, dynamic=True), known=False)
    operands = by_key_head(q, k, v, scale, None, sink)
    arrays, tree = jax.tree.flatten((operands, Context(q_tokens, kv_tokens, None)))
    out = _ring(problem, devices, tree, *arrays)
    out = out.reshape(rows, heads, q_part, -1).transpose(0, 2, 1, 3)
    return collected(out, devices) if shared == 2 else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ring(
    problem: Problem, devices: int, tree: Any, *arrays: Any
) -> Float[Array, "rows kv_heads group q_part value_dim"]:
    return _forward(problem, devices, tree, *arrays)[0]


def _forward(problem: Problem, devices: int, tree: Any, *arrays: Any) -> tuple[Array, Any]:
    """Returns the output, and what the backward pass needs."""
    operands, context = jax.tree.unflatten(tree, arrays)
    shape = operands.q.shape[:4]
    # A sink is a key like any other, whose value is 0.
    lse = jnp.full(shape, FLOOR, jnp.float32)
    if operands.sink is not None:
        lse = jnp.broadcast_to(operands.sink[None, :, :, None], shape)
    sums = jnp.zeros((*shape, operands.v.shape[-1]), jnp.float32), lse

    def read(visitor: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        return _merged(sums, forward(_work(problem, operands, context, visitor), jnp.float32))

    def step(_: Any, carry: Any) -> Any:
        visitor, sums = carry
        return _passed_on(visitor, devices), read(visitor, sums)  # neither waits for the other

    visitor = operands.k, operands.v, context.kv_tokens
    visitor, sums = jax.lax.fori_loop(0, devices - 1, step, (visitor, sums))
    out, lse = read(visitor, sums)
    out = checkpoint_name(out.astype(operands.v.dtype), "attention_out")
    lse = checkpoint_name(lse, "attention_lse")
    return out, (arrays, out, lse)


def _backward(
    problem: Problem, devices: int, tree: Any, saved: Any, d_out: Array
) -> tuple[Array | None, ...]:
    """Returns the gradients of the operands' arrays; the others have none."""
    arrays, out, lse = saved
    operands, context = jax.tree.unflatten(tree, arrays)
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)
    turned = flipped(operands.q, d_out)
    zero_q, *zero_kv = no_gradients(operands)

    def read(visitor: Any, d_q: Array) -> tuple[Array, list[Array]]:
        work = _work(problem, operands, context, visitor)

        def block(place: Place, carry: Any) -> Any:
            return work.gradients_of(place, d_out, turned, lse, delta, carry)

        carry: Any = d_q, *zero_kv, []
        d_q, d_k, d_v, _ = work.each_block(block, carry)
        return d_q, [d_k, d_v]

    def step(_: Any, carry: Any) -> Any:
        visitor, d_q, earlier = carry
        d_q, new = read(visitor, d_q)
        # What devices before this one have added arrives while it computes its own.
        d_kv = jax.tree.map(jnp.add, _passed_on(earlier, devices), new)
        return _passed_on(visitor, devices), d_q, d_kv

    visitor = operands.k, operands.v, context.kv_tokens
    visitor, d_q, d_kv = jax.lax.fori_loop(0, devices - 1, step, (visitor, zero_q, zero_kv))
    d_q, new = read(visitor, d_q)
    d_kv = jax.tree.map(jnp.add, _passed_on(d_kv, devices), new)
    d_kv = [x.swapaxes(2, 3) for x in _passed_on(d_kv, devices)]  # home
    gradients: list[Array | None] = [d_q, *d_kv]
    if operands.sink is not None:
        gradients.append(-(jnp.exp(operands.sink[None, :, :, None] - lse) * delta).sum((0, 3)))
    gradients += [None] * (len(arrays) - len(gradients))
    return tuple(None if d is None else d.astype(x.dtype) for d, x in zip(gradients, arrays, strict=True))


_ring.defvjp(_forward, _backward)


def _work(problem: Problem, operands: Operands, context: Context, visitor: Any) -> Work:
    """Returns the tiles of the device's queries and a visitor's keys and values."""
    k, v, kv_tokens = visitor
    return Work(problem, Operands(operands.q, k, v, None, None), Context(context.q_tokens, kv_tokens, None))


def _merged(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns output and log-sum-exp over the keys of both, which have none in common."""
    lse = jnp.logaddexp(one[1], other[1])
    out, more = (out * jnp.exp(own - lse)[..., None] for out, own in (one, other))
    return out + more, lse


def _passed_on(tree: Any, devices: int) -> Any:
    """Returns what the device before this one holds."""
    return _sent(tree, [(device, (device + 1) % devices) for device in range(devices)])


def _sent(tree: Any, pairs: list[tuple[int, int]]) -> Any:
    return jax.tree.map(lambda x: jax.lax.ppermute(x, LENGTH_AXIS, pairs), tree)


def dealt(x: Shaped[Array, "rows part *rest"], devices: int) -> Shaped[Array, "rows part *rest"]:
    """Returns this device's pieces of the sequence: the d-th and the d-th from the end, in some order."""
    pairs = _deals(devices)
    return jnp.concatenate([_sent(half, to) for half, to in zip(_halves(x), pairs, strict=True)], axis=1)


def collected(x: Shaped[Array, "rows part *rest"], devices: int) -> Shaped[Array, "rows part *rest"]:
    """Returns this device's part of the sequence: undoes ``dealt``."""
    pairs = ([(to, of) for of, to in deal] for deal in _deals(devices))
    return jnp.concatenate([_sent(half, to) for half, to in zip(_halves(x), pairs, strict=True)], axis=1)


def _halves(x: Array) -> list[Array]:
    return jnp.split(x, 2, axis=1)


def _deals(devices: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns where the first and the second halves of all devices' parts go, as (from, to)."""
    last = 2 * devices - 1
    first, second = (
        [(piece // 2, min(piece, last - piece)) for piece in range(parity, 2 * devices, 2)]
        for parity in (0, 1)
    )
    return first, second
