"""What the points of a grid came to, row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from research.ablation.grid import Ablation, Row, reference
from research.ablation.runner import Result, best_rate, quality
from research.report.statistics import Estimate, difference, estimate


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the points of one row came to, at the learning rate that served it best."""

    row: Row
    rate: float | None
    """Learning rate; None: every point failed."""
    results: tuple[Result, ...]
    """Those at this rate that did not fail, by seed."""
    tried: tuple[Result, ...]
    """Those of the first seed, at every learning rate."""
    quality: Estimate | None
    less_reference: Estimate | None
    """Quality less that of the row it is compared with, seed by seed; None: it is compared with none."""
    failures: tuple[str, ...]
    """Why points failed, with their rates and seeds."""

    def mean(self, name: str, key: str | None = None) -> float | None:
        """Returns the mean over seeds of a figure of the results; None if they have none."""
        values = [result[name] if key is None else result[name].get(key) for result in self.results]
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if there else None


def summaries(ablation: Ablation, rows: Sequence[Row], results: Sequence[Result]) -> list[Summary]:
    """Returns a summary of each row."""
    found: list[Summary] = []
    qualities: dict[str, dict[int, float]] = {}
    for row in rows:
        own = [result for result in results if result["labels"] == dict(row.labels)]
        tried = tuple(result for result in own if result["seed"] == ablation.seeds[0])
        rate = best_rate(ablation, tried) or best_rate(ablation, own)  # of other seeds, if the first failed
        kept = tuple(r for r in own if "failed" not in r and r["learning_rate"] == rate)
        by_seed = {result["seed"]: quality(ablation, result) for result in kept}
        qualities[row.slug] = by_seed
        first = reference(ablation, row, rows)
        failures = tuple(
            f"learning rate {r['learning_rate']:g}, seed {r['seed']}: {r['failed']}"
            for r in own
            if "failed" in r
        )
        mean = estimate(list(by_seed.values())) if by_seed else None
        less = None if row is first else difference(by_seed, qualities[first.slug])
        found.append(Summary(row, rate, kept, tried, mean, less, failures))
    return found
