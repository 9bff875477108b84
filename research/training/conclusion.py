"""What a finished run says beyond its validation metrics."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """Measured and made at the end of training, by what the objective is good for."""

    values: dict[str, Any]
    """As JSON; "validation" replaces the metrics of the last evaluation."""
    lines: tuple[str, ...]
    """For a reader."""
    next: tuple[str, ...]
    """Commands to try on the run, after ``headway``; "{run}" stands for its directory."""
