"""The command that aligns words."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from research.cli.command import message


@dataclasses.dataclass(frozen=True)
class Align:
    """Aligns the words of two files of tokenised sentences, line by line: links i-j, counted from 0."""

    model: str = "joint"
    """joint (both directions trained to agree), or, each direction apart: model1, model2, diagonal, hmm."""
    symmetrize: str = ""
    """How to combine directions that were trained apart: intersection (default), union, grow-diag,
    grow-diag-final, grow-diag-final-and, forward, backward."""
    threshold: float = 0.25
    """Links of the joint model have a probability above this; lower: more links."""
    prior: float | None = None
    """Dirichlet prior of the lexical tables, for any model; default: 0.003 for joint, else none."""
    keep_case: bool = False
    """Take words that differ only in case as different words."""
    probabilities: bool = False
    """Write links as i-j:probability."""
    json: bool = False
    """Print one JSON object: links of all pairs, and counts."""


def align(source: str, target: str, *, options: Align, overrides: Mapping[str, str]) -> None:
    """Runs ``headway align``."""
    from research.scale.host_memory import keep_freed_memory
    from research.statistical import aligner
    from research.statistical.em import device_per_core

    keep_freed_memory()
    device_per_core()

    start = time.monotonic()
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(aligner.Aligner)}
    how = aligner.Aligner(**fields)
    how.validate()
    sides = aligner.read_sentences(Path(source), Path(target), message)
    found = aligner.align(*sides, aligner=how, report=message)
    if options.json:
        counts = {"pairs": len(found), "links": len(found.source), "empty": found.empty}
        counts |= {"too_long": found.too_long}
        print(json.dumps(counts | {"alignment": [found.links(pair) for pair in range(len(found))]}))
    else:
        for line in found.lines(probabilities=options.probabilities):
            print(line)
    left = [f"{found.empty:,} with an empty side"] * bool(found.empty)
    left += [f"{found.too_long:,} of more than {aligner.LONGEST} words"] * bool(found.too_long)
    message(
        f"{len(found.source):,} links in {len(found):,} sentence pairs, {time.monotonic() - start:.0f} s"
        + (f"; without links: {', '.join(left)}" if left else "")
    )
