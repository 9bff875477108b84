"""Commands on experiments: train, show."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from research.cli.command import complain, description_of
from research.data.object_store import located
from research.errors import UserError
from research.training.progress import say
from research.training.run_directory import is_run, on_disk

if TYPE_CHECKING:
    from research.training.conclusion import Result
    from research.training.experiment import Experiment
    from research.training.phrase_based import PhraseBased
    from research.training.word_alignment import WordAlignment


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains an experiment, or goes on with a run that was stopped; with --from RUN, it starts from the
    model, tokenizer and parameters of another run."""

    workdir: str | None = None
    """Run directory; default: runs/NAME of the experiment."""
    profile: str | None = None
    """Steps to profile, as FIRST:END (END left out); the trace goes to profile/ in the run directory."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 of several listens, with --processes and --process; default: what JAX
    finds in the environment of Cloud TPU, GKE, Slurm or Open MPI, else one process."""
    processes: int | None = None
    """How many processes train together, with --coordinator."""
    process: int | None = None
    """Which of them this one is, from 0, with --coordinator."""
    watchdog: float | None = None
    """Seconds without a finished step, evaluation or save after which the process prints the stacks of its
    threads and ends with code 4; default: 1800 where there are several processes."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Shows what an experiment or a run is and costs: description, parameters, FLOPs, shardings, memory."""

    workdir: str | None = None
    """Run directory of the experiment, to show as well."""
    json: bool = False
    """Print everything as one JSON object."""


def train(target: str, options: Train, overrides: Mapping[str, str]) -> None:
    """Trains, and prints what came of it."""
    description = description_of(target, overrides, options)
    profile = _window(options.profile)
    if options.watchdog is not None and options.watchdog <= 0:
        raise UserError(f"--watchdog {options.watchdog:g}: above 0, in seconds")
    directory = located(options.workdir or (target if is_run(target) else f"runs/{description.name}"))
    located(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))  # or JAX would ask for TensorFlow, late

    from research.scale.host_memory import keep_freed_memory

    keep_freed_memory()
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("research").setLevel(logging.INFO)

    from research.training.experiment import Experiment

    if isinstance(description, Experiment):
        result = _train_network(description, directory, profile, options)
        if result is None:  # one process speaks for all
            return
    else:
        result = _train_statistical(description, on_disk(directory), options)
    if options.json:
        print(json.dumps(result.to_json()))
        return
    metrics = (f"{name.removeprefix('valid/')} {value:.4f}" for name, value in result.validation.items())
    print(f"validation after {result.step} steps: {', '.join(metrics).replace('_', ' ')}")
    for line in result.conclusion.lines:
        print(line)
    print(f"run directory: {directory}")
    commands = [line.replace("{run}", shlex.quote(str(directory))) for line in result.conclusion.next]
    print("next: " + "\n      ".join(f"headway {command}" for command in commands))


def _train_network(
    experiment: Experiment, directory: Path, profile: tuple[int, int] | None, options: Train
) -> Result | None:
    """Trains by steps; returns what came of it on the first process, None on the others."""
    import jax

    from research.scale.hosts import join, together
    from research.training.session import run

    join(options.coordinator, options.processes, options.process)
    with together(complain):
        first, several = jax.process_index() == 0, jax.process_count() > 1
        result = run(
            experiment,
            directory,
            profile=profile,
            patience=options.watchdog or (1800.0 if several else None),
            report=say if first else lambda text: None,
        )
    return result if first else None


def _train_statistical(description: PhraseBased | WordAlignment, directory: Path, options: Train) -> Result:
    from research.training import alignment_training, phrase_training
    from research.training.word_alignment import WordAlignment

    for name in ("profile", "coordinator", "processes", "process", "watchdog"):
        if getattr(options, name) is not None:
            raise UserError(f"train: --{name} is for what trains by steps: leave it out")
    if isinstance(description, WordAlignment):
        from research.cli.alignment import share_out

        share_out()
        return alignment_training.run(description, directory, report=say)[0]
    return phrase_training.run(description, directory, report=say)


def show(target: str, options: Show, overrides: Mapping[str, str]) -> None:
    """Prints what an experiment or a run is."""
    from research.training.description import to_json
    from research.training.run_directory import check_same_experiment, open_run

    run = options.workdir or (target if is_run(target) else None)
    if run and overrides:
        raise UserError(f"show: the description of a run is what it is: leave out --{next(iter(overrides))}")
    description = description_of(run or target, overrides, options)
    if run and not is_run(target):
        asked = description_of(target, {}, options)
        check_same_experiment(open_run(run), to_json(asked))

    from research.training.experiment import Experiment

    if isinstance(description, Experiment):
        _show_network(description, run, options)
    else:
        _show_statistical(description, run, options)


def _show_statistical(description: PhraseBased | WordAlignment, run: str | None, options: Show) -> None:
    from research.training import trained_aligner, trained_phrases
    from research.training.description import to_json
    from research.training.summary import description_lines
    from research.training.word_alignment import WordAlignment

    if run is None:
        found = to_json(description)
        print(json.dumps({"experiment": found}) if options.json else "\n".join(description_lines(found, "")))
    elif isinstance(description, WordAlignment):
        found = trained_aligner.summary(Path(run))
        print(json.dumps(found) if options.json else trained_aligner.text(found))
    else:
        found = trained_phrases.load(run).summary()
        print(json.dumps(found) if options.json else trained_phrases.text(found))


def _show_network(experiment: Experiment, run: str | None, options: Show) -> None:
    from research.training.summary import run_summary, summary, text

    if run:
        from research.training.trained import load

        trained = load(run, "newest")
        found = summary(experiment, trained.functions)
        found["run"] = run_summary(trained.directory, trained.params, trained.step)
    else:
        found = summary(experiment)
    print(json.dumps(found) if options.json else text(found))


def _window(profile: str | None) -> tuple[int, int] | None:
    if profile is None:
        return None
    first, _, end = profile.partition(":")
    if not (first.isdecimal() and end.isdecimal()):
        raise UserError(f"--profile: expected FIRST:END in steps, such as 10:13, found {profile!r}")
    return int(first), int(end)
