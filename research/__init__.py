"""Headway: how sequence models attend, and what each way costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research.training.trained import Trained

__version__ = "0.1.0"


def load(run: str | Path, checkpoint: str = "best") -> Trained:
    """Returns a run's description, parameters and tokenizer, on whatever devices are here.

    Args:
      run: a run directory.
      checkpoint: "best" (on the validation data), "newest", or a step.

    Raises:
      UserError: no run directory, no such checkpoint, or one that is damaged.
    """
    from research.training.trained import load

    return load(run, checkpoint)
