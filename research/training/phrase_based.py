"""The description of a phrase-based translation system (Koehn, Och & Marcu, 2003)."""

from __future__ import annotations

import dataclasses

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
    """ARPA file of a model to use instead of estimating one; plain, .gz or .xz."""


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
        self.search.validate()
        self.tuning.validate()
        if self.language_model.order < 1:
            raise UserError(f"language_model.order {self.language_model.order}: at least 1")
