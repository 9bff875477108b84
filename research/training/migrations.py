"""Runs of older versions: what each format changed, and how its descriptions become those of the next.

Format 2: ``initial`` is a description of a warm start, where it was the path of a run; objectives are called
``causal-lm`` and ``masked-lm``, where they were ``causallm`` and ``maskedlm``.
Format 3: sinusoids have an amplitude, which was 1 in every model; a Transformer has a dropout rate of its own
for attention weights, which was that of everything else.
Format 4: Mamba-2's convolution has a bias, which it had not; the norm after a recurrence has an epsilon of
its own, which was 1e-5. Rotary positions before a Linear Transformer's features are not computed any more.
Parameters are where they have been since format 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from research.errors import UserError

FORMAT = 4
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


_RECURRENT = (
    "linear-transformer", "performer", "based", "retention", "gla", "mamba2", "delta-net", "gated-delta-net",
    "kimi-delta",
)  # fmt: skip


def _as_it_began(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_it_began(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    value = {name: _as_it_began(part) for name, part in value.items()}
    if value.get("kind") in _RECURRENT:
        value["norm_epsilon"] = 1e-5
        value["convolution_bias"] = False
    positions = value.get("positions")
    own = (part for name, part in value.items() if name != "cross_attention")  # which has no positions
    if isinstance(positions, dict) and positions.get("kind") == "rotary" and any(map(_turns, own)):
        raise UserError(
            "its Linear Transformer turns queries and keys before its features, which format 4 does not "
            "compute any more; train it again"
        )
    return value


def _turns(attention: Any) -> bool:
    """Returns whether positions act in a Linear Transformer, or in one of a pattern's."""
    if not isinstance(attention, dict):
        return False
    if attention.get("kind") == "interleaved":
        placed = attention["positions_in"]
        return any(_turns(attention[name]) for name in ("first", "second") if placed in ("both", name))
    return attention.get("kind") == "linear-transformer"


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _described_anew,
    2: _told_apart,
    3: _as_it_began,
}
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
