"""What is done with a trained translation model: translating, and scoring translations of test sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from research.data.bitext import Bitext, PreparedBitext, encode
from research.data.buckets import OrderedPairBatches, TokenPairs, plan
from research.data.parallel import ParallelText
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import Beam
from research.inference.draws import Draws
from research.inference.ensemble import Ensemble
from research.inference.phrase_translation import PhraseTranslator
from research.inference.soft_alignment import SoftAligner
from research.inference.translate import Counts, Translator
from research.models.seq2seq import Seq2Seq
from research.models.transformer import Transformer
from research.objectives.translation import Translation
from research.scale.hosts import whole
from research.training.conclusion import Conclusion
from research.training.description import kind, load_description
from research.training.experiment import Experiment
from research.training.program import Functions, measure
from research.training.run_directory import open_run
from research.training.trained import Trained
from research.training.trained import load as load_trained
from research.training.trained_phrases import TrainedPhrases
from research.training.trained_phrases import load as load_phrases

ALIGNING = -2
"""The layer of a Transformer's decoder whose cross-attention is read as an alignment: the last but one, which
has been found to align best (Garg et al., 2019)."""
TranslationRun = Trained | TrainedPhrases
"""A run that translates."""


def load(path: str, checkpoint: str = "best") -> TranslationRun:
    """Returns a run that translates; ``checkpoint`` is of a network: "best", "newest" or a step.

    Raises:
      UserError: no run directory, no such checkpoint, one that is damaged, or a run for something else.
    """
    if not isinstance(load_description(open_run(path).experiment), Experiment):
        return load_phrases(path)
    trained = load_trained(path, checkpoint)
    if not isinstance(trained.experiment.objective, Translation):
        learned = kind(type(trained.experiment.objective))
        raise UserError(f"{path} was not trained to translate, but for {learned!r}")
    return trained


def translator_of(
    run: TranslationRun,
    search: Beam | Draws,
    candidates: int = 1,
    *,
    ensemble: Sequence[TranslationRun] = (),
    replace_unknown: bool = False,
) -> Translator | PhraseTranslator:
    """Returns the translator of a run, or of several as one.

    Args:
      run: what translates.
      search: a beam, and how many candidates of a network's it yields, or how its translations are drawn.
      candidates: how many a phrase-based system yields.
      ensemble: runs whose probabilities are averaged with those of the first.
      replace_unknown: put source words in the place of what the target's tokenizer does not have.

    Raises:
      UserError: the runs of an ensemble are not all networks with the same tokenizers, or unknown words
        cannot be replaced.
    """
    if isinstance(run, TrainedPhrases):
        if ensemble or replace_unknown or isinstance(search, Draws):
            what = "it copies unknown words in any case" if replace_unknown else "this is for networks"
            raise UserError(f"{run.directory} is phrase-based: {what}")
        return run.translator(candidates)
    members = [run, *(_member(other, run) for other in ensemble)]
    if replace_unknown:
        _check_unknown(run, members)
    covers = isinstance(search, Beam) and search.coverage_penalty > 0
    layer = ALIGNING if replace_unknown or covers else None
    decoders = [_network(member.experiment.model).decoder(layer) for member in members]
    return Translator(
        decoders[0] if not ensemble else Ensemble(tuple(decoders)),
        run.params if not ensemble else tuple(member.params for member in members),
        run.tokenizer,
        context=min(_network(member.experiment.model).context for member in members),
        search=search,
        source_tokenizer=_source_tokenizer(run),
        longest=_bitext(run).length,
        replace_unknown=replace_unknown,
    )


def _network(model: Any) -> Transformer | Seq2Seq:
    assert isinstance(model, Transformer | Seq2Seq)
    return model


def _bitext(run: Trained) -> Bitext:
    assert isinstance(run.experiment.data, Bitext)
    return run.experiment.data


def _source_tokenizer(run: Trained) -> Tokenizer:
    return _bitext(run).load_source_tokenizer(run.directory.path)


def _member(other: TranslationRun, run: Trained) -> Trained:
    """Returns a run that can translate as one with another; UserError if it cannot."""
    names = f"{other.directory} and {run.directory}"
    if isinstance(other, TrainedPhrases):
        raise UserError(f"{other.directory} is phrase-based: an ensemble is of networks")
    data = (_bitext(other), _bitext(run))
    languages = [(part.source_language, part.target_language) for part in data]
    if languages[0] != languages[1]:
        raise UserError(f"{names} translate different languages: they make no ensemble")
    own, theirs = (
        (
            _source_tokenizer(one).digest(),
            one.tokenizer.digest(),
            one.tokenizer.start,
            one.experiment.model.vocabulary,
        )
        for one in (run, other)
    )
    if own != theirs:
        raise UserError(f"{names} have different vocabularies: they make no ensemble")
    return other


def _check_unknown(run: Trained, members: Sequence[Trained]) -> None:
    if run.tokenizer.unknown is None:
        raise UserError(f"{run.directory} has no unknown words: its tokenizer can express any text")
    blind = [one for one in members if not tells(one.experiment.model)]
    if blind:
        raise UserError(f"{blind[0].directory} has no attention that says where an unknown word is from")


def aligner_of(run: TranslationRun, layer: int | None = None) -> SoftAligner:
    """Returns what tells how a run attends to its sources.

    Args:
      run: a network.
      layer: the layer of a Transformer's decoder that is read, from 0; None: the last but one.

    Raises:
      UserError: the run has no attention to the source, or no such layer.
    """
    if isinstance(run, TrainedPhrases) or not tells(run.experiment.model):
        raise UserError(f"{run.directory} has no attention to its source: nothing tells its alignment")
    model = _network(run.experiment.model)
    layers = model.decoder_depth if isinstance(model, Transformer) else 1
    if layer is not None and not 0 <= layer < layers:
        raise UserError(f"--layer {layer}: {run.directory} has the layers 0 to {layers - 1}")
    tokenizers = (_source_tokenizer(run), run.tokenizer)
    decoder = model.decoder(ALIGNING if layer is None else layer)
    return SoftAligner(decoder, run.params, tokenizers, context=model.context)


def tells(model: Any) -> bool:
    """Returns whether a model can tell which source words it attends to."""
    return model.attention is not None if isinstance(model, Seq2Seq) else bool(model.tells)


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
    assert isinstance(experiment.data, Bitext)
    text = experiment.data.open()
    if experiment.samples and "valid" in text.splits():
        report(f"translating {experiment.samples} validation sentences")
        pairs = [pair for pair, _ in zip(text.pairs("valid"), range(experiment.samples), strict=False)]
        model = _network(experiment.model)
        found = Translator(
            model.decoder(), whole(params), prepared.tokenizer,
            context=model.context, source_tokenizer=prepared.source_tokenizer, longest=experiment.data.length,
        ).translate(pair[0] for pair in pairs)  # fmt: skip
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


def translations(
    trained: TranslationRun, data: ParallelText, *, beam: Beam, report: Callable[[str], None]
) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Returns sources, translations and references of every split but "train".

    Args:
      trained: the run.
      data: the text; that of the run, or other files.
      beam: how translations are searched for.
      report: receives messages, and how many lines were too long.

    Raises:
      UserError: the text cannot be read, holds nothing but training text, or is of other languages than the
        run was trained for.
    """
    _check_languages(trained, data)
    text = data.open()
    text.fingerprint()  # tells of files that are missing
    tests = [split for split in text.splits() if split != "train"]
    if not tests:
        raise UserError(
            "the run's text has no test or validation files; name some: --data.source FILE --data.target FILE"
        )
    found = {}
    model = translator_of(trained, beam)
    for split in tests:
        report(f"translating {split}")
        pairs = list(text.pairs(split))
        if not pairs:
            raise UserError(f"the split {split!r} of the text is empty: there is nothing to translate")
        sources, references = (list(side) for side in zip(*pairs, strict=True))
        model.counts = Counts()
        found[split] = (sources, [best[0].text for best in model.translate(sources)], references)
        for line in model.warnings():
            report(f"{split}: {line}")
    return found


