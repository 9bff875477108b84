"""A trained aligner on disk: a run directory of three files.

aligner.json        how it was trained
vocabulary.json     words of both sides, by number
tables.safetensors  what it has learnt (see ``estimators``), and the pairs of words that it has seen
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialized

from research.data.files import read_json
from research.errors import UserError
from research.statistical.aligner import Aligner, Trained

_FORMAT = 1
_DESCRIPTION, _VOCABULARY, _TABLES = "aligner.json", "vocabulary.json", "tables.safetensors"
_ENTRIES = ("entries/source", "entries/target")


def is_aligner(path: Path) -> bool:
    """Returns whether a directory holds a trained aligner."""
    return (path / _DESCRIPTION).is_file()


def check_free(path: Path) -> None:
    """Raises ``UserError`` if there is something else where an aligner is to be saved."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out {path}: there is something there already; name a directory that is not there")


def save(trained: Trained, path: Path) -> None:
    """Writes a trained aligner; its description comes last, and makes the directory a run.

    Raises:
      UserError: the directory is not empty, or cannot be written.
    """
    check_free(path)
    arrays = dict(zip(_ENTRIES, trained.entries, strict=True)) | trained.tables
    description = {"kind": "aligner", "format": _FORMAT} | dataclasses.asdict(trained.aligner)
    vocabulary = dict(zip(("source", "target"), trained.words, strict=True))
    try:
        path.mkdir(parents=True, exist_ok=True)
        content = serialized({name: array.copy(order="C") for name, array in arrays.items()})
        (path / _TABLES).write_bytes(content)  # by the user's umask, which safetensors' own writer ignores
        text = json.dumps(vocabulary, ensure_ascii=False)
        (path / _VOCABULARY).write_text(text, encoding="utf-8", newline="\n")
        temporary = path / (_DESCRIPTION + ".tmp")
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path / _DESCRIPTION)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def load(path: Path) -> Trained:
    """Reads a trained aligner.

    Raises:
      UserError: there is none, or a file of it is missing, damaged, or of a later version.
    """
    if not path.is_dir():
        raise UserError(f"no run directory at {path}")
    if not is_aligner(path):
        raise UserError(
            f"{path} is no aligner's run directory: it has no {_DESCRIPTION}; "
            "headway align SOURCE TARGET --out RUN writes one"
        )
    description = read_json(path / _DESCRIPTION)
    vocabulary = read_json(path / _VOCABULARY)
    try:
        arrays = load_file(path / _TABLES)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path / _TABLES}: {error}") from error
    version = description.pop("format", None)
    if version != _FORMAT:
        raise UserError(f"{path} has format {version!r}, and this version reads {_FORMAT}: train it again")
    description.pop("kind", None)
    try:
        entries = (arrays.pop(_ENTRIES[0]), arrays.pop(_ENTRIES[1]))
        words = (vocabulary["source"], vocabulary["target"])
        return Trained(Aligner(**description), words, entries, arrays)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
