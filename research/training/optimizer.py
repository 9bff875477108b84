"""Optimizers, as descriptions that build optax transformations."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import optax
from optax import contrib

from research.training.layer_decay import scale_by_layer
from research.training.paths import path_name

NO_DECAY = re.compile(r"(bias|scale|sink|lambda_\w+)$")
"""Parameters that weight decay leaves alone."""
MATRIX = re.compile(r"blocks(_\d+)?/.*kernel$")
"""Matrices of blocks, stacked over layers."""
RECURRENT = re.compile(
    r"(forward|backward|cells)_\d+/(kernel|recurrent)$"
    r"|(attentional|state_projection|source_projection|position_projection)/kernel$"
)
"""Matrices of LSTMs and of their attention."""


def decays(params: Any) -> Any:
    """Returns True for each parameter that weight decay applies to."""
    return jax.tree.map_with_path(lambda path, _: NO_DECAY.search(path_name(path)) is None, params)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings (never of biases and norm scales)."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one before it, for fine-tuning."""

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Returns the transformation; ``schedule`` gives the learning rate as a share of the peak."""
        rate = scaled(schedule, self.learning_rate)
        adam = optax.adamw(
            rate, self.beta1, self.beta2, self.epsilon, weight_decay=self.weight_decay, mask=decays
        )
        return adam if self.layer_decay == 1.0 else optax.chain(adam, scale_by_layer(self.layer_decay))


@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion (Chen et al., 2023): the sign of an interpolated momentum."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Interpolation for the update."""
    beta2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 1.0
    """Decay of matrices and embeddings (never of biases and norm scales)."""

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Returns the transformation; ``schedule`` gives the learning rate as a share of the peak."""
        rate = scaled(schedule, self.learning_rate)
        return optax.lion(rate, self.beta1, self.beta2, weight_decay=self.weight_decay, mask=decays)


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern, 2018): a factored second moment, no first moment."""

    learning_rate: float = 1e-2
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decay of matrices and embeddings, not scaled by the learning rate (never of biases and norm scales)."""

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Returns the transformation; ``schedule`` gives the learning rate as a share of the peak."""
        return optax.adafactor(
            scaled(schedule, self.learning_rate),
            multiply_by_parameter_scale=False,
            clipping_threshold=1.0,
            weight_decay_rate=self.weight_decay or None,
            weight_decay_mask=decays,
        )


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al., 2024) for the matrices of blocks and LSTMs, AdamW for everything else.

    Adapters count as something else.
    """

    learning_rate: float = 2e-2
    """Peak learning rate of Muon."""
    adam_learning_rate: float = 3e-3
    """Peak learning rate of embeddings, head, norms and biases."""
    beta: float = 0.95
    """Momentum."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings (never of biases and norm scales)."""

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Returns the transformation; ``schedule`` gives the learning rates as a share of their peaks."""
        return optax.partition(
            {
                "matrix": contrib.muon(
                    scaled(schedule, self.learning_rate),
                    beta=self.beta,
                    weight_decay=self.weight_decay,
                    muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(matrix_axes, params),
                ),
                "other": AdamW(self.adam_learning_rate, weight_decay=self.weight_decay).build(schedule),
            },
            functools.partial(jax.tree.map_with_path, _kind),
        )


def _kind(path: Any, _: Any) -> str:
    name = path_name(path)
    return "matrix" if MATRIX.search(name) or RECURRENT.search(name) else "other"


def matrix_axes(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers:
    """Returns which axes of a kernel are a matrix's inputs and outputs.

    Those of blocks are stacked, [layers, …]: projections to heads are [layers, width, heads, head_dim], from
    heads [layers, heads, head_dim, width]. Those of LSTMs are [inputs, outputs], all gates one matrix.
    """
    if leaf.ndim == 2:
        return contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)
    inputs = leaf.ndim - 2 if path_name(path).endswith("output/kernel") else 1
    return contrib.MuonDimensionNumbers(
        reduction_axis=tuple(range(1, 1 + inputs)), output_axis=tuple(range(1 + inputs, leaf.ndim))
    )


def scaled(schedule: optax.Schedule, peak: float) -> optax.Schedule:
    """Returns the schedule times ``peak``."""
    return lambda step: peak * schedule(step)


Optimizer = AdamW | Lion | Adafactor | Muon
