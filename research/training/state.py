"""What a training step carries from one step to the next."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Parameters, the optimizer's memory and the number of steps taken."""

    step: Int[Array, ""]
    """Steps taken."""
    params: Any
    """Parameters, float32."""
    optimizer: Any
    """State of the optax transformation."""
    average: Any
    """Exponential moving average of the parameters; None when not asked for."""
    ok: Bool[Array, ""]
    """False once a loss or gradient was not finite; no step changes anything from then on."""

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate and sample with: the average where there is one."""
        return self.params if self.average is None else self.average
