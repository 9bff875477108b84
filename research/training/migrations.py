"""Runs of older versions: what each format changed, and how its descriptions become those of the next.

Format 2: ``initial`` is a description of a warm start, where it was the path of a run; objectives are called
``causal-lm`` and ``masked-lm``, where they were ``causallm`` and ``maskedlm``.
Format 3: sinusoids have an amplitude, which was 1 in every model; a Transformer has a dropout rate of its own
for attention weights, which was that of everything else.
Parameters are where they have been since format 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from research.errors import UserError

FORMAT = 3
"""Format of runs and checkpoints; a reader refuses a newer one."""


def _described_anew(description: dict[str, Any]) -> dict[str, Any]:
    run, objective = description.get("initial"), description.get("objective")
    if isinstance(run, str):
        description = {**description, "initial": {"kind": "warm-start", "run": run}}
    if isinstance(objective, Mapping) and objective.get("kind") in ("causallm", "maskedlm"):
        name = str(objective["kind"]).removesuffix("lm") + "-lm"
        description = {**description, "objective": {**objective, "kind": name}}
    return description


def _told_apart(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    value = {name: _told_apart(part) for name, part in value.items()}
    if value.get("kind") == "transformer" and "dropout" in value:
        value["attention_dropout"] = value["dropout"]
    positions = value.get("positions") or {}
    if positions and positions["kind"] == "sinusoidal" and value["kind"] != "transformer":
        value["positions"] = {**positions, "amplitude": 1.0}
    return value


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _described_anew, 2: _told_apart}
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
