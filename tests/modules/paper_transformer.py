"""The Transformer of Vaswani et al. (2017) in float64 NumPy, off the paper; parameters named as ours."""

from __future__ import annotations

import math

import jax
import numpy as np


def random_parameters(shapes, seed=0):
    """Returns parameters of the given tree of shapes, float32, none of them 0 or 1 as initial ones are."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten(
        [jax.numpy.asarray(rng.normal(size=leaf.shape) * 0.4 + 0.1, "float32") for leaf in leaves]
    )


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def layer(tree, index):
    """Returns the parameters of one block of a stack."""
    return jax.tree.map(lambda x: np.asarray(x[index], np.float64), tree)


def layer_norm(x, p, epsilon=1e-5):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * p["scale"] + p.get("bias", 0.0)


def rms_norm(x, p, epsilon=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def feed_forward(x, p, activation="relu"):
    h = x @ p["up"]["kernel"] + p["up"].get("bias", 0.0)
    if activation == "swiglu":
        h = silu(x @ p["gate"]["kernel"] + p["gate"].get("bias", 0.0)) * h
    else:
        h = {"relu": lambda x: np.maximum(x, 0), "relu2": lambda x: np.maximum(x, 0) ** 2, "gelu": gelu}[
            activation
        ](h)
    return h @ p["down"]["kernel"] + p["down"].get("bias", 0.0)


def multi_head(x, source, p, allowed):
    """MultiHead(Q, K, V) = Concat(head_1, …, head_h) W^O; allowed is [batch, q_len, kv_len]."""
    heads, (kv_heads, head_dim) = p["query"]["kernel"].shape[1], p["key"]["kernel"].shape[1:]
    out = np.zeros_like(x)
    for h in range(heads):
        g = h // (heads // kv_heads)
        q = x @ p["query"]["kernel"][:, h] + p["query"]["bias"][h]
        k = source @ p["key"]["kernel"][:, g] + p["key"]["bias"][g]
        v = source @ p["value"]["kernel"][:, g] + p["value"]["bias"][g]
        scores = np.where(allowed, q @ k.transpose(0, 2, 1) / math.sqrt(head_dim), -np.inf)
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights = np.nan_to_num(weights / weights.sum(-1, keepdims=True))
        out += (weights @ v) @ p["output"]["kernel"][h]
    return out + p["output"]["bias"]


def block(x, p, allowed, *, post, activation, norm=layer_norm, memory=None, cross_allowed=None):
    """One layer: each sub-layer as norm(x + f(x)) ("post", the paper) or x + f(norm(x)) ("pre")."""
    parts = [("attention_norm", lambda x: multi_head(x, x, p["attention"], allowed))]
    if memory is not None:
        parts.append(
            ("cross_attention_norm", lambda x: multi_head(x, memory, p["cross_attention"], cross_allowed))
        )
    parts.append(("feed_forward_norm", lambda x: feed_forward(x, p["feed_forward"], activation)))
    for name, sub_layer in parts:
        x = norm(x + sub_layer(x), p[name]) if post else x + sub_layer(norm(x, p[name]))
    return x
