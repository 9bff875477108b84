"""Training a word aligner in a run directory, from where it was if it was stopped.

text.json           what the text was, in figures and checksums
iterations/         the state after the last iteration of each phase of EM, until training is done
links.npz           the links of the text
gold.json           the sentence pairs that there are gold links of, and the score
vocabulary.json     words of both sides, by number
tables.safetensors  what was learnt (see ``statistical.estimators``); it is written last
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialized

from research.data.parallel import text_record
from research.data.replacing import replacing, save_arrays, write_atomically
from research.errors import UserError
from research.evaluation.alignment import AlignmentScore, alignment_score, score_line
from research.statistical.aligner import Alignment, Trained, train
from research.training.conclusion import Conclusion, Result
from research.training.description import to_json
from research.training.interrupt import stoppable
from research.training.kept_iterations import KeptIterations
from research.training.run_directory import RunDirectory, claim
from research.training.word_alignment import Text, WordAlignment

TEXT, LINKS, GOLD = "text.json", "links.npz", "gold.json"
VOCABULARY, TABLES = "vocabulary.json", "tables.safetensors"
ENTRIES = ("entries/source", "entries/target")
"""Tables of the source and the target word of each entry."""
Report = Callable[[str], None]


def run(
    description: WordAlignment, directory: Path, *, report: Report = lambda message: None
) -> tuple[Result, Alignment, AlignmentScore | None]:
    """Trains an aligner in a run directory, or goes on with the one that is there.

    Returns what it came to, the links of the text, and how these compare with gold links, if there are any.

    Args:
      description: what to train.
      directory: run directory; made if it is not there.
      report: receives messages.

    Raises:
      UserError: the description does not hold together, the text cannot be read or is not the one that the
        run began with, the run directory is in use or of another experiment.
      StoppedError: SIGTERM or Ctrl-C; the iterations that are done are saved.
    """
    description.validate()
    text = description.data.read(report)
    begin = time.monotonic()
    with claim(directory, to_json(description)) as owned, stoppable(owned.path):
        owned.keep({TEXT: text_record({"source": text.source, "target": text.target})})
        if not (owned.path / TABLES).exists():
            _train(description, text, owned, report)
        found = read_links(owned.path / LINKS)
        rows = owned.rows()
    score = score_of(found, text)
    last = {name: value for row in rows for name, value in row.items() if name.endswith("/log_likelihood")}
    figures = {f"valid/{name}": value for name, value in last.items()}
    if score:
        figures["valid/aer"] = score.aer
    lines = [f"{len(found.source):,} links in {len(found):,} sentence pairs"]
    if score:
        lines.append(score_line(score))
    values: dict[str, Any] = {"pairs": len(found), "links": len(found.source)}
    values |= {"score": dataclasses.asdict(score)} if score else {}
    following = ("align --run {run} SOURCE TARGET", "show {run}", "report {run}")
    result = Result(
        run=str(directory),
        step=rows[-1]["step"],
        seconds=time.monotonic() - begin,
        tokens_per_second=None,
        validation=figures,
        conclusion=Conclusion(values, tuple(lines), following),
    )
    return result, found, score


def _train(description: WordAlignment, text: Text, owned: RunDirectory, report: Report) -> None:
    kept = KeptIterations(owned.path / "iterations", report, owned)
    with contextlib.closing(kept):
        trained, found = train(text.source, text.target, description.aligner, progress=kept)
    _save_links(owned.path / LINKS, found)
    score = score_of(found, text)
    if score:
        write_atomically(owned.path / GOLD, _gold_record(text, score))
    save(trained, owned.path)
    kept.forget()


def score_of(found: Alignment, text: Text) -> AlignmentScore | None:
    """Returns how the links compare with the gold ones; None if there are none."""
    if not text.gold:
        return None
    return alignment_score([found.links(pair) for pair in range(len(text.gold))], text.gold)


def _gold_record(text: Text, score: AlignmentScore) -> str:
    size = len(text.gold)
    record = {
        "source": text.source[:size],
        "target": text.target[:size],
        "sure": [sorted(gold.sure) for gold in text.gold],
        "possible": [sorted(gold.possible) for gold in text.gold],
        "score": dataclasses.asdict(score),
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _save_links(path: Path, found: Alignment) -> None:
    arrays = {field.name: np.asarray(getattr(found, field.name)) for field in dataclasses.fields(found)}
    try:
        save_arrays(path, arrays)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_links(path: Path) -> Alignment:
    """Returns the links of the text that an aligner was trained on; ``UserError`` if they cannot be read."""
    try:
        with np.load(path) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(Alignment)}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return Alignment(**arrays | {name: int(arrays[name]) for name in ("empty", "too_long")})


def save(trained: Trained, path: Path) -> None:
    """Writes what was learnt into a run directory; the tables come last.

    Raises:
      UserError: the directory cannot be written.
    """
    arrays = dict(zip(ENTRIES, trained.entries, strict=True)) | trained.tables
    vocabulary = dict(zip(("source", "target"), trained.words, strict=True))
    try:
        write_atomically(path / VOCABULARY, json.dumps(vocabulary, ensure_ascii=False))
        content = serialized({name: array.copy(order="C") for name, array in arrays.items()})
        with replacing(path / TABLES) as temporary:
            temporary.write_bytes(content)  # by the user's umask, which safetensors' own writer ignores
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
