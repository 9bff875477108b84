"""Labelled text from files (CSV, TSV, JSON lines) and from TFDS (GLUE by name), checked as it is read."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.data.files import record_of
from research.data.object_store import is_file, located, opened
from research.errors import UserError, nearest

GLUE: dict[str, tuple[str, str | None]] = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
"""Fields of the text of GLUE's tasks, as TFDS names them."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled text, or pair of texts; for tagging, the words of a sentence and a tag for each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """One label, or one for each word."""
    where: str
    """File and line, for errors."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields to read."""

    text: str
    second: str | None
    label: str
    split: str | None
    """Field that says which split a record is of; None: a file is one split."""


def read_file(path: str, fields: Fields, split: str | None, *, tags: bool) -> Iterator[Example]:
    """Yields the examples of a file: .csv or .tsv with a header, or .jsonl.

    Args:
      path: the file.
      fields: what to read.
      split: only records whose ``fields.split`` is this; None: all.
      tags: whether text and label are lists of words and their tags (JSON lines only).

    Raises:
      UserError: no such file, one that cannot be read, a record without a field, with a blank one or with a
        value of the wrong type; names file, line and field.
    """
    file = located(path)
    if not is_file(path):
        raise UserError(f"no file {path!r} of labelled text")
    if tags and file.suffix != ".jsonl":
        raise UserError(
            f"{path}: words and their tags are read from .jsonl, not from {file.suffix or path!r}"
        )
    try:
        with opened(file) as raw:
            # Spreadsheets put a mark before it.
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            for number, record in _records(file, stream):
                where = f"{file}, line {number}"
                if fields.split is not None and _field(record, fields.split, where) != split:
                    continue
                yield _example(record, fields, where, tags=tags)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _records(file: Path, stream: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (line, record)."""
    if file.suffix == ".jsonl":
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, record_of(line, f"{file}, line {number}")
        return
    if file.suffix not in (".csv", ".tsv"):
        raise UserError(f"{file}: labelled text is read from .csv, .tsv (both with a header) or .jsonl")
    # A quotation mark in a .tsv is text.
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    reader = csv.DictReader(stream, **how)
    for record in reader:
        yield reader.line_num, {name: value for name, value in record.items() if name and value is not None}


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        hint = nearest(name, record) if record else ""
        raise UserError(f"{where}: no field {name!r}{hint}")
    return record[name]


def _example(record: Mapping[str, Any], fields: Fields, where: str, *, tags: bool) -> Example:
    label = _field(record, fields.label, where)
    if tags:
        words = _field(record, fields.text, where)
        for name, value in ((fields.text, words), (fields.label, label)):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UserError(f"{where}: field {name!r} is not a list of words")
            if not value:
                raise UserError(f"{where}: field {name!r} has no words")
        if len(words) != len(label):
            raise UserError(f"{where}: {len(words)} words and {len(label)} tags")
        if not all(tag.strip() for tag in label):
            raise UserError(f"{where}: field {fields.label!r} has a blank tag")
        return Example(tuple(words), tuple(label), where)
    texts = [_field(record, name, where) for name in (fields.text, fields.second) if name is not None]
    for field, value in zip((fields.text, fields.second), texts, strict=False):
        if not isinstance(value, str):
            raise UserError(f"{where}: field {field!r} is a {type(value).__name__}, not text")
        if not value.strip():
            raise UserError(f"{where}: field {field!r} is blank")
    if not isinstance(label, (str, int, float)):
        raise UserError(f"{where}: field {fields.label!r} is a {type(label).__name__}, not a label")
    if not str(label).strip():
        raise UserError(f"{where}: field {fields.label!r} is blank")
    return Example(tuple(texts), (str(label),), where)


def read_glue(name: str, split: str) -> Iterator[Example]:
    """Yields the examples of a GLUE task ("cola", …) as TFDS prepares it, downloading it on first use.

    Raises:
      UserError: no such task, or it cannot be prepared.
    """
    from research.data.builder import prepare  # TFDS takes half a second to import

    builder = _glue(name)
    prepare(builder, f"glue/{name}")
    if name == "mnli" and split == "validation":
        split = "validation_matched"
    names = glue_labels(name)
    fields = [field for field in GLUE[name] if field is not None]
    for number, record in enumerate(builder.as_data_source(split)):
        label = record["label"]
        texts = tuple(record[field].decode("utf-8") for field in fields)
        written = names[int(label)] if names else repr(float(label))
        yield Example(texts, (written,), f"glue/{name} {split}, example {number}")


def glue_labels(name: str) -> tuple[str, ...]:
    """Returns the labels of a GLUE task in its own order (F1 is of the second of two); empty for scores.

    Raises:
      UserError: no such task.
    """
    return tuple(getattr(_glue(name).info.features["label"], "names", ()))


def _glue(name: str) -> Any:
    """Returns TFDS's builder of a task."""
    from research.data.builder import named_builder

    if name not in GLUE:
        raise UserError(f"GLUE has no task {name!r}{nearest(name, GLUE)}")
    return named_builder(f"glue/{name}")
