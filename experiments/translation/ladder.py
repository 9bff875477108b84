"""The ladder: every translator of the codebase on the same tests, in one table and two pictures.

    python experiments/translation/ladder.py --train --data MULTI30K    # trains what runs/ lacks of it first
    python experiments/translation/ladder.py --train --data MULTI30K --seeds 3 --direction de-en
    python experiments/translation/ladder.py runs/phrase-based runs/averaged runs/lstm-attention --out ladder

RUN is any run that translates: word-based, phrase-based, LSTM, Transformer. Runs that differ in nothing but
their seed are one system, with the mean of their figures; statistical systems have no seed. Written to --out:
ladder.csv, ladder.md, bleu and by_length as PNG and SVG, and the translations (TEST.SYSTEM.SEED.txt).

BLEU is that of the owners' lower-cased tokenised form, as nearly all published figures are; beside it, "raw",
sacreBLEU of the detokenised lines on the raw references, case aside. "numbers" are parameters, or of
statistical systems phrase pairs and n-grams. "training s" is wall-clock time: of networks in the training
loop, compilation and evaluation included, of statistical systems from the first file of the run directory to
the last. Speed is that of the first test, translated a second time, so that nothing is compiled. BLEU by
length is of all tests together.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research.data.parallel import ParallelText
from research.errors import UserError
from research.evaluation.bleu import by_length, scores
from research.inference.beam import Beam
from research.interchange.runs import ORIGIN
from research.report.figures import lines, save
from research.scale.host_memory import keep_freed_memory
from research.training import translation
from research.training.phrase_training import WEIGHTS
from research.training.run_directory import RunDirectory, flatten, open_run
from research.training.trained_phrases import TrainedPhrases

HERE = Path(__file__).parent
ATTENTIONS = {
    "dot": ("--model.attention.score", "dot"),
    "general": ("--model.attention.score", "general"),
    "concat": ("--model.attention.score", "concat"),
    "local-m": ("--model.attention.locality", "monotonic"),
    "local-p": ("--model.attention.locality", "predictive"),
    "coverage": ("--model.attention.coverage", "true"),
}
RUNGS: dict[str, tuple[str, ...]] = {
    "ibm-model": ("ibm_model.py",),
    "phrase-based": ("phrase_based.py",),
    "lstm": ("lstm.py",),
    "lstm-attention": ("lstm_attention.py",),
    **{
        f"lstm-{name}": ("lstm_attention.py", "--name", f"lstm-{name}", *how)
        for name, how in ATTENTIONS.items()
    },
    "transformer-multi30k": ("transformer_multi30k.py",),
}
"""What the ladder trains, in the order of their years: experiment and options, by the name of the run."""
STATISTICAL = ("ibm-model", "phrase-based")
TESTS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco")
SHORT = dict(zip(TESTS, ("2016", "2017", "coco"), strict=True))
Texts = dict[str, tuple[list[str], list[str]]]
"""Source and reference lines of each test."""


@dataclasses.dataclass(frozen=True)
class System:
    """A trained translator."""

    name: str
    seed: int
    data: ParallelText
    """The text that it was trained on, and the tests that belong to it."""
    translate: Callable[[Iterable[str]], list[str]]
    """Lines to lines, one for each, in their order."""
    numbers: int
    seconds: float | None
    warnings: Callable[[], Iterable[str]] = tuple
    """Lines on what was too long of all that was translated so far."""

    @property
    def direction(self) -> str:
        """Returns "en-de"."""
        return f"{self.data.source_language}-{self.data.target_language}"


def system(path: str, name: str, beam: Beam, data: Path | None) -> System:
    """Returns the translator of a run."""
    run = translation.load(path)
    text = run.experiment.data
    assert isinstance(text, ParallelText)
    if text.corpus != "multi30k":
        raise UserError(f"{path} learned from {text.corpus}; the ladder stands on Multi30k")
    if data is not None:
        text = dataclasses.replace(text, directory=str(data))
    model = translation.translator_of(run, beam)
    if isinstance(run, TrainedPhrases):
        summary = run.summary()
        numbers, seed = summary["phrase_pairs"] + sum(summary["ngrams"]), 0
    else:
        numbers, seed = sum(leaf.size for leaf in jax.tree.leaves(run.params)), run.experiment.seed

    def translate(lines: Iterable[str]) -> list[str]:
        return [found[0].text for found in model.translate(lines)]

    return System(name, seed, text, translate, numbers, training_seconds(run.directory), model.warnings)


def training_seconds(run: RunDirectory) -> float | None:
    """Returns how long a run has trained, or the run that it is an average of; None if nobody knows."""
    if (origin := run.path / ORIGIN).exists():
        source = json.loads(origin.read_text(encoding="utf-8")).get("source")
        return training_seconds(open_run(source)) if source and Path(source).is_dir() else None
    if (weights := run.path / WEIGHTS).exists():
        return weights.stat().st_mtime - (run.path / "text.json").stat().st_mtime
    rows = run.rows()
    return rows[-1].get("seconds") if rows else None


def names(runs: Sequence[str]) -> list[str]:
    """Returns the name of each run's system: its experiment's, with its own where experiments share one."""
    systems: dict[str, dict[str, str]] = {}  # experiment -> description -> name
    found = []
    for path in runs:
        directory = open_run(path)
        described = flatten(directory.description())
        experiment = str(described.pop("name"))
        described.pop("seed", None)
        languages = [str(described.get(f"data.{side}_language")) for side in ("source", "target")]
        averaged = " averaged" if (directory.path / ORIGIN).exists() else ""
        same = systems.setdefault(" ".join([experiment + averaged, *languages]), {})
        other = f"{experiment}{averaged} ({Path(path).name})" if same else experiment + averaged
        found.append(same.setdefault(json.dumps(described, sort_keys=True), other))
    return found


def measure(one: System, texts: Texts, limit: int | None, out: Path) -> dict[str, Any]:
    """Returns the figures of a system, and writes its translations."""
    row: dict[str, Any] = {"system": one.name, "direction": one.direction, "seed": one.seed}
    everything: list[list[str]] = [[], [], []]
    for test, (sources, references) in texts.items():
        print(f"{one.name}, seed {one.seed}: {test}", file=sys.stderr, flush=True)
        found = one.translate(sources)
        (out / f"{test}.{one.name}.{one.seed}.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
        tokenised = one.data.tokenised
        own = scores(found, references, tokenised=tokenised)["bleu"]["score"]
        if tokenised:
            raw = translation.raw_scores(one.data, test, found) if limit is None else None
            row[f"raw {SHORT[test]}"] = None if raw is None else raw["bleu"]["score"]
        row[f"{'BLEU' if tokenised else 'raw'} {SHORT[test]}"] = own
        for side, more in zip(everything, (sources, found, references), strict=True):
            side += more
    for line in one.warnings():
        print(f"{one.name}, seed {one.seed}: {line}", file=sys.stderr, flush=True)
    row["by_length"] = by_length(*everything, tokenised=one.data.tokenised)
    sources = next(iter(texts.values()))[0]
    start = time.perf_counter()
    one.translate(sources)
    row["sentences/s"] = len(sources) / (time.perf_counter() - start)
    return row | {"numbers": one.numbers, "training s": one.seconds}


def merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one system, means over its seeds."""
    first = dict(rows[0])
    for name, value in first.items():
        if isinstance(value, float):
            first[name] = statistics.fmean(row[name] for row in rows if row[name] is not None)
    lengths = [row["by_length"] for row in rows]
    first["by_length"] = [
        {**places[0], "bleu": statistics.fmean(place["bleu"] for place in places)}
        for places in zip(*lengths, strict=True)
    ]
    del first["seed"]
    return {"system": first.pop("system"), "direction": first.pop("direction"), "runs": len(rows), **first}


