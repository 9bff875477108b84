"""Runs whose blocks are kept as 8-bit integers: a quarter of the bytes, for sampling."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from research.modules.eight_bit import EightBit
from research.training.optimizer import MATRIX, matrix_axes
from research.training.paths import path_name

MARK = "eight_bit.json"
"""File of a run whose checkpoint has codes."""


def quantized(params: Any) -> Any:
    """Returns parameters with the kernels of the blocks as codes; embeddings, heads, norms, biases stay."""

    def choose(path: Any, leaf: Any) -> Any:
        if not MATRIX.search(path_name(path)):
            return leaf
        axes = matrix_axes(path, leaf)
        inputs = math.prod(leaf.shape[axis] for axis in axes.reduction_axis)
        return EightBit.of(leaf.reshape(leaf.shape[0], inputs, -1))

    return jax.tree.map_with_path(choose, params)


def dequantized(params: Any, shapes: Any) -> Any:
    """Returns the float32 parameters, of these shapes, that the codes stand for."""

    def whole(leaf: Any, like: Any) -> Any:
        return leaf.kernel().reshape(like.shape) if isinstance(leaf, EightBit) else leaf

    flat = flatten_dict(shapes)
    return unflatten_dict({path: whole(leaf, flat[path]) for path, leaf in flatten_dict(params).items()})
