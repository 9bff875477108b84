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


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run came to."""

    run: str
    """Run directory."""
    step: int
    """Steps taken, or rounds of tuning, over all sessions."""
    seconds: float
    """Wall-clock seconds in the training loop, over all sessions; where there was none, of this session."""
    tokens_per_second: float | None
    """Mean of this session; None where there was no loop."""
    validation: dict[str, float]
    """Metrics on the validation data, "loss" in nats among them."""
    conclusion: Conclusion

    def to_json(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["conclusion"]
        return {**fields, **self.conclusion.values}
