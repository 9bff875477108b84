"""Starting from what another run has learned: its model, its tokenizer, and the parameters that fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.training.description import kind, load_experiment
from research.training.experiment import Experiment
from research.training.paths import path_name
from research.training.run_directory import open_run
from research.training.state import State
from research.training.trained import load

_BODY = "bert/"
"""Where a classifier keeps its encoder; the encoder's own run keeps it at the top."""


def started_from(experiment: Experiment, run: str) -> Experiment:
    """Returns the experiment with the model and the tokenizer of a run, from whose parameters it starts.

    A classifier takes the run's encoder, whether it was trained with a masked LM's heads or a classifier's.

    Raises:
      UserError: no such run, or its model is of another kind.
    """
    directory = open_run(run)
    own, there = experiment.model, load_experiment(directory.experiment).model
    if isinstance(own, Classifier) and isinstance(there, (BERT, Classifier)):
        model: Any = dataclasses.replace(own, bert=there if isinstance(there, BERT) else there.bert)
    elif type(own) is type(there):
        model = there
    else:
        raise UserError(
            f"--from {run}: its model is {kind(type(there))!r}, this experiment's {kind(type(own))!r}"
        )
    data = experiment.data
    if any(field.name == "tokenizer" for field in dataclasses.fields(data)):
        changed: Any = {"tokenizer": str(directory.path / "tokenizer.json")}
        data = dataclasses.replace(data, **changed)
    return dataclasses.replace(experiment, model=model, data=data, initial=str(run))


def warm_start(run: str, state: State, report: Callable[[str], None]) -> State:
    """Returns a fresh state with those parameters that the run's best checkpoint has as well.

    Args:
      run: directory of the run.
      state: the fresh state; the optimizer's memory stays as it is.
      report: is told which parameters were taken, which are new, and which of the run's are not used.

    Raises:
      UserError: no such run, a parameter of another shape, or nothing in common.
    """
    trained = load(run)
    there = {
        path_name(path).removeprefix(_BODY): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params)
    }
    taken: list[str] = []
    fresh: list[str] = []

    def choose(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        found = there.get(name.removeprefix(_BODY))
        if found is None:
            fresh.append(name)
            return leaf
        if found.shape != leaf.shape:
            here, other = (" x ".join(map(str, array.shape)) for array in (leaf, found))
            raise UserError(
                f"{name} is {here} here and {other} in {run}: the model must be the run's (--from RUN takes "
                "it over)"
            )
        taken.append(name)
        return jax.device_put(jax.device_get(found), leaf.sharding)

    params = jax.tree.map_with_path(choose, state.params)
    if not taken:
        raise UserError(f"{run} has no parameter in common with this model")
    unused = sorted(there.keys() - {name.removeprefix(_BODY) for name in taken})
    size = sum(math.prod(there[name.removeprefix(_BODY)].shape) for name in taken)
    report(f"from {run} at step {trained.step}: {len(taken)} arrays, {size:,} parameters")
    report(f"new: {', '.join(fresh) or 'none'}")
    report(f"of the run's, not used: {', '.join(unused) or 'none'}")
    average = None if state.average is None else jax.tree.map(jax.numpy.copy, params)
    return dataclasses.replace(state, params=params, average=average)
