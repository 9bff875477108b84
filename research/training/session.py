"""One session of an experiment, from its description to a result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.objectives.causal_lm import CausalLM
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.objectives.recall import Recall
from research.objectives.translation import Translation
from research.scale.hosts import agreed
from research.training import classification, language_model, masked_language_model, recall, translation
from research.training.conclusion import Conclusion, Result
from research.training.description import to_json
from research.training.experiment import Experiment
from research.training.loop import train
from research.training.program import build, functions, mesh_of, model_parameters
from research.training.progress import Display
from research.training.run_directory import claim
from research.training.trained import best_of
from research.training.validity import validate
from research.training.warm_start import warm_start

CONCLUSIONS: dict[type, Callable[..., Conclusion]] = {
    CausalLM: language_model.conclude,
    MaskedLM: masked_language_model.conclude,
    Classification: classification.conclude,
    Recall: recall.conclude,
    Translation: translation.conclude,
}
"""What is measured at the end, by objective: (experiment, prepared, functions, parameters, report)."""


def run(
    experiment: Experiment,
    directory: Path,
    *,
    profile: tuple[int, int] | None = None,
    patience: float | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Result:
    """Trains an experiment in a run directory, or goes on with the run that is there.

    Args:
      experiment: what to train.
      directory: run directory; made if it is not there.
      profile: (first, end) steps to trace.
      patience: seconds without a finished step after which the process ends with code 4 (see ``Watchdog``).
      report: receives messages.

    Raises:
      UserError: the description does not hold together or does not fit the devices, the data cannot be read,
        the run directory is in use or of another experiment, the disk is full, or the loss is not finite.
      StoppedError: SIGTERM or Ctrl-C; everything is saved.
    """
    # Everything the user can still get wrong comes before the run directory: a mistake leaves none behind.
    with agreed():
        mesh = mesh_of(experiment)
        validate(experiment, mesh.shape)
        model: Any = experiment.model
        own = getattr(model, "source_vocabulary", None)  # of models that translate
        sizes = {} if own is None else {"source_vocabulary": own}
        prepared = experiment.data.prepare(vocabulary=model.vocabulary, **sizes, report=report)
        parts = functions(experiment, mesh)
        program = build(experiment, prepared, parts)
        program.batches()
    if experiment.initial is not None:
        tokenizer = getattr(prepared, "tokenizer", None)
        program = dataclasses.replace(
            program, init=lambda: warm_start(experiment, parts.init(), report, tokenizer)
        )
    with contextlib.ExitStack() as stack:
        with agreed():
            primary = jax.process_index() == 0
            owned = stack.enter_context(claim(directory, to_json(experiment), primary=primary))
            owned.keep(prepared.files())
        # One process speaks for all.
        display = Display(sys.stderr if primary else stack.enter_context(open(os.devnull, "w")))
        outcome = train(program, experiment, owned, display=display, profile=profile, patience=patience)
        step, params, validation = outcome.step, outcome.state.evaluated, outcome.validation
        if experiment.evaluation.patience is not None:
            step, params, validation = best_of(owned, experiment, parts)
        conclude = CONCLUSIONS[type(experiment.objective)]
        conclusion = conclude(experiment, prepared, parts, model_parameters(experiment, params), report)
    return Result(
        run=str(directory),
        step=step,
        seconds=outcome.seconds,
        tokens_per_second=outcome.tokens_per_second,
        validation=conclusion.values.get("validation", validation),
        conclusion=conclusion,
    )
