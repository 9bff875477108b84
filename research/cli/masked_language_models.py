"""What commands do with runs of masked language models, and with minimal pairs: fill, evaluate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.training.progress import say

if TYPE_CHECKING:
    from research.data.labelled_text import LabelledText
    from research.data.masked_text import MaskedText
    from research.training.trained import Trained


@dataclasses.dataclass(frozen=True)
class Fill:
    """Shows what a run of a masked language model puts in the place of each [MASK] of a text."""

    top: int = 5
    """Candidates to show for each gap."""
    checkpoint: str = "best"
    """Checkpoint to load: best (on the validation data), newest, or a step."""
    json: bool = False
    """Print the candidates as one JSON object."""


def fill(target: str, text: str, options: Fill, overrides: Mapping[str, str]) -> None:
    """Prints the likeliest tokens for each gap."""
    del overrides
    from research.training import masked_language_model
    from research.training.trained import load

    if options.top < 1:
        raise UserError(f"--top {options.top}: at least 1")
    trained = load(target, options.checkpoint)
    found = masked_language_model.fill(trained, text, top=options.top)
    if options.json:
        gaps = [[dataclasses.asdict(candidate) for candidate in gap] for gap in found]
        print(json.dumps({"run": target, "step": trained.step, "text": text, "gaps": gaps}))
        return
    for number, gap in enumerate(found, start=1):
        if len(found) > 1:
            print(f"gap {number}:")
        width = max(len(candidate.token) for candidate in gap)
        for candidate in gap:
            print(f"  {candidate.probability:7.2%}  {candidate.token:{width}}  {candidate.text}")


def evaluate(trained: Trained, data: MaskedText, *, whole: bool, as_json: bool) -> None:
    """Prints how many gaps a run fills right, in all of the text or in the part that is held out."""
    from research.training import masked_language_model

    found = masked_language_model.evaluate(trained, data, whole=whole, report=say)
    if as_json:
        print(json.dumps(found))
        return
    part = "all" if whole else "the validation part"
    print(
        f"{trained.directory} at step {trained.step}, on {part} of {data.path or data.source}:\n"
        f"  {found['accuracy']:.2%} of {found['gaps']:,} masked tokens filled right, "
        f"{found['loss']:.4f} nats per masked token"
    )


def evaluate_labels(trained: Trained, data: LabelledText, *, as_json: bool) -> None:
    """Prints how well a classifier does on the labelled text of a file."""
    from research.training import classification

    found = classification.evaluate(trained, data, report=say)
    summary = found.pop("summary")
    if as_json:
        print(json.dumps(found))
        return
    print(f"{found['run']} at step {found['step']}, on {found['examples']:,} examples of {data.path}:")
    print(f"  {summary}")


def evaluate_pairs(trained: Trained, overrides: Mapping[str, str], *, as_json: bool) -> None:
    """Prints a table of accuracies on minimal pairs, by phenomenon, published ones beside it."""
    from research.training import grammar

    if "data.path" not in overrides:
        raise UserError(
            "--task blimp needs --data.path FILE: JSON lines with sentence_good, sentence_bad, UID and "
            "linguistics_term (github.com/alexwarstadt/blimp)"
        )
    for name in overrides:
        if name != "data.path":
            raise UserError(f"--{name} plays no part in --task blimp, whose fields have names of their own")
    found = grammar.evaluate(trained, overrides["data.path"], report=say)
    if as_json:
        print(json.dumps(found))
        return
    models = sorted(found["published"])
    print(f"{found['run']} at step {found['step']}: {found['pairs']:,} minimal pairs, % right (chance 50)")
    print(f"  {'phenomenon':26} {'run':>6}" + "".join(f" {model:>6}" for model in models))
    rows: list[tuple[str, str, Any]] = [(name, name, value) for name, value in found["phenomena"].items()]
    for label, name, value in [*rows, ("mean over paradigms", "mean", found["all"]["mean"])]:
        beside = "".join(f" {100 * found['published'][model][name]:6.1f}" for model in models)
        print(f"  {label:26} {100 * value:6.1f}{beside}")
