"""Means of checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research.errors import UserError
from research.interchange.runs import ORIGIN, make_run, refuse_run
from research.training.run_directory import open_run
from research.training.trained import load


def average_run(source: str, out: Path, last: int) -> dict[str, Any]:
    """Makes a run whose parameters are the mean of a run's ``last`` newest checkpoints (Vaswani et al., 2017,
    section 6.1); returns their steps, as JSON values.

    Raises:
      UserError: the run has fewer checkpoints, or ``out`` is a run already.
    """
    run = open_run(source)
    refuse_run(out)
    steps = run.steps()[-last:]
    if len(steps) < last:
        raise UserError(
            f"{source} has {len(steps)} checkpoints, {last} are to be averaged; train with "
            f"--checkpointing.keep-last {last}, or use --last {len(steps)}"
        )
    mean: Any = None
    for step in steps:
        trained = load(source, str(step))
        share = jax.tree.map(lambda x: x / len(steps), trained.params)
        mean = share if mean is None else jax.tree.map(jnp.add, mean, share)
    own = (run.experiment.name, ORIGIN)
    files = {file.name: file.read_text("utf-8") for file in run.path.glob("*.json") if file.name not in own}
    files[ORIGIN] = json.dumps({"source": str(source), "steps": steps})
    experiment = trained.experiment
    if experiment.initial is not None:  # what was loaded has adapters merged
        experiment = dataclasses.replace(
            experiment, initial=dataclasses.replace(experiment.initial, adapters=None)
        )
    make_run(out, experiment, files, mean, steps[-1])
    return {"run": str(out), "source": str(source), "steps": steps}
