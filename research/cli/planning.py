"""The command plan."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from research.cli.command import experiment_of
from research.errors import UserError
from research.training.progress import say


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compiles an experiment for chips that are not here: whether it fits, what it sends, how fast."""

    topology: str | None = None
    """Slice to compile for: v5e:4x4, v6e:16x16, v5p:4x4x4, v4:2x2x4 …; a node of GPUs: h100:8 … (memory from
    shapes, nothing is compiled); simulated devices of this machine: cpu:8."""
    slices: int = 1
    """Slices or nodes; the mesh axis data runs between them."""
    step: str = "train"
    """What to compile: train, eval (the loss of a batch) or sample (half the context given, half drawn)."""
    search: bool = False
    """Plan strategies x recomputation x micro-batches, and print those that nothing beats."""
    json: bool = False
    """Print everything as one JSON object."""


def plan(target: str, options: Plan, overrides: Mapping[str, str]) -> None:
    """Prints what an experiment needs on chips that are not here."""
    from research.scale.chips import CHIPS, default_platform_is_cpu, topology
    from research.training.plan import STEPS, search, text
    from research.training.plan import plan as planned

    if options.topology is None:
        raise UserError(
            f"plan: needs --topology CHIP:AxB, such as v5e:4x4; chips: {', '.join(CHIPS)}; or cpu:N"
        )
    if options.step not in STEPS:
        raise UserError(f"--step {options.step}: {', '.join(STEPS[:-1])} or {STEPS[-1]}")
    experiment = experiment_of(target, overrides, options)
    default_platform_is_cpu()
    place = topology(options.topology, options.slices)
    if options.search:
        rows = search(experiment, place, say)
        lines = (", ".join(f"{name} {value}" for name, value in row.items()) for row in rows)
        print(json.dumps(rows) if options.json else "\n".join(lines))
        return
    found = planned(experiment, place, options.step)
    print(json.dumps(found) if options.json else text(found))
