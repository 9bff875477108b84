"""Loading a phrase-based run, and what it shows of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.inference.phrase_translation import PhraseTranslator
from research.statistical.decoding import PhraseDecoder
from research.statistical.phrase_table import read_table
from research.training.description import kind, load_description, to_json
from research.training.phrase_based import PhraseBased
from research.training.phrase_training import PHRASES, WEIGHTS, ngram_line, ngrams, read_language_model
from research.training.run_directory import RunDirectory, open_run
from research.training.summary import description_lines, table


@dataclasses.dataclass(frozen=True)
class TrainedPhrases:
    """A phrase-based run, ready to use."""

    directory: RunDirectory
    experiment: PhraseBased
    step: int
    """The round of tuning that its weights are from."""
    decoder: PhraseDecoder

    def translator(self, candidates: int = 1) -> PhraseTranslator:
        """Returns the translator of lines, with this many candidates of each."""
        return PhraseTranslator(self.decoder, candidates)

    def summary(self) -> dict[str, Any]:
        """Returns what it is and has come to, as JSON values."""
        phrases = self.decoder.table
        return {
            "experiment": to_json(self.experiment),
            "run": str(self.directory.path),
            "step": self.step,
            "source_phrases": len(phrases.sources),
            "phrase_pairs": len(phrases.targets),
            "ngrams": ngrams(self.decoder.model),
            "weights": dict(self.decoder.weights),
            "bleu_of_rounds": [row["valid/bleu"] for row in self.directory.rows()],
        }


def load(path: str | Path) -> TrainedPhrases:
    """Returns a phrase-based run.

    Raises:
      UserError: no run directory of such a system, one that is not done, or a file that is damaged.
    """
    directory = open_run(path)
    description = load_description(directory.experiment)
    if not isinstance(description, PhraseBased):
        raise UserError(f"{path} is of kind {kind(type(description))!r}, which does not translate")
    if not (directory.path / WEIGHTS).exists():
        raise UserError(f"{path} has no {WEIGHTS} yet: it is not tuned; headway train {path} goes on with it")
    try:
        record = json.loads((directory.path / WEIGHTS).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{directory.path / WEIGHTS} is damaged: it is not JSON") from None
    phrases = read_table(directory.path / PHRASES)
    model = read_language_model(description.language_model, directory.path)
    decoder = PhraseDecoder(phrases, model, record["weights"], description.search)
    return TrainedPhrases(directory, description, record["round"], decoder)


def text(found: Mapping[str, Any]) -> str:
    """Returns a summary for a reader."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from description_lines(found["experiment"], "")
    yield ""
    rounds = ", ".join(f"{bleu:.2f}" for bleu in found["bleu_of_rounds"])
    yield f"run {found['run']}: weights of round {found['step']} of tuning; BLEU of the rounds: {rounds}"
    yield f"phrase pairs      {found['phrase_pairs']:,} of {found['source_phrases']:,} source phrases"
    yield f"n-grams           {ngram_line(found['ngrams'])}"
    yield ""
    yield from table([("feature", "weight"), *((name, f"{w:.5g}") for name, w in found["weights"].items())])
