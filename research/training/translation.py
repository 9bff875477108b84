"""What is done with a trained translation model: translating, and scoring translations of test sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from research.data.bitext import Bitext, PreparedBitext
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import Beam
from research.inference.translate import Translator
from research.models.transformer import Transformer
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import Functions
from research.training.trained import Trained


def translator(model: Transformer, params: Any, tokenizer: Tokenizer, beam: Beam | None = None) -> Translator:
    """Returns the translator of a model with these parameters."""
    return Translator(model.decoder(), params, tokenizer, context=model.context, beam=beam)


def conclude(
    experiment: Experiment,
    prepared: PreparedBitext,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Translates the first validation sentences, as many as the experiment asks for."""
    del parts
    values: dict[str, Any] = {}
    lines: list[str] = []
    text = experiment.data.open()
    if experiment.samples and "valid" in text.splits():
        report(f"translating {experiment.samples} validation sentences")
        pairs = [pair for pair, _ in zip(text.pairs("valid"), range(experiment.samples), strict=False)]
        found = translator(experiment.model, params, prepared.tokenizer).translate(pair[0] for pair in pairs)
        names = ("source", "reference", "translation")
        values["samples"] = [
            dict(zip(names, (*pair, best[0].text), strict=True))
            for pair, best in zip(pairs, found, strict=True)
        ]
        for sample in values["samples"]:
            lines += [f"{name:>12}: {line}" for name, line in sample.items()]
    return Conclusion(
        values, tuple(lines), ("translate {run} < SOURCE > TARGET", "evaluate {run}", "show {run}")
    )


def evaluate(trained: Trained, data: Bitext, *, beam: Beam, report: Callable[[str], None]) -> dict[str, Any]:
    """Returns the scores of the translations of every split but "train".

    Args:
      trained: the checkpoint.
      data: the text; that of the run, or other files.
      beam: how translations are searched for.
      report: receives messages.

    Raises:
      UserError: the text cannot be read, holds nothing but training text, or is of other languages than the
        run was trained for.
    """
    from research.evaluation.bleu import by_length, scores

    own = trained.experiment.data
    languages, asked = ((x.source_language, x.target_language) for x in (own, data))
    if asked != languages:
        raise UserError(
            f"the run translates {languages[0]} to {languages[1]}, not {asked[0]} to {asked[1]}; "
            "train another for that"
        )
    text = data.open()
    tests = [split for split in text.splits() if split != "train"]
    if not tests:
        raise UserError(
            "the run's text has no test or validation files; name some: --data.source FILE --data.target FILE"
        )
    found: dict[str, Any] = {"run": str(trained.directory.path), "step": trained.step, "splits": {}}
    translate = translator(trained.experiment.model, trained.params, trained.tokenizer, beam)
    for split in tests:
        report(f"translating {split}")
        sources, references = zip(*text.pairs(split), strict=True)
        hypotheses = [best[0].text for best in translate.translate(sources)]
        found["splits"][split] = {
            "sentences": len(sources),
            **scores(hypotheses, references, tokenised=data.tokenised),
            "by_length": by_length(sources, hypotheses, references, tokenised=data.tokenised),
        }
    return found
