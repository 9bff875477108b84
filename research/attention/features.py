"""Feature maps of linear attention: what stands for exp(q k^T), so that keys can be summed first."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

LARGEST = 60.0
"""Logit of the largest feature of a key: ten thousand million such keys still have a sum in float32."""


def elu_plus_one(x: Float[Array, "*shape dim"]) -> Float[Array, "*shape dim"]:
    """Returns elu(x) + 1, dtype of x: positive everywhere (Katharopoulos et al., 2020, eq. 7)."""
    # exp itself below 0: exp(x) - 1 + 1 would lose the digits of small weights.
    return jnp.where(x > 0, x + jnp.ones((), x.dtype), jnp.exp(jnp.minimum(x, jnp.zeros((), x.dtype))))


def unit(x: Float[Array, "*shape dim"], epsilon: float = 1e-6) -> Float[Array, "*shape dim"]:
    """Returns x / sqrt(|x|^2 + epsilon), dtype of x: the length of keys that keeps a delta rule stable."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).sum(-1, keepdims=True) + epsilon)).astype(x.dtype)


def taylor(x: Float[Array, "*shape dim"]) -> Float[Array, "*shape features"]:
    """Returns the 1 + dim + dim (dim + 1) / 2 features of exp's second-order Taylor series, float32.

    Of a query and a key they multiply to 1 + s + s^2 / 2, s = q k^T / sqrt(dim), which is at least 1/2
    (Based; Arora et al., 2024, section 4.1). The paper keeps both x_i x_j and x_j x_i; here a pair is kept
    once, times sqrt(2): the same products with nearly half of the state.
    """
    dim = x.shape[-1]
    x = x.astype(jnp.float32) * dim**-0.25
    # The products x_i x_(i + n), with indices in a circle, reach every pair once (half way round, twice).
    pairs = [jnp.square(x) * 0.5**0.5]
    pairs += [x * jnp.roll(x, -n, axis=-1) for n in range(1, (dim + 1) // 2)]
    if dim % 2 == 0:
        half = dim // 2
        pairs.append(x[..., :half] * x[..., half:])
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, *pairs], axis=-1)


def favor_query(
    q: Float[Array, "*shape dim"], directions: Float[Array, "features dim"]
) -> Float[Array, "*shape features"]:
    """Returns positive random features of queries (see ``favor``), each query's greatest being 1.

    The factor that this leaves out is the same for all keys: the normaliser takes it out.
    """
    logits = _favor_logits(q, directions)
    return jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))


def favor_key(
    k: Float[Array, "*shape dim"], directions: Float[Array, "features dim"]
) -> Float[Array, "*shape features"]:
    """Returns positive random features of keys (see ``favor``), times sqrt(features).

    Logits are cut at LARGEST, so that sums over many keys do not overflow: the most that one can be is
    |direction|^2 / 2, dim / 2 on average, for a key that is the direction. Unlike the maximum over keys that
    the paper's code takes out, this depends on no later token.
    """
    return jnp.exp(jnp.minimum(_favor_logits(k, directions), LARGEST))


def favor(
    x: Float[Array, "*shape dim"], directions: Float[Array, "features dim"]
) -> Float[Array, "*shape features"]:
    """Returns positive random features, float32: exp(w y - |y|^2 / 2) / sqrt(features), y = x / dim^(1/4).

    Over Gaussian directions w the mean of favor(q) favor(k)^T is exp(q k^T / sqrt(dim)) (FAVOR+; Choromanski
    et al., 2021, lemma 1).
    """
    return jnp.exp(_favor_logits(x, directions)) * len(directions) ** -0.5


def _favor_logits(x: Array, directions: Array) -> Array:
    x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
    return jnp.matmul(x, directions.T) - jnp.square(x).sum(-1, keepdims=True) / 2


def fixed_directions(dim: int, features: int, seed: int) -> Float[np.ndarray, "features dim"]:
    """Returns directions of positive random features, a function of the seed."""
    shape = (2, -(-features // dim), dim, dim)
    return _orthogonal(np.random.default_rng(seed).standard_normal(shape, np.float32), features)


def drawn_directions(dim: int, features: int, key: Key[Array, ""]) -> Float[Array, "features dim"]:
    """Returns directions of positive random features, drawn with a key."""
    return _orthogonal(jax.random.normal(key, (2, -(-features // dim), dim, dim)), features)


def _orthogonal(gaussian: Any, features: int) -> Any:
    """Returns rows that are Gaussian each, and orthogonal to one another within every ``dim`` of them.

    These are rows of random orthogonal matrices (uniform, by the signs of R's diagonal) with the lengths of
    other Gaussian vectors (Choromanski et al., 2021, section 2.4). Takes arrays of NumPy or of JAX.
    """
    xp = gaussian.__array_namespace__()
    matrices, others = gaussian
    q, r = xp.linalg.qr(matrices)
    rows = q * xp.sign(xp.linalg.diagonal(r))[:, None, :]
    rows = rows * xp.linalg.vector_norm(others, axis=1, keepdims=True)
    return rows.swapaxes(1, 2).reshape(-1, rows.shape[1])[:features]
