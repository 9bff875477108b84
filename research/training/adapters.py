"""Low-rank adapters (LoRA; Hu et al., 2022): a trained product beside every frozen kernel that it targets.

With adapters a state's parameters are {"frozen": the model's, "adapters": {path: {"lora_a", "lora_b"}}}. The
model never sees them: it is applied to their sum, so every module can be adapted and nothing is left to do
after training but to keep the sum.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from research.errors import UserError
from research.training.initial import LoRA
from research.training.optimizer import MATRIX, matrix_axes
from research.training.paths import path_name

_PARTS = {"frozen", "adapters"}


def with_adapters(params: Any, lora: LoRA, key: Key[Array, ""]) -> dict[str, Any]:
    """Returns parameters with adapters that change nothing yet: A is normal, B is 0.

    Args:
      params: the model's parameters.
      lora: which kernels, and how large.
      key: of A.

    Raises:
      UserError: no kernel of the blocks is targeted.
    """
    adapters = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for number, (path, kernel) in enumerate(leaves):
        name = path_name(path)
        if not (MATRIX.search(name) and re.search(lora.targets, name)):
            continue
        axes = matrix_axes(path, kernel)
        inputs, outputs = (
            math.prod(kernel.shape[axis] for axis in part) for part in (axes.reduction_axis, axes.output_axis)
        )
        draw = jax.random.normal(jax.random.fold_in(key, number), (kernel.shape[0], inputs, lora.rank))
        parts = tuple(name.split("/"))
        adapters[(*parts, "lora_a")] = draw / math.sqrt(inputs)
        adapters[(*parts, "lora_b")] = jnp.zeros((kernel.shape[0], lora.rank, outputs), jnp.float32)
    if not adapters:
        raise UserError(
            f"initial.adapters.targets {lora.targets!r} matches no kernel of the blocks; "
            "attention/(query|value)/kernel$ is the usual choice"
        )
    return {"frozen": params, "adapters": unflatten_dict(adapters)}


def merged(params: Any, lora: LoRA | None) -> Any:
    """Returns the model's parameters: each targeted kernel W + (alpha / rank) A B; no gradient reaches W.

    Parameters without adapters are returned as they are.
    """
    if lora is None or set(params) != _PARTS:
        return params
    adapters = flatten_dict(params["adapters"])
    model = flatten_dict(jax.lax.stop_gradient(params["frozen"]))
    for path in {path[:-1] for path in adapters}:
        product = jnp.matmul(adapters[(*path, "lora_a")], adapters[(*path, "lora_b")])
        model[path] = model[path] + (lora.alpha / lora.rank) * product.reshape(model[path].shape)
    return unflatten_dict(model)


def adapters_only(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer for parameters with adapters: it keeps no memory of what is frozen."""
    return optax.partition(
        {"adapters": optimizer, "frozen": optax.set_to_zero()}, {name: name for name in sorted(_PARTS)}
    )
