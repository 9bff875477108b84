"""The command that aligns words, and the evaluation of alignments."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.training.progress import say

if TYPE_CHECKING:
    from research.cli.language_models import Evaluate
    from research.statistical.aligner import Aligner, Trained


@dataclasses.dataclass(frozen=True)
class Align:
    """Aligns the words of two files of tokenised sentences, line by line: links i-j, counted from 0. It
    learns from these files, or, with --run RUN, uses what --out RUN saved. With --out, the same command goes
    on with a run that was stopped."""

    model: str = "joint"
    """joint (both directions trained to agree), or, each direction apart: model1, model2, diagonal, hmm,
    model3, model4, model5, model6."""
    symmetrize: str = ""
    """How to combine directions that were trained apart: intersection (default), union, grow-diag,
    grow-diag-final, grow-diag-final-and, forward, backward."""
    threshold: float = 0.25
    """Links of the joint model have a probability above this; lower: more links."""
    prior: float | None = None
    """Dirichlet prior of the lexical tables of joint (default 0.003), and of model1, model2, diagonal and hmm
    (default none)."""
    keep_case: bool = False
    """Take words that differ only in case as different words."""
    run: str | None = None
    """Run directory of a trained aligner to use on these files, instead of learning from them."""
    out: str | None = None
    """Run directory to keep training in, and what it has learnt."""
    gold: str | None = None
    """File of gold links of all sentence pairs or the first ones: the links found are scored."""
    probabilities: bool = False
    """Write links as i-j:probability, the product of both directions' posterior probabilities."""
    json: bool = False
    """Print one JSON object: links of all pairs, and counts."""


def align(source: str, target: str, *, options: Align, overrides: Mapping[str, str]) -> None:
    """Runs ``headway align``."""
    del overrides
    share_out()

    from research.evaluation.alignment import score_line
    from research.statistical import aligner
    from research.statistical.iterations import Progress
    from research.training import alignment_training
    from research.training.run_directory import on_disk
    from research.training.word_alignment import AlignedFiles, WordAlignment

    start = time.monotonic()
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(aligner.Aligner)}
    how = aligner.Aligner(**fields)
    trained = None
    if options.run is not None:
        trained = _trained(options, how)
    else:
        how.validate()
    data = AlignedFiles(source, target, options.gold)
    if options.out is not None:
        out = on_disk(options.out)
        description = WordAlignment(out.resolve().name, data, how)
        _, found, score = alignment_training.run(description, out, report=say)
    else:
        text = data.read(say)
        if trained is not None:
            found = aligner.apply(trained, text.source, text.target)
        else:
            found = aligner.align(text.source, text.target, how, progress=Progress(say))
        score = alignment_training.score_of(found, text)
    if options.json:
        counts: dict[str, Any] = {"pairs": len(found), "links": len(found.source), "empty": found.empty}
        counts |= {"too_long": found.too_long} | ({"score": dataclasses.asdict(score)} if score else {})
        print(json.dumps(counts | {"alignment": [found.links(pair) for pair in range(len(found))]}))
    else:
        for line in found.lines(probabilities=options.probabilities):
            print(line)
    left = [f"{found.empty:,} with an empty side"] * bool(found.empty)
    left += [f"{found.too_long:,} of more than {aligner.LONGEST} words"] * bool(found.too_long)
    say(
        f"{len(found.source):,} links in {len(found):,} sentence pairs, {time.monotonic() - start:.0f} s"
        + (f"; without links: {', '.join(left)}" if left else "")
    )
    if score is not None:
        say(score_line(score))
    if options.out is not None:
        say(f"run directory: {options.out}; next: headway align --run {options.out} SOURCE TARGET")


def share_out() -> None:
    """Sets JAX up for expectations, before it starts."""
    from research.scale.host_memory import keep_freed_memory
    from research.statistical.em import device_per_core

    keep_freed_memory()
    device_per_core()


