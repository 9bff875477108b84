"""The description of a phrase-based translation system (Koehn, Och & Marcu, 2003)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from research.data.parallel import ParallelText
from research.errors import UserError
from research.statistical.aligner import Aligner
from research.statistical.phrase_table import Phrases
from research.statistical.stack_decoder import Search
from research.statistical.tuning import Tuning


@dataclasses.dataclass(frozen=True)
class NgramLanguageModel:
    """An n-gram language model of the target side."""

    order: int = 5
    """Words of its longest n-grams."""
    path: str | None = None
    """ARPA file of a model to use instead of estimating one, plain, .gz or .xz; or KenLM's own .binary."""
    reader: Literal["own", "kenlm"] = "own"
    """What reads it: own code, or KenLM (extra kenlm), one query at a time but in less memory."""

    def validate(self) -> None:
        """Raises UserError where a setting makes no sense."""
        if self.order < 1:
            raise UserError(f"language_model.order {self.order}: at least 1")
        if self.reader not in ("own", "kenlm"):
            raise UserError(f"unknown language_model.reader {self.reader!r}; choose from own, kenlm")
        if self.binary and self.reader != "kenlm":
            raise UserError(f"only KenLM reads {self.path}: --language_model.reader kenlm")

    @property
    def binary(self) -> bool:
        """Whether the model is in the form that is KenLM's own."""
        return self.path is not None and self.path.endswith(".binary")


@dataclasses.dataclass(frozen=True)
class PhraseBased:
    """One phrase-based system, described completely: aligned, extracted, estimated and tuned on one text.

    Words are what spaces divide, so the text should be tokenised.
    """

    name: str
    """Name of the experiment; the default run directory is runs/NAME."""
    data: ParallelText = dataclasses.field(default_factory=lambda: ParallelText(tokenised=True))
    alignment: Aligner = dataclasses.field(default_factory=Aligner)
    phrases: Phrases = dataclasses.field(default_factory=Phrases)
    language_model: NgramLanguageModel = dataclasses.field(default_factory=NgramLanguageModel)
    search: Search = dataclasses.field(default_factory=Search)
    """How translations are searched for."""
    tuning: Tuning = dataclasses.field(default_factory=Tuning)
    """How the weights of the features are found, on the validation text."""

    def validate(self) -> None:
        """Raises UserError where a setting makes no sense."""
        self.alignment.validate()
        self.phrases.validate()
        self.language_model.validate()
        self.search.validate()
        self.tuning.validate()
