"""What is done with a causal language model: measuring it on text, and drawing text from it."""

from __future__ import annotations

import ast
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research.data.cache import build_once, cache_directory, content_hash
from research.data.files import TextFiles
from research.data.stream import StreamWriter, TokenStream
from research.data.text import PreparedText, TextData
from research.data.tokenizer import Tokenizer
from research.inference.sampling import Decoding, sample
from research.models.gpt import GPT
from research.scale.hosts import whole
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import Functions, measure, share
from research.training.trained import Trained


def conclude(
    experiment: Experiment,
    prepared: PreparedText,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Measures baselines and draws samples, as far as the experiment asks for them."""
    model, data = experiment.model, experiment.data
    assert isinstance(model, GPT) and isinstance(data, TextData)  # as validity has checked
    values: dict[str, Any] = {}
    lines: list[str] = []
    if experiment.baselines:
        from research.evaluation import ngram

        report("measuring the whole validation text, and baselines on it")
        found = prepared.metrics(measure(parts, params, prepared.valid_batches(**share(parts.mesh))))
        values["validation"] = {f"valid/{name}": value for name, value in found.items()}
        values["baselines"] = ngram.baselines(prepared)
        bits = found["bits_per_byte"]
        lines.append(f"all of the validation text: {bits:.4f} bits per byte; baselines on it:")
        lines += [
            f"  {name:22} {value:.4f}{'  (lower than the model)' if value < bits else ''}"
            for name, value in values["baselines"].items()
        ]
    if experiment.samples:
        report(f"drawing {experiment.samples} samples")
        prompts = [""] * experiment.samples
        samples = continuations(model, whole(params), prepared.tokenizer, prompts, seed=experiment.seed)
        values["samples"] = samples
        parsed = ""
        if data.source == "standard-library":
            values["python"] = sum(map(is_python, samples))
            parsed = f"; {values['python']} of {len(samples)} parse as Python"
        lines.append(f"sample (1 of {len(samples)}{parsed}):\n\n{samples[0]}\n")
    return Conclusion(values, tuple(lines), ('sample {run} --prompt "..."', "evaluate {run}", "show {run}"))


def evaluate(
    trained: Trained, data: TextData, *, whole: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    """Returns how well a checkpoint predicts text: nats per token, perplexity, bits per byte, and the sizes.

    Args:
      trained: the checkpoint.
      data: the text.
      whole: measure all of the files that ``data`` names, and not only the part that it holds out.
      report: receives messages.
    """
    if whole:
        file, stream = Path(), _all_of(data, trained.tokenizer)
        prepared = PreparedText(trained.tokenizer, stream, stream, file, data.length, data.batch)
    else:
        vocabulary = trained.experiment.model.vocabulary
        prepared = data.prepare(vocabulary=vocabulary, tokenizer=trained.tokenizer, report=report)
        stream = prepared.valid
    batches = prepared.valid_batches(**share(trained.functions.mesh))
    found = prepared.metrics(measure(trained.functions, trained.params, batches))
    return {
        "run": str(trained.directory),
        "step": trained.step,
        "loss": found["loss"],
        "perplexity": perplexity(found["loss"]),
        "bits_per_byte": found["bits_per_byte"],
        "tokens": len(stream),
        "bytes": stream.bytes,
    }


def perplexity(loss: float) -> float:
    """Returns the perplexity of a loss in nats; the largest number there is where it would be larger."""
    return math.exp(min(loss, math.log(sys.float_info.max)))


def _all_of(data: TextData, tokenizer: Tokenizer) -> TokenStream:
    """Returns the tokens of all the files that ``data`` names; they are cached."""
    source = TextFiles(str(data.path), data.field)

    def build(directory: Path) -> None:
        with StreamWriter(directory / "text", tokenizer) as writer:
            for document in source.documents():
                pieces = enumerate(tokenizer.pieces(document["text"]))
                writer.write([(piece, number == 0) for number, piece in pieces])

    key = content_hash("all", source.fingerprint(), tokenizer.to_json())
    return TokenStream.open(build_once(cache_directory() / "tokens" / key, build) / "text")


def continuations(
    model: GPT,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    tokens: int | None = None,
    how: Decoding | None = None,
    seed: int = 0,
) -> list[str]:
    """Returns each prompt with its continuation; an empty prompt begins a new document.

    Args:
      model: the network's description.
      params: its parameters.
      tokenizer: the run's tokenizer.
      prompts: any text.
      tokens: most tokens to draw for each; default: 200, or half of the model's context.
      how: how tokens are chosen; default: temperature 1.
      seed: decides the draw.

    Raises:
      UserError: a prompt with characters that the tokenizer lacks, or more tokens than the context holds.
    """
    texts = [tokenizer.encode(prompt) for prompt in prompts]
    drawn = sample(
        model,
        params,
        [[tokenizer.end_of_text, *ids] for ids in texts],
        tokens=min(200, max(model.context // 2, 1)) if tokens is None else tokens,
        how=how,
        stop=(tokenizer.end_of_text,),
        seed=seed,
    )
    return [tokenizer.decode([*ids, *more]) for ids, more in zip(texts, drawn, strict=True)]


def is_python(text: str) -> bool:
    """Returns whether the whole lines of ``text`` parse as Python with at least one statement."""
    whole = text[: text.rfind("\n") + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in strings, say
        try:
            return bool(ast.parse(whole).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
