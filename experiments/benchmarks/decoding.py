"""Phrase-based decoding: speed, and search errors, by how far the search goes.

    headway train experiments/translation/phrase_based.py --data.directory MULTI30K
    python experiments/benchmarks/decoding.py runs/phrase-based SOURCE --json decoding.json

SOURCE holds tokenised sentences, one to a line (plain, .gz or .xz). Speed is that of one process and of one
for each core, in sentences per second, collecting translation options and starting processes included. A
search error is a translation with a lower score than the widest search found; "short" are those of at most
``--exhaustive`` words, which are searched without any beam as well: their errors are exact.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

from research.data.parallel import lines_of, words_of
from research.statistical.decoding import PhraseDecoder
from research.training import trained_phrases

SETTINGS = [(5, 50), (10, 100), (20, 200), (30, 300), (50, 500), (100, 1000), (200, 2000)]
WIDEST = (1000, 10000)
TOLERANCE = 1e-4
Sentences = list[list[str]]


def scores(decoder: PhraseDecoder, sentences: Sentences) -> list[float]:
    """Returns the score of the best translation of each sentence."""
    return [found[0].score for found in decoder.translate(sentences)]


def with_search(decoder: PhraseDecoder, stack: int | None, candidates: int | None) -> PhraseDecoder:
    """Returns the decoder with other beams."""
    search = dataclasses.replace(decoder.search, stack=stack, candidates=candidates, threshold=None)
    return dataclasses.replace(decoder, search=search)


def errors(found: list[float], best: list[float]) -> float:
    """Returns the share of sentences, in percent, for which something better is known."""
    worse = [one < other - TOLERANCE for one, other in zip(found, best, strict=True)]
    return 100 * sum(worse) / max(len(worse), 1)


def row(decoder: PhraseDecoder, sentences: Sentences, short: list[int]) -> dict[str, object]:
    """Returns the figures of one setting."""
    start, begin = time.perf_counter(), time.process_time()
    found = [one[0].score for one in decoder.translate(sentences, processes=1)]
    wall, cpu = time.perf_counter() - start, time.process_time() - begin
    start = time.perf_counter()
    decoder.translate(sentences)
    parallel = time.perf_counter() - start
    return {
        "stack": decoder.search.stack,
        "candidates": decoder.search.candidates,
        "per_second": len(sentences) / wall,
        "per_cpu_second": len(sentences) / cpu,
        "per_second_all_cores": len(sentences) / parallel,
        "scores": found,
        "short_scores": [found[n] for n in short],
    }


def main() -> None:
    """Prints a table, and writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--exhaustive", type=int, default=6, metavar="WORDS")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    decoder = trained_phrases.load(options.run).decoder
    sentences = [words_of(line) for line in lines_of(options.source)][: options.sentences]
    short = [n for n, words in enumerate(sentences) if 0 < len(words) <= options.exhaustive]
    rows = [row(with_search(decoder, *setting), sentences, short) for setting in SETTINGS]
    widest = scores(with_search(decoder, *WIDEST), sentences)
    exact = scores(with_search(decoder, None, None), [sentences[n] for n in short])
    print(f"{len(sentences):,} sentences, {len(short)} of at most {options.exhaustive} words")
    names = ("stack", "cands", "/s", "/CPU s", "/s all", "score", "errors", "short")
    print("{:>6} {:>6} {:>7} {:>7} {:>7} {:>9} {:>7} {:>6}".format(*names))
    for one in rows:
        found, brief = one.pop("scores"), one.pop("short_scores")
        one |= {
            "mean_score": sum(found) / len(found),
            "errors_percent": errors(found, widest),
            "short_errors_percent": errors(brief, exact),
        }
        print(
            f"{one['stack']:6} {one['candidates']:6} {one['per_second']:7.1f} {one['per_cpu_second']:7.1f} "
            f"{one['per_second_all_cores']:7.1f} {one['mean_score']:9.4f} {one['errors_percent']:6.1f}% "
            f"{one['short_errors_percent']:5.1f}%"
        )
    if options.json:
        found = {"cores": len(os.sched_getaffinity(0)), "sentences": len(sentences), "short": len(short)}
        options.json.write_text(json.dumps(found | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
