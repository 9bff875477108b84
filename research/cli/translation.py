"""Commands on runs of translation models: translate, compare, and evaluate."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.training.progress import say

if TYPE_CHECKING:
    from research.inference.beam import Beam
    from research.training.translation import TranslationRun

_FIRST = 64
"""Lines that are translated before any translation is printed."""
_PATIENCE = 2.0
"""Seconds between messages about progress, at least."""


@dataclasses.dataclass(frozen=True)
class Translate:
    """Translates lines from standard input to standard output, line by line, in their order."""

    beam: int = 5
    """Width of the beam; 1: greedy. A phrase-based run searches as its description says."""
    length_penalty: float = 1.0
    """alpha of the score log P / ((5 + length) / 6)^alpha (Wu et al., 2016); 0: the likeliest text."""
    coverage_penalty: float = 0.0
    """beta of the coverage penalty (Wu et al., 2016); of a Transformer, by its last layer of attention but
    one."""
    ensemble: tuple[str, ...] = ()
    """More runs, separated by commas, whose probabilities are averaged with those of RUN; with the same
    vocabulary."""
    temperature: float | None = None
    """Draw one translation of each line with this temperature of the softmax, instead of searching."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability (nucleus)."""
    seed: int = 0
    """Seed of the draws."""
    replace_unknown: bool = False
    """Put the source word with most attention in the place of a word that the tokenizer does not have."""
    score: str | None = None
    """File of translations of the lines: print the log-probability of each, instead of translating."""
    n_best: int = 0
    """Print this many candidates of each line, as "line ||| text ||| score ||| log-probability"
    (a phrase-based run has no probability)."""
    checkpoint: str = "best"
    """Checkpoint to load: best (on the validation data), newest, or a step."""
    json: bool = False
    """Print one JSON object for each line: its candidates with their scores."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compares the translations of two runs on the first one's test sets, or on two files (--data.source S
    --data.target T): BLEU, and the p-value of the difference by paired bootstrap."""

    beam: int = 5
    """Width of the beam; 1: greedy."""
    length_penalty: float = 1.0
    """Length penalty of the beam search (see translate)."""
    checkpoint: str = "best"
    """Checkpoint of each to load: best (on the validation data), newest, or a step."""
    json: bool = False
    """Print the result as one JSON object."""


def translate(target: str, options: Translate, overrides: Mapping[str, str]) -> None:
    """Prints translations of the lines of standard input; progress goes to standard error."""
    del overrides
    from research.data.parallel import lines_of, paired
    from research.inference.beam import Beam
    from research.inference.draws import Draws
    from research.inference.sampling import Decoding
    from research.inference.translate import Translator
    from research.training.trained import Trained
    from research.training.translation import load, translator_of

    _check(options)
    search: Beam | Draws = Beam(options.beam, options.length_penalty, options.coverage_penalty)
    if options.temperature is not None:
        search = Draws(Decoding(options.temperature, top_p=options.top_p), options.seed)
    trained = load(target, options.checkpoint)
    model = translator_of(
        trained,
        search,
        options.n_best or (options.beam if options.json else 1),
        ensemble=[load(run, options.checkpoint) for run in options.ensemble],
        replace_unknown=options.replace_unknown,
    )
    if not isinstance(trained, Trained):
        if (options.length_penalty, options.coverage_penalty) != (1.0, 0.0):
            raise UserError(
                f"{target} is phrase-based and weighs length by itself: leave --length-penalty and "
                "--coverage-penalty out"
            )
    elif options.beam > trained.experiment.model.vocabulary:
        raise UserError(
            f"--beam {options.beam} is larger than the vocabulary:"
            f" {trained.experiment.model.vocabulary} tokens"
        )
    if options.score is not None:
        if not isinstance(model, Translator):
            raise UserError(f"--score: {target} is phrase-based and gives no probability to a translation")
        pairs = paired(_lines(), lines_of(Path(options.score)), ("standard input", options.score))
        for total in model.score(pairs):
            print(json.dumps({"log_probability": total}) if options.json else f"{total:.6f}")
        return
    begin = told = time.monotonic()

    def tell(done: int, what: str) -> None:
        nonlocal told
        told = time.monotonic()
        say(f"{done:,} {what}, {done / (told - begin):.1f} per second")

    def progress(done: int) -> None:
        if time.monotonic() - told > _PATIENCE:
            tell(done, "sentences")

    for number, candidates in enumerate(model.translate(_lines(), first=_FIRST, progress=progress)):
        if options.json:
            told_of = candidates[: options.n_best or None]
            print(json.dumps({"candidates": [dataclasses.asdict(one) for one in told_of]}))
        elif options.n_best:
            for one in candidates[: options.n_best]:
                probability = "" if one.log_probability is None else f" ||| {one.log_probability:.6f}"
                print(f"{number} ||| {one.text} ||| {one.score:.6f}{probability}")
        else:
            print(candidates[0].text)
        if number + 1 == model.counts.lines:  # the last one of a chunk
            sys.stdout.flush()
    if model.counts.lines:
        tell(model.counts.lines, "lines")
    for line in model.warnings():
        say(line)


