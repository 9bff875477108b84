"""The command ``headway``: what it understands, and what it prints.

Results go to standard output, progress and messages to standard error. Exit codes: 0 done; 1 a bug
(traceback); 2 the user's input (one line); 3 stopped early but saved, run again to go on; 4 another process
of the run was lost or nothing moved any more, run again to go on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from research.cli.command import Command, complain
from research.cli.commands import COMMANDS
from research.errors import LostError, StoppedError, UserError, nearest, not_written, out_of_memory


def main(
    arguments: Sequence[str] | None = None,
    commands: Mapping[str, Command] = COMMANDS,
    program: str = "headway ",
) -> int:
    """Runs the command line ``arguments`` (default: the process's own) and returns the exit code.

    Args:
      arguments: the command's name and what follows it.
      commands: the commands there are, by name.
      program: what stands before a command's name where it is called.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as what is read is, wherever this runs
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments), commands, program)
        sys.stdout.flush()
    except (UserError, StoppedError, LostError, KeyboardInterrupt) as error:
        return complain(error)
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if out_of_memory(error) is None and not_written(error) is None:
            raise
        return complain(error)
    return 0


def _dispatch(arguments: list[str], commands: Mapping[str, Command], program: str) -> None:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        return
    name, *rest = arguments
    if name not in commands:
        raise UserError(f"unknown command {name!r}{nearest(name, commands)}")
    command = commands[name]
    if "--help" in rest or "-h" in rest:
        print(_help(program + name, command, [word for word in rest if word not in ("--help", "-h")]))
        return
    from research.training.overrides import override

    targets, own, overrides = _split(command, rest)
    needed = len(command.target.split())
    if len(targets) < needed or (len(targets) > needed and not command.target.endswith("...")):
        what = (
            f"needs {command.target}" if len(targets) < needed else f"unexpected argument {targets[needed]!r}"
        )
        raise UserError(f"{name}: {what}; usage: {_usage(program + name, command)}")
    if command.overrides is not None:
        others = {f: t for f, t in overrides.items() if not f.startswith(command.overrides)}
        override(command.options, others, other_names=command.overrides)  # which raises: they are unknown
    command.run(*targets, options=override(command.options, own), overrides=overrides)


def _split(command: Command, rest: list[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Returns the positional arguments, the command's own options, and all other options."""
    from research.training.overrides import split_options

    flags = {field.name: isinstance(field.default, bool) for field in dataclasses.fields(command.options)}
    targets, given = split_options(rest, flags=[name for name, flag in flags.items() if flag])
    own = {name: text for name, text in given.items() if name in flags}
    return targets, own, {name: text for name, text in given.items() if name not in flags}


def _overview() -> str:
    lines = [
        f"  {_usage(f'headway {name}', command)}\n      {type(command.options).__doc__}"
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
    return f"{name} {command.target} [OPTIONS]{fields}"


def _help(name: str, command: Command, rest: list[str]) -> str:
    """Returns the options of a command, and the experiment's fields with their values in the file named."""
    parts = [f"usage: {_usage(name, command)}", "", _fields_help(command.options, flags=True)]
    if command.overrides is None:
        parts += _experiment_help(command, rest)
    return "\n".join(parts)


def _experiment_help(command: Command, rest: list[str]) -> list[str]:
    from research.training.description import Description, load_description
    from research.training.experiment import Experiment
    from research.training.overrides import choices, override

    targets, _, overrides = _split(command, rest)
    overrides.pop("from", None)  # the defaults are those of the file
    experiment: Description = load_description(targets[0]) if targets else Experiment(name="NAME")
    experiment = override(experiment, overrides)
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
