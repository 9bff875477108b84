"""One step of gradient descent: ``state, batch -> state, metrics``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray

from research.objectives.objective import Batch, Loss
from research.training.state import State

PURPOSES = {"parameters": 0, "dropout": 1, "adapters": 2}
"""What randomness is for; the numbers are part of the meaning of a seed and never change."""
Metrics = dict[str, Array]
Step = Callable[[State, Batch], tuple[State, Metrics]]
Gradient = Callable[[Any, Batch, Key[Array, ""] | None], tuple[Any, dict[str, Float[Array, ""]]]]


def key_for(seed: int, purpose: str, step: Any = 0) -> PRNGKeyArray:
    """Returns the key of (seed, purpose, step)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose]), step)


def whole_gradient(loss: Loss) -> Gradient:
    """Returns the gradient of the summed loss over a batch at once."""

    def gradient(params: Any, batch: Batch, key: Key[Array, ""] | None) -> tuple[Any, dict[str, Array]]:
        return jax.grad(loss, has_aux=True)(params, batch, key)

    return gradient


def accumulated_gradient(loss: Loss, parts: int) -> Gradient:
    """Returns the gradient summed over ``parts`` micro-batches, taken one after another.

    Every micro-batch takes each ``parts``-th row, so that it is spread over the same devices as the batch.
    Losses and weights are sums, so the result is that of the whole batch but for rounding.
    """

    def gradient(params: Any, batch: Batch, key: Key[Array, ""] | None) -> tuple[Any, dict[str, Array]]:
        micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, item: tuple[Array, Batch]) -> tuple[Any, None]:
            index, rows = item
            part = jax.grad(loss, has_aux=True)(
                params, rows, None if key is None else jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, total, part), None

        first = jax.tree.map(lambda x: x[0], micro)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(jax.grad(loss, has_aux=True), params, first, key),
        )
        return jax.lax.scan(add, zeros, (jnp.arange(parts), micro))[0]

    return gradient


def descent(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    seed: int,
    dropout: bool,
    clip: float | None,
    ema: float | None,
) -> Step:
    """Returns the step of gradient descent.

    Args:
      gradient: (params, batch, key) -> gradient and metrics of the *summed* loss; "weight" is the number of
        tokens, and the step alone divides by it.
      optimizer: the optax transformation.
      schedule: step -> learning rate, for the metrics.
      seed: seed from which (seed, "dropout", step) keys are drawn.
      dropout: whether the gradient is given a key.
      clip: largest global norm of the gradient; None: any.
      ema: decay of the average of the parameters; None: no average.

    A step whose loss or gradient is not finite changes nothing and sets ``state.ok`` to False, after which no
    step changes anything: the state stays what it was before the bad batch.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = key_for(seed, "dropout", state.step) if dropout else None
        total, sums = gradient(state.params, batch, key)
        weight = jnp.maximum(sums["weight"], 1.0)
        norm = optax.tree.norm(total) / weight
        ok = state.ok & jnp.isfinite(norm) & jnp.isfinite(sums["loss"])

        def update() -> State:
            factor = (
                1.0 / weight if clip is None else jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)) / weight
            )
            mean = jax.tree.map(lambda g: g * factor, total)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with integer counts
                updates, memory = optimizer.update(mean, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            average = state.average
            if ema is not None:
                average = jax.tree.map(lambda a, p: ema * a + (1.0 - ema) * p, average, params)
            return State(state.step + 1, params, memory, average, ok)

        # A branch, not a selection of every array: that would keep old and new alive and copy both moments.
        after = jax.lax.cond(ok, update, lambda: dataclasses.replace(state, ok=ok))
        with jax.numpy_dtype_promotion("standard"):
            rate = jnp.asarray(schedule(state.step), jnp.float32)
        metrics = {
            **{f"train/{name}": value / weight for name, value in sums.items() if name != "weight"},
            "train/gradient_norm": norm,
            "train/learning_rate": rate,
            "ok": ok,
        }
        return after, metrics

    return step


def initialise(
    init: Callable[[Key[Array, ""]], Any], optimizer: optax.GradientTransformation, *, seed: int, ema: bool
) -> State:
    """Returns the state before the first step; ``init`` gives the parameters for a key."""
    params = init(key_for(seed, "parameters"))
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer.init(params),
        average=params if ema else None,
        ok=jnp.ones((), bool),
    )
