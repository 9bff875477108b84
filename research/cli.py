"""The command ``headway``: what it understands, and what it prints.

Results go to standard output, progress and messages to standard error. Exit codes: 0 done; 1 a bug
(traceback); 2 the user's input (one line); 3 stopped early but saved, run again to go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import StoppedError, UserError, nearest

# JAX and what needs it is imported by the commands that use it: help and most errors appear at once.
if TYPE_CHECKING:
    from research.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains an experiment, or goes on with a run that was stopped."""

    workdir: str | None = None
    """Run directory; default: runs/NAME of the experiment."""
    profile: str | None = None
    """Steps to profile, as FIRST:END (END left out); the trace goes to profile/ in the run directory."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures a run on its validation text, or on all of another text (--data.path P; with --data.split
    documents or tail, on the part of it that training would hold out)."""

    checkpoint: str = "best"
    """Checkpoint to load: best (lowest validation loss), newest, or a step."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws text from a run."""

    prompt: str = ""
    """Text to go on from."""
    tokens: int | None = None
    """Most tokens to draw for a sample, which the end of a document ends earlier; default: 200, or half of
    the model's context."""
    temperature: float = 0.8
    """Temperature of the softmax; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability (nucleus)."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the likeliest one's probability."""
    count: int = 1
    """Samples to draw."""
    seed: int = 0
    """Seed of the draw."""
    checkpoint: str = "best"
    """Checkpoint to load: best (lowest validation loss), newest, or a step."""
    json: bool = False
    """Print the samples as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Shows what an experiment or a run is and costs: description, parameters, FLOPs, shardings, memory."""

    workdir: str | None = None
    """Run directory of the experiment, to show as well."""
    json: bool = False
    """Print everything as one JSON object."""


Options = Train | Evaluate | Sample | Show


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its options, what it is given, and the function that runs it."""

    options: Options
    """Defaults of its own options."""
    target: str
    """What its positional arguments are, one word each; one that ends in "..." is any number of them."""
    run: Callable[..., None]
    """Called with the positional arguments, ``options``, and ``overrides`` of the experiment's fields."""
    overrides: tuple[str, ...] | None = None
    """Fields of the experiment that may be overridden, as prefixes; None: all; empty: none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line ``arguments`` (default: the process's own) and returns the exit code."""
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except (UserError, StoppedError) as error:
        print("headway: " + " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("headway: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    command = COMMANDS[name]
    if "--help" in rest or "-h" in rest:
        print(_help(name, command, [word for word in rest if word not in ("--help", "-h")]))
        return
    from research.training.overrides import leaves, override, split_options

    own = {field for field, _ in leaves(command.options)}
    targets, given = split_options(rest, flags={"json"})
    needed = len(command.target.split())
    if len(targets) < needed or (len(targets) > needed and not command.target.endswith("...")):
        what = (
            f"needs {command.target}" if len(targets) < needed else f"unexpected argument {targets[needed]!r}"
        )
        raise UserError(f"{name}: {what}; usage: {_usage(name, command)}")
    overrides = {field: text for field, text in given.items() if field not in own}
    if command.overrides is not None:
        others = {f: t for f, t in overrides.items() if not f.startswith(command.overrides)}
        override(command.options, others, other_names=command.overrides)  # which raises: they are unknown
    options = override(command.options, {field: text for field, text in given.items() if field in own})
    command.run(*targets, options=options, overrides=overrides)


def _experiment(target: str, overrides: Mapping[str, str], command: Options) -> Experiment:
    """Returns the experiment of a file or run directory, with overrides."""
    from research.training.description import load_experiment
    from research.training.overrides import override
    from research.training.validity import validate

    own = [field.name for field in dataclasses.fields(command)]
    experiment = override(load_experiment(target), overrides, other_names=own)
    validate(experiment)
    return experiment


def _overview() -> str:
    lines = [
        f"  {_usage(name, command)}\n      {type(command.options).__doc__}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: headway COMMAND ...",
            "",
            *lines,
            "",
            "EXPERIMENT is a Python file with a function experiment(): experiments/gpt/quickstart.py, say.",
            "RUN is the directory that training wrote. headway COMMAND --help lists a command's options, and",
            "headway train EXPERIMENT --help every field of that experiment with its value.",
        ]
    )


def _usage(name: str, command: Command) -> str:
    fields = " [--FIELD VALUE ...]" if command.overrides != () else ""
    return f"headway {name} {command.target} [OPTIONS]{fields}"


def _help(name: str, command: Command, rest: list[str]) -> str:
    """Returns the options of a command, and the experiment's fields with their values in the file named."""
    parts = [f"usage: {_usage(name, command)}", "", _fields_help(command.options, flags=True)]
    if command.overrides is None:
        parts += _experiment_help(command, rest)
    return "\n".join(parts)


def _experiment_help(command: Command, rest: list[str]) -> list[str]:
    from research.training.description import load_experiment
    from research.training.experiment import Experiment
    from research.training.overrides import choices, override, split_options

    targets, given = split_options(rest, flags={"json"})
    experiment = load_experiment(targets[0]) if targets else Experiment(name="NAME")
    own = {field.name for field in dataclasses.fields(command.options)}
    experiment = override(experiment, {field: text for field, text in given.items() if field not in own})
    values = f"those of {targets[0]}" if targets else "general; a file sets its own"
    kinds = [
        f"  {option} {{{','.join(names)}}}  (default: {current}; its fields: {option} KIND --help)"
        for option, current, names in choices(experiment)
    ]
    return [
        f"Every field of the experiment is an option. The defaults here are {values}.",
        "",
        *kinds,
        "",
        _fields_help(experiment, flags=False),
    ]


