"""From a description to the functions that train it: shapes, then shardings, then sharded initialisation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from research.objectives.causal_lm import Batch, Loss, causal_lm
from research.scale.mesh import make_mesh
from research.training.experiment import Experiment
from research.training.paths import path_name
from research.training.sharding import BATCH, STRATEGIES, state_shardings
from research.training.state import State
from research.training.step import (
    Gradient,
    Step,
    accumulated_gradient,
    descent,
    initialise,
    key_for,
    whole_gradient,
)

if TYPE_CHECKING:
    from research.data.packing import ValidBatches
    from research.data.stream import TokenStream
    from research.data.text import PreparedText


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything the loop drives; what differs between gradient descent and EM is in here."""

    mesh: Mesh
    abstract_state: Any
    """Shapes, dtypes and shardings of the state: what a restore fills."""
    init: Callable[[], Any]
    """Sharded initialisation."""
    step: Callable[[Any, Any], tuple[Any, dict[str, Array]]]
    """state, batch -> state, metrics; jitted, donates the state; "ok" False: nothing was changed."""
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    """Endless NumPy batches from the first one on; a Grain iterator with get_state and set_state."""
    place: Callable[[dict[str, np.ndarray]], Batch]
    """Puts a batch on the devices."""
    evaluate: Callable[[Any], dict[str, float]]
    """state -> validation metrics."""
    diagnose: Callable[[Any, Batch], str]
    """state, bad batch -> path of the first tensor that is not finite."""
    tokens_per_step: int
    flops_per_step: float
    """Model FLOPs, causal attention counted in full."""
    flops_per_step_causal: float
    """Model FLOPs, causal attention counted where it may attend."""


@dataclasses.dataclass(frozen=True)
class Functions:
    """What a description alone determines, before there is any data: enough to compile, plan and restore."""

    mesh: Mesh
    abstract_state: State
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], State]
    step: Step
    loss: Loss
    gradient: Gradient
    """Of the summed loss, over as many micro-batches as the step takes."""


def functions(experiment: Experiment, mesh: Mesh | None = None) -> Functions:
    """Returns the jitted initialisation and step of an experiment on a mesh (default: the experiment's own).

    Raises:
      UserError: the mesh does not fit the devices, or the strategy does not fit the parameters.
    """
    if mesh is None:
        sharding = experiment.sharding
        mesh = make_mesh(sharding.data, sharding.fsdp, sharding.tensor, sharding.sequence)
    model, data = experiment.model, experiment.data
    module = model.build()
    schedule = experiment.schedule.build(experiment.steps)
    optimizer = experiment.optimizer.build(schedule)
    example = jax.ShapeDtypeStruct((1, data.length), jnp.int32)

    def parameters(key: Array) -> Any:
        return module.init(key, jnp.zeros(example.shape, example.dtype))["params"]

    init = functools.partial(
        initialise, parameters, optimizer, seed=experiment.seed, ema=experiment.ema is not None
    )
    shapes = jax.eval_shape(init)
    shardings = state_shardings(STRATEGIES[experiment.sharding.strategy], shapes, shapes.params, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )

    def apply(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells the modules where activations lie
            return module.apply(*args, **kwargs)

    loss = causal_lm(apply, experiment.z_loss)
    gradient = (
        accumulated_gradient(loss, experiment.accumulate)
        if experiment.accumulate > 1
        else whole_gradient(loss)
    )
    step = descent(
        gradient,
        optimizer,
        schedule=lambda count: experiment.optimizer.learning_rate * schedule(count),
        seed=experiment.seed,
        dropout=model.dropout > 0.0,
        clip=experiment.clip,
        ema=experiment.ema,
    )
    rows = NamedSharding(mesh, BATCH)
    return Functions(
        mesh=mesh,
        abstract_state=abstract,
        abstract_batch={
            name: jax.ShapeDtypeStruct((data.batch, data.length), dtype, sharding=rows)
            for name, dtype in batch_dtypes().items()
        },
        init=jax.jit(init, out_shardings=shardings, compiler_options=_quick_to_compile(mesh)),
        step=jax.jit(step, in_shardings=(shardings, rows), out_shardings=(shardings, None), donate_argnums=0),
        loss=loss,
        gradient=gradient,
    )


def _quick_to_compile(mesh: Mesh) -> dict[str, int] | None:
    """Returns compiler options for what runs once: Threefry takes LLVM longer to optimise than to run."""
    return {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None


def batch_dtypes() -> dict[str, Any]:
    """Returns name and dtype of the arrays of a batch."""
    integers = dict.fromkeys(("tokens", "targets", "segments", "positions"), jnp.int32)
    return {**integers, "weights": jnp.float32}


def build(experiment: Experiment, prepared: PreparedText) -> Program:
    """Returns the program that trains the experiment on the prepared text. Raises as ``functions`` does."""
    from research.data.packing import train_batches, valid_batches

    parts = functions(experiment)
    data = experiment.data
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    place = functools.partial(place_rows, NamedSharding(parts.mesh, BATCH))
    valid = valid_batches(
        prepared.valid, length=data.length, batch=data.batch, limit=experiment.evaluation.batches, **share
    )
    tokens = data.batch * data.length
    flops = functools.partial(experiment.model.training_flops_per_token, data.length)
    return Program(
        mesh=parts.mesh,
        abstract_state=parts.abstract_state,
        init=parts.init,
        step=parts.step,
        batches=lambda: train_batches(
            prepared.train, length=data.length, batch=data.batch, seed=experiment.seed, **share
        ),
        place=place,
        evaluate=evaluation(parts.loss, valid, prepared.valid, place),
        diagnose=diagnosis(parts.gradient, experiment.seed if experiment.model.dropout > 0.0 else None),
        tokens_per_step=tokens,
        flops_per_step=tokens * flops(visible=False),
        flops_per_step_causal=tokens * flops(visible=True),
    )


def place_rows(sharding: NamedSharding, batch: dict[str, np.ndarray]) -> Batch:
    """Returns this process's rows of a batch as global arrays on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def evaluation(
    loss: Loss, batches: ValidBatches, stream: TokenStream, place: Callable[[Any], Batch]
) -> Callable[[State], dict[str, float]]:
    """Returns state -> {"valid/loss" in nats per token, "valid/bits_per_byte" of the text}.

    Bits per byte count every token, the end-of-text tokens included, over the UTF-8 bytes of the text.
    """
    sums = jax.jit(lambda params, batch: loss(params, batch, None)[1])

    def evaluate(state: State) -> dict[str, float]:
        parts = [
            sums(state.evaluated, place(batch)) for batch in batches
        ]  # all dispatched before any is fetched
        fetched = jax.device_get(parts)
        nats = sum(float(part["loss"]) for part in fetched) / sum(float(part["weight"]) for part in fetched)
        return {"valid/loss": nats, "valid/bits_per_byte": nats / math.log(2) * stream.targets_per_byte}

    return evaluate


def diagnosis(gradient: Gradient, dropout_seed: int | None) -> Callable[[State, Batch], str]:
    """Returns (state, bad batch) -> the first parameter, or gradient of one, not finite; or "the loss".

    The gradient is the very one that the step took: with the same micro-batches and the same dropout.
    """
    again = jax.jit(gradient)

    def diagnose(state: State, batch: Batch) -> str:
        key = None if dropout_seed is None else key_for(dropout_seed, "dropout", state.step)
        gradients, _ = again(state.params, batch, key)
        for kind, tree in (("parameter", state.params), ("gradient of", gradients)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if not bool(jnp.isfinite(leaf).all()):
                    return f"{kind} {path_name(path)}"
        return "the loss"

    return diagnose