COLUMNS = (
    "system", "direction", "runs",
    *(f"{kind} {short}" for kind in ("BLEU", "raw") for short in SHORT.values()),
    "numbers", "training s", "sentences/s",
)  # fmt: skip


def cell(value: Any) -> str:
    """Returns a figure as text: whole numbers with separators, others with one decimal, "-" for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if isinstance(value, float) else value


def write(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Writes table and pictures, and returns the table as Markdown."""
    with open(out / "ladder.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows([row.get(name) for name in COLUMNS] for row in rows)
    body = [COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)]
    body += [[cell(row.get(name)) for name in COLUMNS] for row in rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in body) + "\n"
    (out / "ladder.md").write_text(text, encoding="utf-8")
    labels = [f"{row['system']}, {row['direction']}" for row in rows]
    places = {short: n for n, short in enumerate(SHORT.values())}
    kind = "BLEU" if all(row.get(f"BLEU {short}") is not None for row in rows for short in places) else "raw"
    by_test = {
        label: [(float(n), row[f"{kind} {short}"]) for short, n in places.items() if f"{kind} {short}" in row]
        for label, row in zip(labels, rows, strict=True)
    }
    figure = lines(by_test, x="test of Multi30k", y="BLEU", title="The ladder", marked=True)
    figure.axes[0].set_xticks(list(places.values()), [TESTS[n] for n in places.values()])
    figure.axes[0].set_ylim(bottom=0)
    save(figure, out / "bleu")
    lengths = {
        label: [((place["first"] + place["last"]) / 2, place["bleu"]) for place in row["by_length"]]
        for label, row in zip(labels, rows, strict=True)
    }
    figure = lines(
        lengths, x="source length (words, middle of the group)", y="BLEU",
        title="BLEU by source length", marked=True,
    )  # fmt: skip
    figure.axes[0].set_ylim(bottom=0)
    save(figure, out / "by_length")
    return text