def _fields_help(description: Any, *, flags: bool) -> str:
    """Returns a description's fields with type, docstring and value; with ``flags``, booleans take none."""
    import tyro

    text = io.StringIO()
    booleans = tyro.conf.FlagCreatePairsOff if flags else tyro.conf.FlagConversionOff
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        config = (tyro.conf.AvoidSubcommands, booleans)
        tyro.cli(type(description), default=description, args=["--help"], config=config)
    # Its usage line knows neither the command nor the target, and --help would be there twice.
    lines = text.getvalue().partition("\n\n")[2].splitlines()
    return "\n".join(line.rstrip() for line in lines if not line.lstrip().startswith("-h, --help"))


def _train(target: str, options: Train, overrides: Mapping[str, str]) -> None:
    experiment = _experiment(target, overrides, options)
    profile = _window(options.profile)
    directory = Path(options.workdir or (target if os.path.isdir(target) else f"runs/{experiment.name}"))

    from research.scale.host_memory import keep_freed_memory

    keep_freed_memory()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("research").setLevel(logging.INFO)

    from research.training.session import run

    result = run(experiment, directory, profile=profile, report=_message)
    if options.json:
        print(json.dumps(result.to_json()))
        return
    metrics = (f"{name.removeprefix('valid/')} {value:.4f}" for name, value in result.validation.items())
    print(f"validation after {result.step} steps: {', '.join(metrics)}")
    for line in result.conclusion.lines:
        print(line)
    print(f"run directory: {directory}")
    commands = [line.replace("{run}", shlex.quote(str(directory))) for line in result.conclusion.next]
    print("next: " + "\n      ".join(f"headway {command}" for command in commands))


def _evaluate(target: str, options: Evaluate, overrides: Mapping[str, str]) -> None:
    from research.training.language_model import evaluate
    from research.training.overrides import override
    from research.training.trained import load

    trained = load(target, options.checkpoint)
    if "data.path" in overrides:
        overrides = {"data.source": "files", **overrides}
    data = override(trained.experiment, overrides).data
    whole = "data.path" in overrides and "data.split" not in overrides
    found = evaluate(trained, data, whole=whole, report=_message)
    if options.json:
        print(json.dumps(found))
    else:
        part = "all" if whole else "the validation part"
        text = f"{part} of {data.path or data.source}"
        size = f"{found['bytes']:,} bytes, {found['tokens']:,} tokens"
        print(f"{target} at step {trained.step}, on {text} ({size}):")
        print(f"  {found['bits_per_byte']:.4f} bits per byte, {found['loss']:.4f} nats per token, ", end="")
        print(f"perplexity {found['perplexity']:.2f} per token")


def _sample(target: str, options: Sample, overrides: Mapping[str, str]) -> None:
    from research.inference.sampling import Decoding
    from research.training.language_model import continuations
    from research.training.trained import load

    if options.count < 1:
        raise UserError(f"--count {options.count}: at least 1")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}: between 0 and {2**32 - 1}")
    how = Decoding(options.temperature, options.top_k, options.top_p, options.min_p)
    trained = load(target, options.checkpoint)
    texts = continuations(
        trained.experiment.model,
        trained.params,
        trained.tokenizer,
        [options.prompt] * options.count,
        tokens=options.tokens,
        how=how,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps({"run": target, "step": trained.step, "prompt": options.prompt, "samples": texts}))
    else:
        print("\n\n---\n\n".join(texts))


def _show(target: str, options: Show, overrides: Mapping[str, str]) -> None:
    run = options.workdir or (target if os.path.isdir(target) else None)
    if run and overrides:
        raise UserError(f"show: the description of a run is what it is: leave out --{next(iter(overrides))}")
    experiment = _experiment(run or target, overrides, options)

    from research.training.summary import run_summary, summary, text

    if run:
        from research.training.trained import load

        trained = load(run, "newest")
        found = summary(experiment, trained.functions)
        found["run"] = run_summary(trained.directory, trained.params, trained.step)
    else:
        found = summary(experiment)
    print(json.dumps(found) if options.json else text(found))


def _message(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _window(profile: str | None) -> tuple[int, int] | None:
    if profile is None:
        return None
    first, _, end = profile.partition(":")
    if not (first.isdecimal() and end.isdecimal()):
        raise UserError(f"--profile: expected FIRST:END in steps, such as 10:13, found {profile!r}")
    return int(first), int(end)


COMMANDS = {
    "train": Command(Train(), "EXPERIMENT", _train),
    "evaluate": Command(Evaluate(), "RUN", _evaluate, overrides=("data.path", "data.field", "data.split")),
    "sample": Command(Sample(), "RUN", _sample, overrides=()),
    "show": Command(Show(), "EXPERIMENT|RUN", _show),
}

if __name__ == "__main__":
    sys.exit(main())
