"""What the launchers share: an experiment is checked here, before anything is paid for, and made into a job.

A launcher fills in a template and runs the resulting script; ``--dry-run`` prints that script instead.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from research.cli.command import Command, experiment_of
from research.cli.experiments import Train
from research.cli.main import main
from research.errors import UserError
from research.training.overrides import override

ROOT = Path(__file__).resolve().parents[1]
"""The source tree; what runs elsewhere runs a copy of it."""
TEMPLATES = Path(__file__).parent / "templates"
RESTART = "3|4|134|137|143"
"""Exit codes of ``headway train`` after which the same command goes on: saved and stopped; another process
lost; ended by JAX for that reason; killed, with and without notice, when there was nothing to save."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What every launcher takes."""

    name: str | None = None
    """Name of the job; default: the experiment's. One that runs under this name is followed, not doubled."""
    workdir: str | None = None
    """Run directory, as the processes see it; default: the name, where this launcher keeps runs."""
    dry_run: bool = False
    """Print exactly what would be run, and run nothing."""


@dataclasses.dataclass(frozen=True)
class Job:
    """An experiment that has been checked, as it will be trained."""

    name: str
    """Lower case letters, digits and dashes: what every scheduler takes."""
    command: str
    """``headway train`` with experiment, overrides and run directory, quoted for a shell."""


def checked(
    target: str, options: Options, overrides: Mapping[str, str], *, runs: str, where: str | None = None
) -> Job:
    """Returns the job of an experiment.

    Args:
      target: the experiment's file.
      options: the launcher's.
      overrides: fields of the experiment, and options of ``headway train``.
      runs: directory of runs, for the default of ``--workdir``.
      where: where the source tree lies for the processes; None: here.

    Raises:
      UserError: the experiment does not hold together, its name is no name of a job, or it lies outside of
        the source tree though it is to run elsewhere.
    """
    own = {field.name for field in dataclasses.fields(Train)}
    override(Train(), {name: text for name, text in overrides.items() if name in own})
    experiment = experiment_of(
        target, {name: text for name, text in overrides.items() if name not in own}, Train()
    )
    name = options.name or re.sub(r"[^a-z0-9]+", "-", experiment.name.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"--name {name!r}: a letter, then letters, digits and dashes, all lower case, at most 40 of them"
        )
    path = Path(target).resolve()
    if where is not None:
        if not path.is_relative_to(ROOT):
            raise UserError(f"{target} lies outside of {ROOT}, of which the job gets a copy: move it there")
        path = Path(where) / path.relative_to(ROOT)
    words = ["headway", "train", str(path), "--workdir", options.workdir or f"{runs}/{name}"]
    for field, text in overrides.items():
        words += ["--" + field.replace("_", "-"), text]
    return Job(name, shlex.join(words))


def render(template: str, **values: object) -> str:
    """Returns a template of the folder templates/ with ``@{name}`` filled in wherever it stands.

    A value of several lines is indented as its first line is.
    """
    lines = (TEMPLATES / template).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(_filled(line, values) for line in lines)


def _filled(line: str, values: Mapping[str, object]) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return re.sub(r"@\{(\w+)\}", lambda found: str(values[found[1]]).replace("\n", "\n" + indent), line)


def run(script: str, *, dry_run: bool, needs: str, install: str) -> None:
    """Runs a script by bash, or prints it.

    Args:
      script: the script.
      dry_run: print it.
      needs: the command it needs.
      install: how to get that.

    Raises:
      UserError: the command is not there.
    """
    if dry_run:
        print(script, end="")
        return
    if shutil.which(needs) is None:
        raise UserError(f"{needs} is not installed: {install}")
    sys.exit(subprocess.run(["bash", "-c", script], check=False).returncode)


def launcher(name: str, options: Options, launch: Callable[..., None]) -> None:
    """Runs the command line of a launcher and ends the process with its exit code."""
    command = Command(options, "EXPERIMENT", launch)
    sys.exit(main([name, *sys.argv[1:]], {name: command}, "launch/"))
