"""From a description to the functions that train it: shapes, then shardings, then sharded initialisation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from research.objectives.objective import Batch
from research.scale import hosts
from research.scale.mesh import make_mesh
from research.training.adapters import adapters_only, merged, with_adapters
from research.training.experiment import Experiment
from research.training.initial import LoRA
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


class Prepared(Protocol):
    """Data made ready for training, whatever it is."""

    def files(self) -> dict[str, str]:
        """Returns what a run must keep to read its data again: contents by file name."""

    def train_batches(self, *, seed: int, process_index: int, process_count: int) -> Any:
        """Returns this process's share of endless shuffled batches; has ``get_state`` and ``set_state``."""

    def valid_batches(
        self, *, limit: int | None = None, process_index: int, process_count: int
    ) -> Sequence[Any]:
        """Returns this process's share of the validation batches, at most ``limit``."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns validation metrics from an objective's sums; "loss" is among them."""


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
    share: Callable[[dict[str, np.ndarray]], float]
    """batch -> its tokens, as a share of those of a batch of full shape, which the following are of."""
    tokens_per_step: int
    flops_per_step: float
    """Model FLOPs, attention counted in full."""
    flops_per_step_causal: float
    """Model FLOPs, attention counted only where a token may attend."""


@dataclasses.dataclass(frozen=True)
class Functions:
    """What a description alone determines, before there is any data: enough to compile, plan and restore."""

    mesh: Mesh
    apply: Callable[..., Any]
    """The model's, its activations placed on the mesh."""
    abstract_state: State
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], State]
    step: Step
    sums: Callable[[Any, Batch], dict[str, Array]]
    """parameters, batch -> the objective's sums, without dropout; jitted."""
    gradient: Gradient
    """Of the summed loss, over as many micro-batches as the step takes."""


def mesh_of(experiment: Experiment) -> Mesh:
    """Returns the experiment's mesh over the devices that are here; ``UserError`` if it does not fit them."""
    sharding = experiment.sharding
    return make_mesh(sharding.data, sharding.fsdp, sharding.tensor, sharding.sequence)


def functions(experiment: Experiment, mesh: Mesh | AbstractMesh | None = None) -> Functions:
    """Returns the jitted initialisation and step of an experiment on a mesh (default: the experiment's own).

    On an abstract mesh they can be traced, and not compiled.

    Raises:
      UserError: the mesh does not fit the devices, or the strategy does not fit the parameters.
    """
    mesh = mesh_of(experiment) if mesh is None else mesh
    mesh = cast(Mesh, mesh)  # an abstract one does as long as nothing is compiled
    model, objective = experiment.model, experiment.objective
    module = model.build()
    schedule = experiment.schedule.build(experiment.steps)
    optimizer = experiment.optimizer.build(schedule)
    if _adapters(experiment) is not None:
        optimizer = adapters_only(optimizer)
    init = functools.partial(
        initialise,
        functools.partial(initial_parameters, experiment),
        optimizer,
        seed=experiment.seed,
        ema=experiment.ema is not None,
    )
    shapes = jax.eval_shape(init)
    shardings = state_shardings(STRATEGIES[experiment.sharding.strategy], shapes, shapes.params, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
        params = model_parameters(experiment, variables["params"])
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells the modules where activations lie
            return module.apply({"params": params}, *args, **kwargs)

    loss = objective.loss(apply)
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
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding(mesh, shape))
        for name, (shape, dtype) in experiment.data.shapes().items()
    }
    return Functions(
        mesh=mesh,
        apply=apply,
        abstract_state=abstract,
        abstract_batch=batch,
        init=jax.jit(init, out_shardings=shardings, compiler_options=_quick_to_compile(mesh)),
        # Batches come placed; their shapes may differ from step to step.
        step=jax.jit(step, in_shardings=(shardings, None), out_shardings=(shardings, None), donate_argnums=0),
        sums=jax.jit(lambda params, batch: loss(params, batch, None)[1]),
        gradient=gradient,
    )


