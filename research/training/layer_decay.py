"""Learning rates that shrink towards the input, layer by layer (Howard & Ruder, 2018; Clark et al., 2020)."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.training.paths import path_name

_BLOCK = re.compile(r"blocks(?:_(\d+))?/")
_LEAD = re.compile(r"(^|/)lead/")
_INPUT = re.compile(r"(^|/)(token_embedding|source_embedding|position_embedding|input)/")


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns the transformation that multiplies the updates of layer i of L with decay^(L + 1 - i).

    Embeddings are layer 0, heads and what else comes after the last block layer L + 1, whose factor is 1.
    """
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda update, scale: update * scale, updates, layer_scales(updates, decay)
        )
    )


def layer_scales(params: Any, decay: float) -> Any:
    """Returns the factor of each parameter: a number, or for stacked blocks an array along the first axis."""
    stacks: dict[str, dict[int, int]] = {}  # an encoder's and a decoder's layers are counted apart
    lead = False
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if _LEAD.search(name):
            lead = True
        elif match := _BLOCK.search(name):
            stacks.setdefault(name[: match.start()], {})[int(match[1] or 0)] = leaf.shape[0]
    deepest = max((sum(blocks.values()) for blocks in stacks.values()), default=0) + lead

    def scale(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        if match := _BLOCK.search(name):
            blocks = {} if _LEAD.search(name) else stacks[name[: match.start()]]
            period, layers = len(blocks), (sum(blocks.values()) + lead if blocks else deepest)
            before = lead + int(match[1] or 0) if blocks else 0
            layer = 1 + before + period * jnp.arange(leaf.shape[0])
            factors = jnp.power(decay, (layers + 1 - layer).astype(jnp.float32)).astype(leaf.dtype)
            return jnp.broadcast_to(factors.reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape)
        return jnp.asarray(decay ** (deepest + 1) if _INPUT.search(name) else 1.0, leaf.dtype)

    return jax.tree.map_with_path(scale, params)