def ladder(runs: Path, seeds: int, direction: str) -> dict[Path, list[str]]:
    """Returns the options that train each run of the ladder, by its directory, in the order of RUNGS."""
    source, target = direction.split("-")
    found = {}
    for rung, (file, *options) in RUNGS.items():
        for seed in range(1 if rung in STATISTICAL else seeds):
            run = runs / "-".join([rung, *[direction] * (direction != "en-de"), *[str(seed)] * (seed > 0)])
            languages = ["--data.source_language", source, "--data.target_language", target]
            seeded = [] if rung in STATISTICAL else ["--seed", str(seed)]
            found[run] = [str(HERE / file), "--workdir", str(run), *options, *languages, *seeded]
    return found


def train(rungs: Mapping[Path, list[str]], data: Path | None) -> None:
    """Trains each run of the ladder that is not done, one after another."""
    for directory, options in rungs.items():
        command = [sys.executable, "-m", "research.cli", "train", *options]
        command += [] if data is None else ["--data.directory", str(data)]
        if subprocess.run(command).returncode:  # a run that is done ends at once
            raise UserError(f"{directory} was not trained to its end; the same command goes on")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", help="default: the experiments of the ladder, in --runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--train", action="store_true", help="train what --runs lacks of the ladder")
    parser.add_argument("--data", type=Path, help="directory of Multi30k; default: that of the run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each network")
    parser.add_argument("--direction", choices=("en-de", "de-en"), default="en-de")
    parser.add_argument("--out", type=Path, default=Path("ladder"))
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--length-penalty", type=float, default=1.0)
    parser.add_argument("--limit", type=int, help="sentences of each test, for a trial")
    options = parser.parse_args()
    keep_freed_memory()
    own = ladder(options.runs, options.seeds, options.direction)
    if options.train:
        train(own, options.data)
    runs = [*options.run]
    if options.train or not runs:
        runs += [str(run) for run in own if (run / "experiment.json").exists()]
    if not runs:
        parser.error(f"{options.runs} has no run of the ladder; name some, or add --train")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    beam = Beam(options.beam, options.length_penalty)
    for path, name in zip(runs, names(runs), strict=True):
        one = system(path, name, beam, options.data)
        text = one.data.open()
        texts: Texts = {}
        for test in TESTS:
            pairs = list(text.pairs(test))[: options.limit]
            texts[test] = ([source for source, _ in pairs], [target for _, target in pairs])
        row = measure(one, texts, options.limit, options.out)
        rows.setdefault((row["system"], row["direction"]), []).append(row)
        del one  # a language model and a phrase table are large
    print(write([merged(part) for part in rows.values()], options.out))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"ladder: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
