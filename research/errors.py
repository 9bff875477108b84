"""Errors a user can cause. Each is one clear line; the command prints it and exits with the class's code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk that takes no more."""


class UserError(Exception):
    """Bad input: what is wrong, where, and the nearest valid choice, in one line. Exit code 2."""

    exit_code = 2


class StoppedError(Exception):
    """Stopped early with everything saved; running the same command again goes on. Exit code 3."""

    exit_code = 3


class LostError(Exception):
    """Another process of the run is gone, or nothing moves any more; what was saved is safe. Exit code 4."""

    exit_code = 4

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; the same command on all processes goes on from the last checkpoint")


class NonFiniteError(UserError):
    """NaN or infinity in the loss or its gradient.

    Attributes:
      step: the step whose update was not applied.
      path: path of the first tensor that is not finite.
      batch: file that holds the batch, for replay.
    """

    def __init__(self, step: int, path: str, batch: str) -> None:
        super().__init__(
            f"not finite at step {step}: first bad tensor is {path}; its batch is saved in {batch}"
        )
        self.step, self.path, self.batch = step, path, batch


def unwrapped(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, and those that it was raised from or while handling."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def out_of_memory(error: BaseException) -> str | None:
    """Returns what the memory of a device, or this machine's, did not suffice for; None if it is something
    else."""
    for seen in unwrapped(error):
        text = str(seen)
        refused = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
        if isinstance(seen, MemoryError) or (type(seen).__name__ == "JaxRuntimeError" and refused):
            return (text.splitlines() or ["no more can be had"])[0]
    return None


def not_written(error: BaseException) -> str | None:
    """Returns which file a full disk did not take; None if it is something else."""
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; make room and run the same command again"
    return None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the choice nearest to ``name``, else the list of choices."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(choices)}"
