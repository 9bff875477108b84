"""Pre-training from a description to a result: prepares the text, trains, and measures what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from research.scale.mesh import make_mesh
from research.training.description import to_json
from research.training.experiment import Experiment
from research.training.loop import train
from research.training.program import build, functions
from research.training.progress import Display
from research.training.run_directory import claim
from research.training.trained import continuations, is_python, whole_validation
from research.training.validity import validate

if TYPE_CHECKING:
    from research.data.text import PreparedText
    from research.training.loop import Outcome


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run came to."""

    run: str
    """Run directory."""
    step: int
    """Steps taken, over all sessions."""
    seconds: float
    """Wall-clock seconds in the training loop, over all sessions."""
    tokens_per_second: float
    """Mean of this session."""
    validation: dict[str, float]
    """Loss (nats per token) and bits per byte; over the whole validation text where there are baselines."""
    baselines: dict[str, float]
    """Bits per byte of the same text, by name; empty if the experiment asks for none."""
    samples: list[str]
    """Samples that start a document."""
    python: int | None
    """How many samples parse as Python; None where the text is not Python."""


def pretrain(
    experiment: Experiment,
    directory: Path,
    *,
    profile: tuple[int, int] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Result:
    """Trains an experiment in a run directory, or goes on with the run that is there.

    Args:
      experiment: what to train.
      directory: run directory; made if it is not there.
      profile: (first, end) steps to trace.
      report: receives messages.

    Raises:
      UserError: the description does not hold together or does not fit the devices, the text cannot be read,
        the run directory is in use or of another experiment, the disk is full, or the loss is not finite.
      StoppedError: SIGTERM or Ctrl-C; everything is saved.
    """
    sharding = experiment.sharding
    mesh = make_mesh(sharding.data, sharding.fsdp, sharding.tensor, sharding.sequence)
    validate(experiment, mesh.shape)
    # Everything the user can still get wrong comes before the run directory: a mistake leaves none behind.
    prepared = experiment.data.prepare(vocabulary=experiment.model.vocabulary, report=report)
    program = build(experiment, prepared)
    program.batches()
    with claim(directory, to_json(experiment), primary=jax.process_index() == 0) as run:
        run.keep_tokenizer(prepared.tokenizer.to_json())
        outcome = train(program, experiment, run, display=Display(), profile=profile)
        return _result(experiment, directory, prepared, outcome, report)


def _result(
    experiment: Experiment,
    directory: Path,
    prepared: PreparedText,
    outcome: Outcome,
    report: Callable[[str], None],
) -> Result:
    params = outcome.state.evaluated
    validation, baselines = outcome.validation, {}
    if experiment.baselines:
        from research.evaluation import ngram

        report("measuring the whole validation text, and baselines on it")
        validation = whole_validation(experiment, functions(experiment), prepared.valid, params)
        baselines = ngram.baselines(prepared)
    samples: list[str] = []
    if experiment.samples:
        report(f"drawing {experiment.samples} samples")
        prompts = [""] * experiment.samples
        samples = continuations(experiment.model, params, prepared.tokenizer, prompts, seed=experiment.seed)
    return Result(
        run=str(directory),
        step=outcome.step,
        seconds=outcome.seconds,
        tokens_per_second=outcome.tokens_per_second,
        validation=validation,
        baselines=baselines,
        samples=samples,
        python=sum(map(is_python, samples)) if experiment.data.source == "standard-library" else None,
    )
