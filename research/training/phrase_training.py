"""Making a phrase-based system, stage by stage; each stage leaves a file, and is not done again.

text.json        what the text was, in figures and checksums
alignment.txt    links of the training text, i-j; until they are there, iterations/
lm.arpa          the language model; lm.binary if it is in KenLM's own form
phrases.parquet  the phrase table
tuning.npz       what tuning has decoded so far
weights.json     the best weights of the features
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.data.parallel import Pair, text_record, words_of
from research.data.replacing import replacing, write_atomically
from research.errors import UserError
from research.statistical.aligner import align
from research.statistical.arpa import read_arpa, write_arpa
from research.statistical.em import device_per_core
from research.statistical.kenlm_model import KenlmModel, library
from research.statistical.language_model import LanguageModel
from research.statistical.ngram_model import NgramModel, estimate
from research.statistical.phrase_counting import write_counted
from research.statistical.phrase_table import PhraseTable, build, read_table, write_table
from research.statistical.phrases import Links
from research.statistical.tuning import Iteration, best, tune
from research.training.conclusion import Conclusion, Result
from research.training.description import to_json
from research.training.interrupt import stoppable
from research.training.kept_iterations import KeptIterations
from research.training.metrics import MetricsWriter
from research.training.phrase_based import NgramLanguageModel, PhraseBased
from research.training.run_directory import RunDirectory, claim

ALIGNMENT, PHRASES, TUNING, WEIGHTS = "alignment.txt", "phrases.parquet", "tuning.npz", "weights.json"
LANGUAGE_MODEL, BINARY = "lm.arpa", "lm.binary"
Report = Callable[[str], None]
Sentences = list[list[str]]


class _Text(NamedTuple):
    """Words of the training and the validation text."""

    source: Sentences
    target: Sentences
    valid_source: Sentences
    valid_target: Sentences


def _read(description: PhraseBased) -> _Text:
    text = description.data.open()
    text.fingerprint()  # tells of files that are missing
    sides = [_sides(pairs) for pairs in description.data.training_pairs(text)]
    counts = [len(source) for source, _ in sides]
    if not all(counts):
        raise UserError(f"the text has {counts[0]:,} pairs to train on and {counts[1]:,} to tune on")
    return _Text(*sides[0], *sides[1])


def _sides(pairs: Sequence[Pair]) -> tuple[Sentences, Sentences]:
    return [words_of(source) for source, _ in pairs], [words_of(target) for _, target in pairs]


def run(description: PhraseBased, directory: Path, *, report: Report = lambda message: None) -> Result:
    """Makes a phrase-based system in a run directory, or goes on with the one that is there.

    Args:
      description: what to make.
      directory: run directory; made if it is not there.
      report: receives messages.

    Raises:
      UserError: the description does not hold together, the text cannot be read, the run directory is in use
        or of another experiment.
      StoppedError: SIGTERM or Ctrl-C; the stages that are done are saved.
    """
    description.validate()
    if description.language_model.reader == "kenlm":
        library()  # better missing now than when all is aligned
    text = _read(description)
    begin = time.monotonic()
    with claim(directory, to_json(description)) as owned, stoppable(owned.path):
        owned.keep({"text.json": text_record(text._asdict())})

        def stage(name: str, make: Callable[[Path], None]) -> Path:
            path = owned.path / name
            if not path.exists():
                started = time.monotonic()
                make(path)
                report(f"{name}: {time.monotonic() - started:.0f} s")
            return path

        how = description.language_model  # first: a file that is wrong is told of before hours of alignment
        model = stage(_name(how), lambda path: _write_language_model(how, text.target, path))
        alignment = stage(ALIGNMENT, lambda path: _align(description, text, path, report))
        phrases = stage(PHRASES, lambda path: _extract(description, text, alignment, path, report))
        table, language_model = read_table(phrases), read_language_model(how, model.parent)
        history = tune(
            text.valid_source,
            text.valid_target,
            table,
            language_model,
            how=description.tuning,
            search=description.search,
            state=owned.path / TUNING,
            report=report,
        )
        _record(owned, history)
    reached = best(history)
    return Result(
        run=str(directory),
        step=len(history),
        seconds=time.monotonic() - begin,
        tokens_per_second=None,
        validation={"valid/bleu": reached.bleu},
        conclusion=_conclusion(table, language_model, history),
    )


def _align(description: PhraseBased, text: _Text, path: Path, report: Report) -> None:
    device_per_core()
    kept = KeptIterations(path.with_name("iterations"), report)
    found = align(text.source, text.target, description.alignment, progress=kept)
    write_atomically(path, "".join(line + "\n" for line in found.lines()))
    kept.forget()


def _extract(description: PhraseBased, text: _Text, alignment: Path, path: Path, report: Report) -> None:
    lines = alignment.read_text(encoding="utf-8").split("\n")[:-1]
    pair = np.repeat(np.arange(len(lines)), [line.count("-") for line in lines])
    ends = np.fromstring(" ".join(lines).replace("-", " "), np.int64, sep=" ").reshape(-1, 2)
    links, how = Links(pair, ends[:, 0], ends[:, 1]), description.phrases
    if how.memory is None:
        write_table(build(text.source, text.target, links, how, report=report), path)
    else:
        write_counted(text.source, text.target, links, how, path, report=report)


def _name(how: NgramLanguageModel) -> str:
    return BINARY if how.binary else LANGUAGE_MODEL


def _write_language_model(how: NgramLanguageModel, text: Sentences, path: Path) -> None:
    if how.path is None:
        write_arpa(estimate(text, how.order), path)
        return
    given = Path(how.path).expanduser()
    if how.reader == "own":
        write_arpa(read_arpa(given), path)
        return
    KenlmModel(given)  # what is wrong with it is said of the file that the user knows
    with replacing(path) as temporary:
        shutil.copyfile(given, temporary)


def read_language_model(how: NgramLanguageModel, run: Path) -> LanguageModel:
    """Returns the language model of a run directory.

    Raises:
      UserError: it cannot be read, or needs KenLM, which is not installed.
    """
    path = run / _name(how)
    return KenlmModel(path) if how.reader == "kenlm" else read_arpa(path)


def _record(directory: RunDirectory, history: Sequence[Iteration]) -> None:
    """Writes metrics of every round of tuning, and the weights of the best."""
    writer = MetricsWriter(directory, 0)
    for number, iteration in enumerate(history, start=1):
        writer.write(number, {"valid/bleu": iteration.bleu})
    writer.close()
    reached = best(history)
    record = {"round": history.index(reached) + 1, "bleu": reached.bleu, "weights": reached.weights}
    write_atomically(directory.path / WEIGHTS, json.dumps(record, indent=2) + "\n")


def ngrams(model: LanguageModel) -> list[int] | None:
    """Returns how many n-grams of each order a model has; None: KenLM does not say."""
    return model.counts() if isinstance(model, NgramModel) else None


def ngram_line(counts: Sequence[int] | None) -> str:
    """Returns the same for a reader."""
    if counts is None:
        return "in a model that KenLM reads"
    return f"{', '.join(f'{n:,}' for n in counts)} of orders 1 to {len(counts)}"


def _conclusion(table: PhraseTable, model: LanguageModel, history: Sequence[Iteration]) -> Conclusion:
    reached = best(history)
    values = {
        "phrase_pairs": len(table.targets),
        "ngrams": ngrams(model),
        "weights": reached.weights,
        "bleu_of_rounds": [iteration.bleu for iteration in history],
    }
    lines = (
        f"{len(table.targets):,} phrase pairs of {len(table.sources):,} source phrases",
        f"n-grams: {ngram_line(ngrams(model))}",
        "weights: " + ", ".join(f"{name} {value:.3f}" for name, value in reached.weights.items()),
    )
    return Conclusion(values, lines, ("translate {run} < SOURCE > TARGET", "evaluate {run}", "show {run}"))
