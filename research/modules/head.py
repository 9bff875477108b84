"""The output projection and its cross-entropy, without ever holding all logits where they are many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.modules.placement import as_rows, gathered

LOGITS = 2**31
"""Bytes of float32 logits that a device may hold at once in training."""


def project(
    x: Float[Array, "*batch width"], kernel: Float[Array, "width classes"], soft_cap: float | None = None
) -> Float[Array, "*batch classes"]:
    """Returns logits, float32, capped to c * tanh(logits / c) if ``soft_cap`` is given."""
    logits = jnp.matmul(as_rows(x), kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    logits = logits.reshape(*x.shape[:-1], kernel.shape[1])
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "*batch classes"], targets: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Returns -log softmax(logits)[target] in nats and the log-partition, both float32.

    The backward pass computes the softmax again rather than keep it: of all arrays of a training step the
    logits are the largest, and one pass over them less is worth an exponential each. Where neither value is
    used (its cotangent is 0) the gradient is 0, whatever the logits are: padding may predict NaN.
    """
    return _forward(logits, targets)[0]


def _is_target(logits: Array, targets: Array) -> Array:
    # A comparison instead of a gather: a sharded vocabulary stays sharded.
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]


def _forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    single = logits.astype(jnp.float32)
    log_partition = jax.nn.logsumexp(single, axis=-1)
    chosen = jnp.where(_is_target(logits, targets), single, 0.0).sum(-1)
    return (log_partition - chosen, log_partition), (logits, targets, log_partition)


def _gradient(saved: tuple[Array, Array, Array], cotangents: tuple[Array, Array]) -> tuple[Array, None]:
    logits, targets, log_partition = saved
    of_nats, of_partition = (cotangent[..., None] for cotangent in cotangents)
    share = jnp.exp(logits.astype(jnp.float32) - log_partition[..., None])
    used = (of_nats != 0.0) | (of_partition != 0.0)
    gradient = jnp.where(used, share, 0.0) * (of_nats + of_partition)
    return (gradient - jnp.where(_is_target(logits, targets), of_nats, 0.0)).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _gradient)


def projected_cross_entropy(
    x: Float[Array, "batch length width"],
    kernel: Float[Array, "width classes"],
    targets: Int[Array, "batch length"],
    soft_cap: float | None = None,
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """Returns ``cross_entropy(project(x))``, in parts if a device would hold more logits than `LOGITS`.

    Each part takes every n-th token, so that it is spread over devices as the whole is; the backward pass
    computes its logits again, which costs 2 * width * classes FLOPs a token.
    """

    parts = _parts(x.shape[0], x.shape[1], kernel.shape[1])
    if parts > 1:
        kernel = gathered(kernel)  # once, not in every part

    def score(x: Array, targets: Array) -> tuple[Array, Array]:
        return cross_entropy(project(x, kernel, soft_cap), targets)

    if parts == 1:
        return score(x, targets)

    def split(array: Array) -> Array:
        return jnp.moveaxis(array.reshape(array.shape[0], -1, parts, *array.shape[2:]), 2, 0)

    def step(carry: None, part: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        return carry, jax.checkpoint(score)(*part)

    _, found = jax.lax.scan(step, None, (split(x), split(targets)))
    nats, log_partition = (jnp.moveaxis(part, 0, 2).reshape(targets.shape) for part in found)
    return nats, log_partition


def _parts(batch: int, length: int, classes: int) -> int:
    """Returns into how many parts the tokens are cut: the fewest that fit and divide the length."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    whole = 4 * batch * length * classes // devices
    return next(n for n in range(1, length + 1) if length % n == 0 and (whole // n <= LOGITS or n == length))
