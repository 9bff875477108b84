"""Text for language modelling: the description that names it and the tokens it becomes."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TextData:
    """Text, how it is cut into tokens, and how tokens become batches."""

    source: str = "standard-library"
    """Where the text is from: "standard-library", "files" (needs path), or "tfds:NAME"."""
    path: str | None = None
    """Text for source "files": a file, directory, glob, or .jsonl."""
    field: str = "text"
    """Field that holds the text, in JSONL lines and TFDS examples."""
    tokenizer: str = "bpe"
    """"bpe" (byte-level, trained on the training text), "characters", or the path of a tokenizer.json."""
    split: Literal["documents", "tail"] = "documents"
    """What validation holds out: whole documents, or the last part of the text."""
    valid_fraction: float = 0.1
    """Share of the text held out for validation (sources with a validation split of their own use that)."""
    length: int = 256
    """Tokens in a training sequence."""
    batch: int = 32
    """Sequences in a step, over all devices."""