def _check_languages(run: TranslationRun, data: ParallelText) -> None:
    """Raises UserError where the text is of other languages than the run was trained for."""
    own = run.experiment.data
    assert isinstance(own, ParallelText)
    languages, asked = ((x.source_language, x.target_language) for x in (own, data))
    if asked != languages:
        raise UserError(
            f"{run.directory} translates {languages[0]} to {languages[1]}, and the text is {asked[0]} to "
            f"{asked[1]}"
        )


def evaluate(
    trained: TranslationRun, data: ParallelText, *, beam: Beam, report: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the scores of the translations of every split but "train", and of a network its bits per token.

    Arguments as `translations`.
    """
    from research.evaluation.bleu import by_length, scores

    splits = {}
    for split, texts in translations(trained, data, beam=beam, report=report).items():
        splits[split] = {
            "sentences": len(texts[0]),
            **scores(*texts[1:], tokenised=data.tokenised),
            "by_length": by_length(*texts, tokenised=data.tokenised),
        }
        if isinstance(trained, Trained):
            splits[split] |= bits_per_token(trained, texts[0], texts[2])
        try:
            on_raw = raw_scores(data, split, texts[1])
        except UserError as error:  # a directory may hold the tokenised form alone
            report(f"{split} is not scored on raw text: {error}")
        else:
            splits[split] |= {} if on_raw is None else {"raw": on_raw}
    return {"run": str(trained.directory), "step": trained.step, "splits": splits}


def bits_per_token(run: Trained, sources: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Returns how well a network predicts references, each token given those before it.

    {"bits_per_token"; "reference_tokens", ends of text included; "too_long": pairs of more tokens than the
    model takes, which have no part in it}. With nothing but such pairs, "bits_per_token" is None.
    """
    data, model = _bitext(run), _network(run.experiment.model)
    tokenizers = (_source_tokenizer(run), run.tokenizer)
    sides = [encode(t, side) for t, side in zip(tokenizers, (sources, references), strict=True)]
    fit = [pair for pair in zip(*sides, strict=True) if max(map(len, pair)) < model.context]
    found = {"bits_per_token": None, "reference_tokens": 0, "too_long": len(sources) - len(fit)}
    if not fit:
        return found
    ours, theirs = zip(*fit, strict=True)
    pairs = TokenPairs.of(ours, theirs, run.tokenizer.end_of_text, start=run.tokenizer.start)
    multiple, widths = data.rows_multiple, pairs.widths()
    tokens = max(data.batch_tokens, multiple * int(widths.max()))
    batches: Any = OrderedPairBatches(
        pairs, plan(widths, count=data.buckets, tokens=tokens, multiple=multiple)
    )
    sums = measure(run.functions, run.params, batches)
    bits = sums["loss"] / sums["weight"] / math.log(2)
    return found | {"bits_per_token": bits, "reference_tokens": round(sums["weight"])}


def raw_scores(data: ParallelText, split: str, hypotheses: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Returns scores of translations of Multi30k's tokenised form, detokenised, on its raw references.

    Case plays no part: the tokenised form is lower-cased. None of other text.

    Raises:
      UserError: the raw text cannot be read.
    """
    from research.evaluation.bleu import scores
    from research.evaluation.detokenization import detokenised

    if data.corpus != "multi30k" or not data.tokenised:
        return None
    raw = dataclasses.replace(data, tokenised=False).open()
    references = [target for _, target in raw.pairs(split)]
    written = [detokenised(line, data.target_language) for line in hypotheses]
    return scores(written, references, lowercase=True)


def compare(
    first: TranslationRun,
    second: TranslationRun,
    data: ParallelText,
    *,
    beam: Beam,
    report: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Returns BLEU of two runs, and the p-value of the difference, for every split but "train".

    Args:
      first: a run.
      second: another.
      data: the text.
      beam: how translations are searched for.
      report: receives messages.

    Raises:
      UserError: as `translations`, of either run.
    """
    from research.evaluation.bleu import compared

    for run in (first, second):  # before either translates
        _check_languages(run, data)
    one, two = (translations(run, data, beam=beam, report=report) for run in (first, second))
    return {
        split: compared(one[split][1], two[split][1], one[split][2], tokenised=data.tokenised)
        for split in one
    }
