"""Runs of older versions: what each format changed, and how its descriptions become those of the next.

Format 2: ``initial`` is a description of a warm start, where it was the path of a run.
Parameters are where they have been since format 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from research.errors import UserError

FORMAT = 2
"""Format of runs and checkpoints; a reader refuses a newer one."""


def _initial_described(description: dict[str, Any]) -> dict[str, Any]:
    run = description.get("initial")
    if isinstance(run, str):
        description = {**description, "initial": {"kind": "warm-start", "run": run}}
    return description


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _initial_described}
"""From each format to the next; takes and returns an experiment's description as JSON."""


def migrated(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description that a run of any format keeps, in today's; its "format" is left out.

    Raises:
      UserError: the format is newer than this version.
    """
    description = dict(stored)
    found = description.pop("format", 1)
    if found not in range(1, FORMAT + 1):
        raise UserError(
            f"its format is {found}, this version of headway reads 1 to {FORMAT}: upgrade headway"
        )
    for number in range(found, FORMAT):
        description = MIGRATIONS[number](description)
    return description
