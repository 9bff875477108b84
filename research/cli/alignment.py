"""The command that aligns words."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
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
    import jax

    from research.scale.host_memory import keep_freed_memory

    keep_freed_memory()
    # Expectations are many small operations: sentence pairs shared out to the cores are faster than each one
    # shared out by itself.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
        jax.config.update("jax_num_cpu_devices", min(cores, 8))

    from research.statistical import aligner

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
