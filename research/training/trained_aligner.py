"""Loading a trained aligner, and what it shows of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from research.data.files import read_json
from research.errors import UserError
from research.evaluation.alignment import AlignmentScore, score_line
from research.statistical.aligner import Aligner, Trained
from research.statistical.iterations import WAYS
from research.training.alignment_training import ENTRIES, GOLD, LINKS, TABLES, TEXT, VOCABULARY, read_links
from research.training.description import kind, load_description, to_json
from research.training.run_directory import RunDirectory, open_run
from research.training.summary import description_lines, table
from research.training.word_alignment import WordAlignment

_FIRST_FORMAT = "aligner.json"
"""The description of an aligner in runs of before there was one kind of run directory."""


def is_aligner(path: Path) -> bool:
    """Returns whether a directory is the run of an aligner."""
    if (path / _FIRST_FORMAT).is_file():
        return True
    try:
        stored = json.loads((path / "experiment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stored, Mapping) and stored.get("kind") == kind(WordAlignment)


def load(path: Path) -> Trained:
    """Reads a trained aligner.

    Raises:
      UserError: there is none, or a file of it is missing, damaged, or of a later version.
    """
    aligner = _aligner(path)
    vocabulary = read_json(path / VOCABULARY)
    try:
        arrays = load_file(path / TABLES)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path / TABLES}: {error}") from error
    try:
        entries = (arrays.pop(ENTRIES[0]), arrays.pop(ENTRIES[1]))
        words = (vocabulary["source"], vocabulary["target"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return Trained(aligner, words, entries, arrays)


def _aligner(path: Path) -> Aligner:
    if not path.is_dir():
        raise UserError(f"no run directory at {path}")
    if not is_aligner(path):
        raise UserError(
            f"{path} is no aligner's run directory; headway align SOURCE TARGET --out RUN writes one"
        )
    if (path / _FIRST_FORMAT).is_file():
        stored = read_json(path / _FIRST_FORMAT)
        try:
            return Aligner(
                **{name: value for name, value in stored.items() if name not in ("kind", "format")}
            )
        except TypeError as error:
            raise UserError(f"{path} is damaged: {error}") from None
    description = load_description(path)
    assert isinstance(description, WordAlignment)
    if not (path / TABLES).exists():
        raise UserError(f"{path} is not trained yet: headway train {path} goes on with it")
    return description.aligner


def summary(path: Path) -> dict[str, Any]:
    """Returns what an aligner's run is and has come to, as JSON values; ``UserError`` if it is none."""
    directory = open_run(path)
    found: dict[str, Any] = {
        "experiment": to_json(load_description(directory.experiment)),
        "run": str(path),
        "trained": (path / TABLES).exists(),
        "text": {name: _figures(side) for name, side in read_json(path / TEXT).items()},
        "log_likelihood": {way: log_likelihoods(directory, way) for way in WAYS},
    }
    if not found["trained"]:
        return found
    vocabulary, links = read_json(path / VOCABULARY), read_links(path / LINKS)
    for name, words in vocabulary.items():
        found["text"][name]["different"] = len(words)
    found |= {"tables": _shapes(path / TABLES), "links": len(links.source)}
    found |= {"empty": links.empty, "too_long": links.too_long}
    if (path / GOLD).exists():
        found["score"] = read_json(path / GOLD)["score"]
    return found


def log_likelihoods(directory: RunDirectory, way: str) -> list[float]:
    """Returns the log-likelihood of a sentence pair at each iteration of a direction."""
    name = f"{way}/log_likelihood"
    return [row[name] for row in directory.rows() if name in row]


def _figures(side: Mapping[str, Any]) -> dict[str, Any]:
    return {name: side[name] for name in ("sentences", "words")}


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "np") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def text(found: Mapping[str, Any]) -> str:
    """Returns a summary for a reader."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from description_lines(found["experiment"], "")
    yield ""
    yield f"run {found['run']}: " + ("trained" if found["trained"] else "not trained to the end yet")
    for side, figures in found["text"].items():
        words = f"{side:8} {figures['sentences']:,} sentences, {figures['words']:,} words"
        yield words + (f", {figures['different']:,} different" if "different" in figures else "")
    for way, values in found["log_likelihood"].items():
        if values:
            yield f"{way:8} log-likelihood a pair by iteration: {', '.join(f'{v:.2f}' for v in values)}"
    if not found["trained"]:
        return
    left = f"; without: {found['empty']:,} empty, {found['too_long']:,} too long"
    yield f"links    {found['links']:,}" + (left if found["empty"] or found["too_long"] else "")
    if "score" in found:
        yield f"gold     {score_line(AlignmentScore(**found['score']))}"
    yield ""
    shapes = ((name, " x ".join(f"{n:,}" for n in shape)) for name, shape in found["tables"].items())
    yield from table([("table", "shape"), *shapes])