def initial_parameters(experiment: Experiment, key: Array) -> Any:
    """Returns freshly drawn parameters of the experiment's model, with adapters if it trains these."""
    shapes = experiment.data.shapes().items()
    row = {name: jnp.zeros((1, *shape[1:]), dtype) for name, (shape, dtype) in shapes}
    inputs, named = experiment.objective.inputs(row)
    params = experiment.model.build().init(key, *inputs, **named)["params"]
    lora = _adapters(experiment)
    return params if lora is None else with_adapters(params, lora, key_for(experiment.seed, "adapters"))


def _adapters(experiment: Experiment) -> LoRA | None:
    return None if experiment.initial is None else experiment.initial.adapters


def model_parameters(experiment: Experiment, params: Any) -> Any:
    """Returns the parameters that the model itself takes: those of a state, adapters merged."""
    return merged(params, _adapters(experiment))


def _quick_to_compile(mesh: Mesh | AbstractMesh) -> dict[str, int] | None:
    """Returns compiler options for what runs once: Threefry takes LLVM longer to optimise than to run."""
    on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpu else None


ALL = {"process_index": 0, "process_count": 1}
"""Every row of each batch, as the data's functions take it."""


def share(mesh: Mesh) -> dict[str, int]:
    """Returns which share of each batch this process reads, as the data's functions take it."""
    index, count = hosts.share(mesh, BATCH[0])
    return {"process_index": index, "process_count": count}


def build(experiment: Experiment, prepared: Prepared, parts: Functions | None = None) -> Program:
    """Returns the program that trains the experiment on the prepared data, from its functions.

    Args:
      experiment: the description.
      prepared: its data.
      parts: its functions, if they have been made.

    Raises:
      UserError: as ``functions`` does.
    """
    parts = functions(experiment) if parts is None else parts
    place = functools.partial(place_rows, parts.mesh)
    own = share(parts.mesh)
    valid = prepared.valid_batches(limit=experiment.evaluation.batches, **own)
    shapes = {name: array.shape for name, array in parts.abstract_batch.items()}
    full = math.prod(shapes["tokens"]) / own["process_count"]

    def evaluate(state: State) -> dict[str, float]:
        found = prepared.metrics(measure(parts, state.evaluated, valid))
        return {f"valid/{name}": value for name, value in found.items()}

    return Program(
        mesh=parts.mesh,
        abstract_state=parts.abstract_state,
        init=parts.init,
        step=parts.step,
        batches=lambda: prepared.train_batches(seed=experiment.seed, **own),
        place=place,
        evaluate=evaluate,
        diagnose=diagnosis(parts.gradient, experiment.seed if experiment.model.dropout > 0.0 else None),
        share=lambda batch: batch["tokens"].size / full,
        tokens_per_step=experiment.data.tokens_per_step,
        flops_per_step=experiment.model.training_flops(shapes, visible=False),
        flops_per_step_causal=experiment.model.training_flops(shapes, visible=True),
    )


def rows_sharding(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns how an array of a batch lies on a mesh: rows are split, and a length the axis divides."""
    whole = len(shape) < 2 or shape[1] % mesh.shape["sequence"]
    return NamedSharding(mesh, PartitionSpec(BATCH[0]) if whole else BATCH)


def place_rows(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Returns this process's rows of a batch (its ``share``) as global arrays on the devices."""
    shardings = {name: rows_sharding(mesh, rows.shape) for name, rows in batch.items()}
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    _, count = hosts.share(mesh, BATCH[0])
    return {
        name: jax.make_array_from_process_local_data(
            shardings[name], rows, (rows.shape[0] * count, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def measure(parts: Functions, params: Any, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
    """Returns the objective's sums over batches, added up in float64."""
    # All are dispatched before any is fetched.
    found = jax.device_get([parts.sums(params, place_rows(parts.mesh, batch)) for batch in batches])
    return {name: sum(float(sums[name]) for sums in found) for name in found[0]}


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
