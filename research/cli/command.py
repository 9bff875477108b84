"""What a command is, and what commands share."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from research.errors import LostError, StoppedError, UserError, not_written, out_of_memory
from research.training.progress import say

# JAX and what needs it is imported by the commands that use it: help and most errors appear at once.
if TYPE_CHECKING:
    from research.training.description import Description
    from research.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its options, what it is given, and the function that runs it."""

    options: Any
    """Defaults of its own options."""
    target: str
    """What its positional arguments are, one word each; one that ends in "..." is any number of them."""
    run: Callable[..., None]
    """Called with the positional arguments, ``options``, and ``overrides`` of the experiment's fields."""
    overrides: tuple[str, ...] | None = None
    """Fields of the experiment that may be overridden, as prefixes; None: all; empty: none."""


def experiment_of(target: str, overrides: Mapping[str, str], command: Any) -> Experiment:
    """Returns the experiment of a file or run directory, with overrides; "from" names a run to start from."""
    from research.training.description import load_experiment

    return _resolved(load_experiment(target), overrides, command)


def description_of(target: str, overrides: Mapping[str, str], command: Any) -> Description:
    """Returns the experiment or phrase-based system of a file or run directory, as `experiment_of` does."""
    from research.training.description import load_description

    return _resolved(load_description(target), overrides, command)


def _resolved(description: Any, overrides: Mapping[str, str], command: Any) -> Any:
    from research.training.experiment import Experiment
    from research.training.overrides import override
    from research.training.validity import validate

    own = [*(field.name for field in dataclasses.fields(command)), "from"]
    if isinstance(description, Experiment) and "from" in overrides:
        from research.interchange.hub import as_run
        from research.training.warm_start import started_from

        description = started_from(description, as_run(overrides["from"], say))
        overrides = {name: text for name, text in overrides.items() if name != "from"}
    description = override(description, overrides, other_names=own)
    if isinstance(description, Experiment):
        validate(description)
    else:
        description.validate()
    return description


def complain(error: BaseException) -> int:
    """Says what went wrong, in one line if it is no bug, and returns the exit code."""
    if isinstance(error, (UserError, StoppedError, LostError)):
        say("headway: " + " ".join(str(error).split()))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        say("headway: interrupted")
        return 130
    if (lacking := out_of_memory(error)) is not None:
        say(
            f"headway: out of memory: {lacking}; make the model, the batch or its length smaller, raise"
            " --accumulate, or take more devices (headway show EXPERIMENT predicts what each needs)"
        )
        return UserError.exit_code
    if (refused := not_written(error)) is not None:
        say(f"headway: {refused}")
        return UserError.exit_code
    traceback.print_exception(error)
    return 1
