"""Commands on runs of masked language models: fill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from research.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fill:
    """Shows what a run of a masked language model puts in the place of each [MASK] of a text."""

    top: int = 5
    """Candidates to show for each gap."""
    checkpoint: str = "best"
    """Checkpoint to load: best (lowest validation loss), newest, or a step."""
    json: bool = False
    """Print the candidates as one JSON object."""


def fill(target: str, text: str, options: Fill, overrides: Mapping[str, str]) -> None:
    """Prints the likeliest tokens for each gap."""
    del overrides
    from research.training import masked_language_model
    from research.training.trained import load

    if options.top < 1:
        raise UserError(f"--top {options.top}: at least 1")
    trained = load(target, options.checkpoint)
    found = masked_language_model.fill(trained, text, top=options.top)
    if options.json:
        gaps = [[dataclasses.asdict(candidate) for candidate in gap] for gap in found]
        print(json.dumps({"run": target, "step": trained.step, "text": text, "gaps": gaps}))
        return
    for number, gap in enumerate(found, start=1):
        if len(found) > 1:
            print(f"gap {number}:")
        width = max(len(candidate.token) for candidate in gap)
        for candidate in gap:
            print(f"  {candidate.probability:7.2%}  {candidate.token:{width}}  {candidate.text}")
