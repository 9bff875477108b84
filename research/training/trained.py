"""Loading what a run has learned."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax

from research.errors import UserError
from research.scale.mesh import make_mesh
from research.training.checkpoint import restore
from research.training.description import load_experiment
from research.training.experiment import Experiment, Sharding
from research.training.program import Functions, functions
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
    """Parameters to evaluate and sample with: their moving average if the run keeps one."""


def load(path: str | Path, checkpoint: str = "best") -> Trained:
    """Returns a run's checkpoint ("best", "newest" or a step), on the devices that are here.

    Raises:
      UserError: no run directory, no such checkpoint, or one that is damaged.
    """
    directory = open_run(path)
    experiment = load_experiment(directory.experiment)
    step = directory.checkpoint_step(checkpoint)
    parts = _functions_here(experiment)
    name = "params" if experiment.ema is None else "average"
    restored = restore(directory, {name: getattr(parts.abstract_state, name)}, step)
    tokenizer = experiment.data.load_tokenizer(directory.path)
    return Trained(directory, experiment, step, tokenizer, parts, restored.state[name])


def best_of(
    directory: RunDirectory, experiment: Experiment, parts: Functions
) -> tuple[Any, dict[str, float]]:
    """Returns the parameters to evaluate of a run's best checkpoint, on the run's mesh, and its metrics."""
    name = "params" if experiment.ema is None else "average"
    step = directory.best()
    restored = restore(directory, {name: getattr(parts.abstract_state, name)}, step)
    return restored.state[name], directory.checkpoint_metrics(step)


def _functions_here(experiment: Experiment) -> Functions:
    """Returns the functions on the devices that are here (as many as divide the batch)."""
    rows = experiment.data.batch // experiment.accumulate
    mesh = make_mesh(devices=jax.local_devices()[: math.gcd(jax.local_device_count(), rows)])
    try:
        return functions(dataclasses.replace(experiment, sharding=Sharding("fsdp")), mesh)
    except UserError:  # a width that does not divide
        return functions(dataclasses.replace(experiment, sharding=Sharding("replicated")), mesh)