def _trained(options: Align, how: Aligner) -> Trained:
    """Returns the aligner of --run, with the threshold and the symmetrisation that were asked for."""
    from research.statistical import aligner
    from research.training.trained_aligner import load

    assert options.run is not None
    if options.out is not None:
        raise UserError("align: --run uses what was trained, --out saves what is trained now: leave one out")
    default = aligner.Aligner()
    for name in ("model", "prior", "keep_case"):
        if getattr(how, name) != getattr(default, name):
            option = name.replace("_", "-")
            raise UserError(
                f"align: --{option} is for training, and --run {options.run} is trained: leave it out"
            )
    trained = load(Path(options.run))
    changed = {
        name: getattr(how, name)
        for name in ("symmetrize", "threshold")
        if getattr(how, name) != getattr(default, name)
    }
    own = dataclasses.replace(trained.aligner, **changed)
    own.validate()
    return dataclasses.replace(trained, aligner=own)


def evaluate(target: str, options: Evaluate, overrides: Mapping[str, str]) -> None:
    """Prints precision, recall and alignment error rate of links, or of those a run finds, against gold.

    Args:
      target: file of links, i-j from 0, or run directory of an aligner, or of a network that translates: of
        its attention, the source word that each target word attends to most.
      options: gold links, pictures, and which layer and checkpoint to read.
      overrides: data.source and data.target, the text; a run needs it, links are checked against it.
    """
    from research.data.parallel import lines_of
    from research.evaluation.alignment import alignment_score, parse_gold, parse_links, score_line
    from research.statistical.aligner import read_sentences
    from research.training.trained_aligner import is_aligner, load

    gold, pictures = options.gold, options.pictures
    unknown = [name for name in overrides if name not in ("data.source", "data.target")]
    if unknown:
        raise UserError(f"evaluate: --{unknown[0]} has nothing to do with --task alignment")
    if gold is None:
        raise UserError(
            "evaluate: --task alignment needs --gold FILE: lines of i-j (sure) and ipj (possible), from 1"
        )
    is_run = Path(target).is_dir()
    if len(overrides) == 1 or (not overrides and (is_run or pictures)):
        needs = f"the run {target}" if is_run else "--pictures" if pictures else "the text"
        raise UserError(f"evaluate: {needs} needs both sides: --data.source FILE --data.target FILE")
    sides = None
    if overrides:
        sides = read_sentences(Path(overrides["data.source"]), Path(overrides["data.target"]), say)
    lengths = sides and [(len(e), len(f)) for e, f in zip(*sides, strict=True)]
    is_network = is_run and not is_aligner(Path(target))
    if options.layer is not None and not is_network:
        raise UserError("evaluate: --layer goes with the run of a network that translates")
    if is_network:
        assert sides is not None
        links = _attended(target, sides, options)
    elif is_run:
        share_out()
        from research.statistical import aligner

        assert sides is not None
        found = aligner.apply(load(Path(target)), *sides)
        links = [set(found.links(pair)) for pair in range(len(found))]
    else:
        links = parse_links(lines_of(Path(target)), target, lengths)
    expected = parse_gold(lines_of(Path(gold)), gold, lengths)
    score = alignment_score(links, expected)
    result = dataclasses.asdict(score)
    if pictures is not None:
        from research.report.alignments import write_pictures

        assert sides is not None
        result["report"] = str(write_pictures(Path(pictures), *sides, links, expected, score))
    if options.json:
        print(json.dumps(result))
        return
    print(score_line(score))
    if pictures is not None:
        print(f"pictures: {result['report']}")


def _attended(
    target: str, sides: tuple[list[list[str]], list[list[str]]], options: Evaluate
) -> list[set[tuple[int, int]]]:
    """Returns the links of a network's attention."""
    from research.inference.soft_alignment import likeliest_links
    from research.training import translation

    run = translation.load(target, options.checkpoint)
    say("the text is taken as it is: case and tokenisation should be those of the run's own")
    return [likeliest_links(one) for one in translation.aligner_of(run, options.layer).align(*sides)]
