"""Commands on runs of language models: evaluate, sample."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from research.cli import alignment, masked_language_models, translation
from research.errors import UserError, nearest
from research.training.progress import say

if TYPE_CHECKING:
    from research.training.trained import Trained


_TASKS = ("alignment", "blimp")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures a run: a language model on its validation text, or on all of another text (--data.path P; with
    --data.split documents or tail, on the part of it that training would hold out); a classifier on a file of
    labelled text (--data.path FILE); a translation model on its test sets, or on two files (--data.source S
    --data.target T). With --task blimp, a language model on minimal pairs (--data.path FILE). With --task
    alignment, links of words."""

    task: str | None = None
    """"blimp": the share of minimal pairs whose grammatical sentence the model finds likelier. "alignment":
    precision, recall and error rate of a file of links (in place of RUN), of a trained aligner, or of the
    attention of a network that translates, against --gold."""
    gold: str | None = None
    """File of gold links for --task alignment: i-j sure, ipj possible, from 1, a line for each sentence pair;
    or lines of NUMBER i j [S|P]."""
    pictures: str | None = None
    """Directory to draw alignments in, beside the gold links, those with most errors first."""
    layer: int | None = None
    """Layer of a Transformer's decoder whose attention is the alignment, from 0; default: the last but
    one."""
    checkpoint: str = "best"
    """Checkpoint to load: best (on the validation data), newest, or a step."""
    beam: int = 5
    """Width of the beam, for translation."""
    length_penalty: float = 1.0
    """Length penalty of the beam search, for translation (see translate)."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws text from a run."""

    prompt: str = ""
    """Text to go on from."""
    tokens: int | None = None
    """Most tokens to draw for a sample, which the end of a document ends earlier; default: 200, or half of
    the model's context."""
    temperature: float = 0.8
    """Temperature of the softmax; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability (nucleus)."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the likeliest one's probability."""
    count: int = 1
    """Samples to draw."""
    seed: int = 0
    """Seed of the draw."""
    checkpoint: str = "best"
    """Checkpoint to load: best (on the validation data), newest, or a step."""
    json: bool = False
    """Print the samples as one JSON object."""


def evaluate(target: str, options: Evaluate, overrides: Mapping[str, str]) -> None:
    """Prints how well a run predicts text, or translates."""
    from research.data.labelled_text import LabelledText
    from research.data.masked_text import MaskedText
    from research.data.text import TextData
    from research.inference.beam import Beam
    from research.objectives.recall import Recall
    from research.objectives.translation import Translation
    from research.training import language_model
    from research.training.description import kind, load_description
    from research.training.experiment import Experiment
    from research.training.overrides import override
    from research.training.run_directory import open_run
    from research.training.trained import load
    from research.training.trained_aligner import is_aligner
    from research.training.trained_phrases import load as load_phrases

    if options.task not in (None, *_TASKS):
        raise UserError(f"evaluate: unknown task {options.task!r}{nearest(options.task, _TASKS)}")
    if options.task == "alignment" or (options.task is None and is_aligner(Path(target))):
        alignment.evaluate(target, options, overrides)
        return
    if (options.gold, options.pictures, options.layer) != (None, None, None):
        raise UserError("evaluate: --gold, --pictures and --layer go with --task alignment")
    beam = Beam(options.beam, options.length_penalty)
    if not isinstance(load_description(open_run(target).experiment), Experiment):
        translation.evaluate(load_phrases(target), overrides, beam, as_json=options.json)
        return
    trained = load(target, options.checkpoint)
    if options.task is None and isinstance(trained.experiment.objective, Translation):
        translation.evaluate(trained, overrides, beam, as_json=options.json)
        return
    if beam != Beam(Evaluate.beam, Evaluate.length_penalty):
        raise UserError(f"evaluate: --beam and --length-penalty are for translation, which {target} is not")
    if options.task is not None:
        masked_language_models.evaluate_pairs(trained, overrides, as_json=options.json)
        return
    if isinstance(trained.experiment.objective, Recall):
        _evaluate_recall(trained, overrides, as_json=options.json)
        return
    learned_from = trained.experiment.data
    if not isinstance(learned_from, (TextData, MaskedText, LabelledText)):
        raise UserError(
            f"evaluate: {target} learned from {kind(type(learned_from))!r}, which it is measured on as it "
            "trains"
        )
    if isinstance(learned_from, LabelledText) and "data.path" not in overrides:
        raise UserError(
            f"evaluate: {target} was measured on its validation text when it had been trained; another file "
            "of the same fields: --data.path FILE"
        )
    whole = "data.path" in overrides and "data.split" not in overrides
    if "data.path" in overrides:
        overrides = {"data.source": "files", **overrides}
    elif overrides.get("data.source", "files") != "files":
        overrides = {"data.path": "none", **overrides}  # the run's own path is that of its files
    data = override(trained.experiment, overrides).data
    for problem in data.problems():
        raise UserError(problem)
    if isinstance(data, LabelledText):
        masked_language_models.evaluate_labels(trained, data, as_json=options.json)
        return
    if isinstance(data, MaskedText):
        masked_language_models.evaluate(trained, data, whole=whole, as_json=options.json)
        return
    assert isinstance(data, TextData)
    found = language_model.evaluate(trained, data, whole=whole, report=say)
    if options.json:
        print(json.dumps(found))
    else:
        part = "all" if whole else "the validation part"
        text = f"{part} of {data.path or data.source}"
        size = f"{found['bytes']:,} bytes, {found['tokens']:,} tokens"
        print(f"{target} at step {trained.step}, on {text} ({size}):")
        print(f"  {found['bits_per_byte']:.4f} bits per byte, {found['loss']:.4f} nats per token, ", end="")
        print(f"perplexity {found['perplexity']:.5g} per token")


def _evaluate_recall(trained: Trained, overrides: Mapping[str, str], *, as_json: bool) -> None:
    from research.training.recall import evaluate

    if overrides:
        raise UserError(
            f"--{next(iter(overrides))}: {trained.directory} learned from generated rows, not text"
        )
    found = evaluate(trained, report=say)
    if as_json:
        print(json.dumps(found))
    else:
        print(f"{found['run']} at step {found['step']}: accuracy {found['accuracy']:.4f}")
        for name, value in {**found["baselines"], **found["tests"]}.items():
            print(f"  {name:30} {value:.4f}")


def sample(target: str, options: Sample, overrides: Mapping[str, str]) -> None:
    """Prints text drawn from a run."""
    from research.inference.sampling import Decoding
    from research.models.gpt import GPT
    from research.objectives.causal_lm import CausalLM
    from research.training.description import kind
    from research.training.language_model import continuations
    from research.training.trained import load

    if options.count < 1:
        raise UserError(f"--count {options.count}: at least 1")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}: between 0 and {2**32 - 1}")
    how = Decoding(options.temperature, options.top_k, options.top_p, options.min_p)
    trained = load(target, options.checkpoint, codes=True)
    model, learned = trained.experiment.model, trained.experiment.objective
    if not isinstance(learned, CausalLM) or not isinstance(model, GPT):
        raise UserError(
            f"sample needs a run of objective {kind(CausalLM)!r}; {target} learned {kind(type(learned))!r}"
        )
    texts = continuations(
        model,
        trained.params,
        trained.tokenizer,
        [options.prompt] * options.count,
        tokens=options.tokens,
        how=how,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps({"run": target, "step": trained.step, "prompt": options.prompt, "samples": texts}))
    else:
        print("\n\n---\n\n".join(texts))
