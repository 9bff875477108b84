"""Counting phrase pairs on disk: time and peak memory, of the text and links of an aligner's run.

    headway train experiments/alignment/hansards.py --data.directory WPT03 --data.pairs 128000 --workdir RUN
    python experiments/benchmarks/phrase_counting.py RUN --memory 0.5 --out phrases.parquet

With --memory 0 they are counted in memory.

Measured with 0.5 GiB, 128,254 sentence pairs, 20,876,219 occurrences, 15,655,295 phrase pairs: 264 s on a
busy machine (203 of processor time), 1,408 MiB at most, of which the text and its links take 633.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from research.statistical.phrase_counting import write_counted
from research.statistical.phrase_table import Phrases, build, write_table
from research.statistical.phrases import Links
from research.training.alignment_training import LINKS, read_links
from research.training.description import load_description
from research.training.word_alignment import WordAlignment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--memory", type=float, default=0.5, help="GiB for DuckDB; 0: in memory")
    parser.add_argument("--longest", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    description = load_description(options.run)
    assert isinstance(description, WordAlignment)
    text, found = description.data.read(), read_links(options.run / LINKS)
    pair = np.repeat(np.arange(len(found)), np.diff(found.starts))
    links = Links(pair, found.source.astype(np.int64), found.target.astype(np.int64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    how = Phrases(longest=options.longest, memory=options.memory or None, smoothing="kneser-ney")
    start = time.perf_counter()
    if options.memory:
        write_counted(text.source, text.target, links, how, options.out, report=print)
    else:
        write_table(build(text.source, text.target, links, how, report=print), options.out)
    peak = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "pairs": len(found), "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(peak.ru_utime + peak.ru_stime, 1),
        "peak_mib": peak.ru_maxrss // 1024, "mib_with_the_text_alone": before,
        "table_mib": options.out.stat().st_size >> 20,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
