"""Optimizers, as descriptions that build optax transformations."""

from __future__ import annotations

import dataclasses


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


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern, 2018): a factored second moment, no first moment."""

    learning_rate: float = 1e-2
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decay of matrices and embeddings (never of biases and norm scales)."""


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for everything else."""

    learning_rate: float = 2e-2
    """Peak learning rate of Muon."""
    adam_learning_rate: float = 3e-3
    """Peak learning rate of embeddings, head, norms and biases."""
    beta: float = 0.95
    """Momentum."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings (never of biases and norm scales)."""


Optimizer = AdamW | Lion | Adafactor | Muon
