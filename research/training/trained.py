"""Loading what a run has learned."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.scale.mesh import make_mesh
from research.training.checkpoint import restore
from research.training.description import load_experiment
from research.training.eight_bit import MARK, dequantized, quantized
from research.training.experiment import Experiment, Model, Sharding
from research.training.program import Functions, functions, model_parameters
from research.training.run_directory import RunDirectory, open_run


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, ready to use."""

    directory: RunDirectory
    experiment: Experiment
    step: int
    """Steps that the checkpoint was trained for."""
    tokenizer: Any
    """What the run's data turns text into tokens with."""
    functions: Functions
    params: Any
    """Parameters to evaluate and sample with: their moving average if the run keeps one, adapters merged."""

    @property
    def model(self) -> Model:
        """The description of the model."""
        return self.experiment.model

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Returns what the model makes of inputs (see its module's call), with these parameters; jitted."""
        return _applied(self.model)({"params": self.params}, *inputs, **named)


@functools.cache
def _applied(model: Model) -> Any:
    return jax.jit(model.build().apply)


def load(path: str | Path, checkpoint: str = "best", *, codes: bool = False) -> Trained:
    """Returns a run's checkpoint ("best", "newest" or a step), on the devices that are here.

    Attention is computed by the engine that serves here, whichever the run asked for.

    Args:
      path: the run directory.
      checkpoint: which one.
      codes: whether kernels that are kept as 8-bit integers stay so (`EightBit`), not float32.

    Raises:
      UserError: no run directory, no such checkpoint, one that is damaged, or a tokenizer that is not the
        run's: it has more tokens than the model knows.
    """
    directory = open_run(path)
    experiment = _on_any_device(load_experiment(directory.experiment))
    step = directory.checkpoint_step(checkpoint)
    parts = _functions_here(experiment)
    tokenizer, known = experiment.data.load_tokenizer(directory.path), experiment.model.vocabulary
    if tokenizer is not None and tokenizer.vocabulary > known:
        raise UserError(
            f"{directory}: {tokenizer.FILE} has {tokenizer.vocabulary} tokens, the model's vocabulary only "
            f"{known}: it is not the tokenizer that the run was trained with"
        )
    params = model_parameters(experiment, _restored(directory, experiment, parts, step, codes=codes))
    return Trained(directory, experiment, step, tokenizer, parts, params)


def best_of(
    directory: RunDirectory, experiment: Experiment, parts: Functions
) -> tuple[int, Any, dict[str, float]]:
    """Returns step, parameters to evaluate (on the run's mesh) and metrics of a run's best checkpoint."""
    step = directory.best()
    return step, _restored(directory, experiment, parts, step), directory.checkpoint_metrics(step)


def evaluated(experiment: Experiment) -> str:
    """Returns the field of a state that has the parameters to evaluate and sample with."""
    return "params" if experiment.ema is None else "average"


def _restored(
    directory: RunDirectory, experiment: Experiment, parts: Functions, step: int, *, codes: bool = False
) -> Any:
    """Returns the parameters to evaluate of a checkpoint."""
    name = evaluated(experiment)
    abstract = getattr(parts.abstract_state, name)
    if not (directory.path / MARK).exists():
        return restore(directory, {name: abstract}, step).state[name]
    everywhere = NamedSharding(parts.mesh, PartitionSpec())
    kept = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(quantized, abstract),
    )
    found = restore(directory, {name: kept}, step).state[name]
    if codes:
        return found
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.device_put(dequantized(found, abstract), shardings)


def _on_any_device(experiment: Experiment) -> Experiment:
    """Returns the experiment without the engine it asks for, which may need devices that are not here."""
    model: Any = experiment.model
    if not hasattr(model, "engine"):
        return experiment
    return dataclasses.replace(experiment, model=dataclasses.replace(model, engine="auto"))


def _functions_here(experiment: Experiment) -> Functions:
    """Returns the functions on the devices that are here (as many as divide the batch)."""
    rows = experiment.data.batch // experiment.accumulate
    mesh = make_mesh(devices=jax.local_devices()[: math.gcd(jax.local_device_count(), rows)])
    try:
        return functions(dataclasses.replace(experiment, sharding=Sharding("fsdp")), mesh)
    except UserError:  # a width that does not divide
        return functions(dataclasses.replace(experiment, sharding=Sharding("replicated")), mesh)