def _check(options: Translate) -> None:
    """Refuses values out of range, and options that the way of translating asked for would ignore."""
    if not 0 <= options.n_best <= options.beam:
        raise UserError(f"--n-best {options.n_best}: at most the beam of {options.beam}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}: between 0 and {2**32 - 1}")
    given = {
        field.name.replace("_", "-")
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }
    search, draws = ["beam", "length-penalty", "coverage-penalty"], ["top-p", "seed"]
    if options.score is not None:
        way, idle = "--score", [*search, *draws, "n-best", "temperature", "replace-unknown"]
    elif options.temperature is not None:
        way, idle = "a draw (--temperature)", search
    else:
        way, idle = "a search: it goes with --temperature", draws
    if options.temperature is not None and options.n_best > 1:
        raise UserError(
            f"--n-best {options.n_best}: with --temperature one translation of each line is drawn"
        )
    for name in idle:
        if name in given:
            raise UserError(f"--{name} plays no part in {way}")


def _lines() -> Iterator[str]:
    """Yields the lines of standard input; UserError, with its number, for one that is not UTF-8."""
    if sys.stdin is None:
        raise UserError("there is no standard input to translate")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input, line {number} is not UTF-8 (byte {error.start})") from None


def compare(first: str, second: str, options: Compare, overrides: Mapping[str, str]) -> None:
    """Prints BLEU of two runs and whether they differ."""
    from research.inference.beam import Beam
    from research.training import translation

    one, two = (translation.load(run, options.checkpoint) for run in (first, second))
    beam, data = Beam(options.beam, options.length_penalty), _tests(one, overrides)
    found = translation.compare(one, two, data, beam=beam, report=say)
    if options.json:
        print(json.dumps({"runs": [first, second], "splits": found}))
        return
    for split, row in found.items():
        scores = f"{row['first']:.2f} ({first}) and {row['second']:.2f} ({second})"
        print(f"{split}: BLEU {scores}, p = {row['p_value']:.4f}\n  {row['signature']}")


def _tests(trained: TranslationRun, overrides: Mapping[str, str]) -> Any:
    """Returns the run's text, or the files that the overrides name; UserError if they name one of the two."""
    from research.training.overrides import override

    files = ("data.source", "data.target")
    if (missing := [name for name in files if name not in overrides]) and len(missing) < len(files):
        raise UserError(f"--data.source FILE and --data.target FILE go together; --{missing[0]} is missing")
    if "data.source" in overrides:
        overrides = {"data.corpus": "test", **overrides}
    return override(trained.experiment, overrides).data


def evaluate(trained: TranslationRun, overrides: Mapping[str, str], beam: Beam, *, as_json: bool) -> None:
    """Prints the scores of a run's translations of its tests, or of the files that the overrides name."""
    from research.training import translation

    data = _tests(trained, overrides)
    found = translation.evaluate(trained, data, beam=beam, report=say)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{trained.directory} at step {trained.step}, beam {beam.width}:")
    for split, result in found["splits"].items():
        print(f"{split} ({result['sentences']:,} sentences)")
        for name in ("bleu", "chrf2", "ter"):
            print(f"  {result[name]['text']}")
        if "raw" in result:
            print(f"  on raw text, detokenised: {result['raw']['bleu']['text']}")
        print("  BLEU by source length: " + ", ".join(map(_row, result["by_length"])))
        if result.get("bits_per_token") is not None:
            left_out = (
                f", without {result['too_long']:,} pairs that are too long" if result["too_long"] else ""
            )
            size = f"{result['reference_tokens']:,} tokens{left_out}"
            print(
                f"  bits per token of the references, teacher-forced: {result['bits_per_token']:.4f} ({size})"
            )


def _row(row: dict[str, Any]) -> str:
    return f"{row['first']}-{row['last']} words {row['bleu']:.1f} ({row['sentences']})"
