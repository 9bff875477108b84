"""Minimal pairs (BLiMP; Warstadt et al., 2020): which of two sentences a model finds likelier."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from research.data.files import record_of
from research.data.object_store import OPENERS, UNREADABLE
from research.errors import UserError, nearest

_TOKENS = 1 << 13
"""Tokens scored at once."""
_AHEAD = 8
"""Batches that are dispatched before one is waited for."""
_TELL = 10.0
"""Seconds between two messages."""
_FIELDS = ("sentence_good", "sentence_bad", "UID", "linguistics_term")
_SUMMARY = "models_summary.jsonl"
"""BLiMP's file of published accuracies; it may lie beside the pairs."""

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""tokens [rows, width], lengths [rows], place [rows] -> log-probability [rows], float32, jitted. For a masked
model: of the token at ``place``, which is hidden from it; for a causal one: of the whole row after its first
token, ``place`` playing no part. What comes after the length of a row is padding."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sentences that differ in one thing, one of them grammatical."""

    good: str
    bad: str
    paradigm: str
    """Name of the set of pairs it belongs to (BLiMP's UID)."""
    phenomenon: str
    """What those sets are about (BLiMP's linguistics_term)."""


def read_pairs(path: str | Path) -> list[Pair]:
    """Returns the pairs of a file of JSON lines (plain, .gz or .xz), or of all .jsonl files in a directory.

    There, published accuracies are left out, and of a file in several forms (.jsonl, .jsonl.xz) one is read.

    Raises:
      UserError: no such file, or one that cannot be read; a line that is not JSON or lacks a field; no pairs.
        The message names file, line and field.
    """
    path = Path(path).expanduser()
    files = [path]
    if path.is_dir():
        forms = [file for suffix in ("", *OPENERS) for file in path.glob(f"*.jsonl{suffix}")]
        once = {file.name.partition(".jsonl")[0]: file for file in reversed(forms)}
        files = sorted(file for name, file in once.items() if name != _SUMMARY.removesuffix(".jsonl"))
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"no file of minimal pairs at {path} (--data.path): JSON lines, plain, .gz or .xz")
    pairs = [pair for file in files for pair in _read(file)]
    if not pairs:
        raise UserError(f"{path} is empty: there are no minimal pairs in it (--data.path)")
    return pairs


def _read(file: Path) -> Iterator[Pair]:
    try:
        with OPENERS.get(file.suffix, open)(file, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _pair(line, f"{file}, line {number}")
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def _pair(line: str, where: str) -> Pair:
    record = record_of(line, where)
    for field in _FIELDS:
        if field not in record:
            others = record.keys() - set(_FIELDS)
            raise UserError(f"{where}: no field {field!r}{nearest(field, others) if others else ''}")
        if not isinstance(record[field], str) or not record[field].strip():
            raise UserError(f"{where}: field {field!r} is {record[field]!r}, not text")
    return Pair(*(record[field] for field in _FIELDS))


def pseudo_log_likelihoods(
    score: Score, sequences: Sequence[Sequence[int]], report: Callable[[str], None]
) -> np.ndarray:
    """Returns the sum, over a sequence's inner tokens, of log p(token | all others) (Salazar et al., 2020).

    Args:
      score: a masked model's.
      sequences: token ids, with what the model expects before and after a sentence; those two are not scored.
      report: receives how far it is, every ten seconds.
    """
    rows = [(i, place) for i, ids in enumerate(sequences) for place in range(1, len(ids) - 1)]
    return _sums(score, sequences, rows, report)


def log_likelihoods(
    score: Score, sequences: Sequence[Sequence[int]], report: Callable[[str], None]
) -> np.ndarray:
    """Returns the sum, over a sequence's tokens after the first, of log p(token | those before it).

    Args:
      score: a causal model's.
      sequences: token ids, each beginning with the token that begins a text.
      report: receives how far it is, every ten seconds.
    """
    return _sums(score, sequences, [(i, 0) for i in range(len(sequences))], report)


def _sums(
    score: Score,
    sequences: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, int]],
    report: Callable[[str], None],
) -> np.ndarray:
    """Returns the sum of the scores of each sequence's rows (sequence, place), batched by width."""
    totals = np.zeros(len(sequences), np.float64)
    buckets: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        buckets.setdefault(_width(len(sequences[row[0]])), []).append(row)
    begin = told = time.monotonic()
    done, dispatched = 0, collections.deque[tuple[Sequence[tuple[int, int]], np.ndarray]]()

    def take() -> None:
        nonlocal done, told
        part, values = dispatched.popleft()
        np.add.at(totals, [i for i, _ in part], np.asarray(values, np.float64)[: len(part)])
        done += len(part)
        if (now := time.monotonic()) > told + _TELL:
            told = now
            report(f"scored {done:,} of {len(rows):,} rows, {done / (now - begin):,.0f} a second")

    for width, members in sorted(buckets.items()):
        size = max(1, _TOKENS // width)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            dispatched.append((part, score(*_arrays(sequences, part, size, width))))
            if len(dispatched) > _AHEAD:
                take()
    while dispatched:
        take()
    return totals


def _width(length: int) -> int:
    """Returns the width of the batch for a sequence: few of them, so that little is compiled."""
    step = 4 if length <= 32 else 16 if length <= 128 else 64
    return -(-length // step) * step


def _arrays(
    sequences: Sequence[Sequence[int]], rows: list[tuple[int, int]], size: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.zeros((size, width), np.int32)
    lengths, places = np.ones(size, np.int32), np.zeros(size, np.int32)
    for row, (i, place) in enumerate(rows):
        lengths[row], places[row] = len(sequences[i]), place
        tokens[row, : lengths[row]] = sequences[i]
    return tokens, lengths, places


def accuracies(pairs: Sequence[Pair], good: np.ndarray, bad: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns the share of pairs whose good sentence scores higher; ties count as wrong.

    "paradigms": by name; "phenomena": the mean over the paradigms of each; "all": {"mean": the mean over
    paradigms}, BLiMP's figure.
    """
    right: dict[str, list[bool]] = {}
    about: dict[str, set[str]] = {}
    for pair, better in zip(pairs, (good > bad).tolist(), strict=True):
        right.setdefault(pair.paradigm, []).append(better)
        about.setdefault(pair.phenomenon, set()).add(pair.paradigm)
    paradigms = {name: float(np.mean(found)) for name, found in sorted(right.items())}
    phenomena = {
        name: float(np.mean([paradigms[p] for p in members])) for name, members in sorted(about.items())
    }
    mean = float(np.mean(list(paradigms.values())))
    return {"paradigms": paradigms, "phenomena": phenomena, "all": {"mean": mean}}


def published(path: str | Path, pairs: Iterable[Pair]) -> dict[str, dict[str, float]]:
    """Returns published accuracies by model, then phenomenon ("mean": over all paradigms), if they are there.

    They are read from BLiMP's ``models_summary.jsonl`` beside the pairs: one line per paradigm.
    """
    path = Path(path).expanduser()
    file = (path if path.is_dir() else path.parent) / _SUMMARY
    if not file.is_file():
        return {}
    about = {pair.paradigm: pair.phenomenon for pair in pairs}
    by_model: dict[str, dict[str, list[float]]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        record = record_of(line, f"{file}, line {number}") if line.strip() else {}
        if record.get("UID") not in about:
            continue
        for model, value in record.items():
            if isinstance(value, float):
                for name in (about[record["UID"]], "mean"):
                    by_model.setdefault(model, {}).setdefault(name, []).append(value)
    return {
        model: {name: float(np.mean(values)) for name, values in found.items()}
        for model, found in by_model.items()
    }
