"""Word alignment of the Canadian Hansards, English-French: trains one model, scores it, and draws its errors.

    python experiments/alignment/hansards.py DIRECTORY --model model4 --pairs 8000 --workdir runs/hansards

DIRECTORY holds the shared task of HLT-NAACL 2003: test.en, test.fr, test.gold, train.part1.en.xz and
train.part1.fr.xz. As is usual, the 447 test pairs precede the first N training pairs, all is lower-cased,
and pairs with a side of more than 100 words are left out. What is trained can be used on other text
(``headway align --run``); report.html has the test pairs with most errors, pair-N.png and .svg each of them.

Measured: AER in percent, N = 8,000, one run, two directions apart, intersection and grow-diag; GIZA++ with
the same text and scorer, 50 classes by mkcls, p0 = 0.98, 5 iterations of Model 1 and of the HMM (or Model 2),
3 of Models 3, 4 and 5.

    model     ours                GIZA++
    model1    28.1 / 25.7         28.4 / 26.2
    model2    22.3 / 22.0         22.2 / 21.7
    hmm       16.4 / 18.4         17.1 / 18.1
    model3    16.4 / 17.3         16.5 / 17.2
    model4    12.5 / 15.1         13.1 / 15.1
    model5    11.7 / 14.7         12.6 / 14.9
    joint     7.4

With N = 1,000: model3 21.1 / 21.3 (21.4 / 22.3), model4 17.8 / 19.6 (18.9 / 20.7), model5 17.1 / 19.3
(18.6 / 20.7). Models 3 to 5 begin with the HMM of ``headway align --model hmm``; word classes are our own.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

from research.data.parallel import lines_of
from research.evaluation.alignment import alignment_score, parse_gold
from research.report.alignments import write_pictures
from research.statistical import aligner_run
from research.statistical.aligner import MODELS, Aligner, train

TESTS = 447


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="model4", choices=MODELS)
    parser.add_argument("--symmetrize", default="", help="default: intersection; grow-diag, union ...")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    sides = []
    for language in ("en", "fr"):
        training = itertools.islice(lines_of(options.directory / f"train.part1.{language}.xz"), options.pairs)
        text = itertools.chain(lines_of(options.directory / f"test.{language}"), training)
        sides.append([line.lower().split() for line in text])
    kept = [pair for pair in zip(*sides, strict=True) if max(map(len, pair)) <= 100]
    source, target = ([pair[k] for pair in kept] for k in (0, 1))
    aligner = Aligner(model=options.model, symmetrize=options.symmetrize)
    trained, found = train(source, target, aligner, report=lambda line: print(line, file=sys.stderr))
    aligner_run.save(trained, options.workdir)
    links = [set(found.links(pair)) for pair in range(TESTS)]
    gold = parse_gold(lines_of(options.directory / "test.gold"), "test.gold")
    score = alignment_score(links, gold)
    page = write_pictures(options.workdir, source[:TESTS], target[:TESTS], links, gold, score)
    print(json.dumps(dataclasses.asdict(score) | {"report": str(page)}))


if __name__ == "__main__":
    main()
