"""Runs as directories that `transformers` loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import processors

from research.attention.positions import Learned
from research.data.labelled_text import LABELS
from research.data.tokenizer import Tokenizer
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError
from research.interchange import families
from research.interchange.classifiers import encoder_of
from research.interchange.family import Family
from research.interchange.layouts import Row, Slot, slots
from research.interchange.runs import ORIGIN
from research.interchange.tensors import Planned, write
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.transformer import Transformer
from research.training.description import to_json
from research.training.paths import path_name
from research.training.trained import Trained


def export_run(
    trained: Trained, out: Path, dtype: str | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Writes a run as a directory that `transformers` loads; returns what was written, as JSON values.

    Args:
      trained: the run's checkpoint.
      out: directory to make; must be empty or not there.
      dtype: of the tensors; None: that of the import the run came from, or float32.
      report: receives messages.

    Raises:
      UserError: no family has this model's parts, or the directory has files.
    """
    model, tokenizer = trained.experiment.model, trained.tokenizer
    family, config = families.of_model(model)
    ids = _special_ids(encoder_of(model), tokenizer)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose a directory that is empty or new")
    origin = trained.directory.path / ORIGIN
    if dtype is None:
        dtype = json.loads(origin.read_text("utf-8")).get("dtype") if origin.exists() else None
        dtype = dtype or "float32"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}") from error
    report(f"writing {out}")
    tensors = _tensors(trained.params, slots(family.layout(model)), np.dtype(dtype))
    files = write(out, tensors, {"format": "pt"})
    texts = {
        "config.json": _dump({**config, **ids, **_labels(trained), "torch_dtype": dtype}),
        Tokenizer.FILE: _framing(encoder_of(model), tokenizer),
        "tokenizer_config.json": _dump(_tokenizer_config(encoder_of(model), tokenizer)),
        "README.md": _card(trained, family),
    }
    if not isinstance(encoder_of(model), BERT):
        texts["generation_config.json"] = _dump(ids)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    written = [file.name for file in files]
    return {
        "directory": str(out),
        "model_type": family.model_type,
        "dtype": dtype,
        "files": [*written, *texts],
    }


def _labels(trained: Trained) -> dict[str, Any]:
    """Returns the names of a classifier's labels as a configuration has them; nothing of any other model."""
    file = trained.directory.path / LABELS
    if not isinstance(trained.model, Classifier) or not file.exists():
        return {}
    names = json.loads(file.read_text("utf-8"))
    if not names:
        return {"problem_type": "regression"}
    numbers = {name: number for number, name in enumerate(names)}
    return {"id2label": {str(number): name for name, number in numbers.items()}, "label2id": numbers}


def _special_ids(model: Any, tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the ids of special tokens as a configuration has them."""
    end = tokenizer.end_of_text
    if isinstance(tokenizer, MaskingTokenizer):
        offset = model.positions.offset if isinstance(model.positions, Learned) else 0
        if offset and tokenizer.padding != offset - 1:
            raise UserError(
                "this model cannot be exported: roberta's positions begin after the padding token's row, "
                f"{tokenizer.padding}, and model.positions.offset is {offset}"
            )
        first, last = tokenizer.first, tokenizer.separator
        ids = {"pad_token_id": tokenizer.padding, "cls_token_id": first, "sep_token_id": last}
        return {**ids, "bos_token_id": first, "eos_token_id": last}
    if isinstance(model, Transformer):
        start = tokenizer.start
        ids = {"decoder_start_token_id": start, "pad_token_id": start, "eos_token_id": end}
        return {**ids, "forced_eos_token_id": end}
    return {"bos_token_id": end, "eos_token_id": end}


def _tokenizer_config(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns how `transformers` should call the special tokens."""
    end = tokenizer.name_of(tokenizer.end_of_text)
    if isinstance(tokenizer, MaskingTokenizer):
        names = {
            "pad": tokenizer.padding, "unk": tokenizer.unknown, "cls": tokenizer.first,
            "sep": tokenizer.separator, "mask": tokenizer.mask,
        }  # fmt: skip
        tokens = {f"{name}_token": tokenizer.name_of(i) for name, i in names.items()}
    elif isinstance(model, Transformer):
        tokens = {"eos_token": end, "pad_token": tokenizer.name_of(tokenizer.start)}
    else:
        tokens = {"bos_token": end, "eos_token": end}
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if _types(model) > 1 else [])]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "model_input_names": inputs,
        **tokens,
    }


def _types(model: Any) -> int:
    """Returns how many types of sentences the model tells apart."""
    return model.token_types if isinstance(model, BERT) else 0


def _framing(model: Any, tokenizer: Tokenizer) -> str:
    """Returns the tokenizer's file, with the special tokens that an encoder reads around a text."""
    text = tokenizer.to_json()
    backend = tokenizers.Tokenizer.from_str(text)
    if backend.post_processor is not None or not isinstance(model, (BERT, Transformer)):
        return text
    end = (tokenizer.name_of(tokenizer.end_of_text), tokenizer.end_of_text)
    single, pair, special = f"$A {end[0]}", None, [end]
    if isinstance(tokenizer, MaskingTokenizer):
        first = (tokenizer.name_of(tokenizer.first), tokenizer.first)
        single, special = f"{first[0]} {single}", [first, end]
        second = int(_types(model) > 1)
        pair = f"{single} $B:{second} {end[0]}:{second}"
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return backend.to_str(pretty=False)


def _tensors(params: Any, table: dict[str, Slot], dtype: np.dtype) -> dict[str, Planned]:
    """Returns their tensors, by name; of ours, no more than what one tensor needs is converted at once."""
    leaves = {path_name(path): _host(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    sources: dict[str, list[tuple[Row, Any, int | None]]] = {}
    for path, slot in table.items():
        for layer, (row, name) in enumerate(slot.rows):
            part = (row, leaves[path], layer if slot.stacked else None)
            sources.setdefault(name, []).append(part)
    return {
        name: _planned(sorted(parts, key=lambda part: part[0].part), dtype) for name, parts in sources.items()
    }


def _planned(parts: list[tuple[Row, Any, int | None]], dtype: np.dtype) -> Planned:
    """Returns a tensor of parts in order, each a row, our parameter, and which layer of it."""

    def array() -> np.ndarray:
        values = [np.asarray(leaf if layer is None else leaf[layer]) for _, leaf, layer in parts]
        joined = [
            row.write(value.astype(dtype, copy=False))
            for (row, _, _), value in zip(parts, values, strict=True)
        ]
        return parts[0][0].join(joined)

    row, leaf, layer = parts[0]
    return Planned(row.expected(leaf.shape if layer is None else leaf.shape[1:]), dtype, array)


def _host(leaf: jax.Array) -> Any:
    """Returns an array where its layers can be read without copying it as a whole."""
    (device, *others) = leaf.devices()
    return leaf if others or device.platform != "cpu" else np.asarray(leaf)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _card(trained: Trained, family: Family) -> str:
    """Returns the model card: what made the weights, and how well they do."""
    experiment, run = trained.experiment, trained.directory
    metrics = run.checkpoint_metrics(trained.step)
    lines = [
        f"- {name.removeprefix('valid/').replace('_', ' ')}: {value:.4f}" for name, value in metrics.items()
    ]
    origin = run.path / ORIGIN
    made = f"trained with Headway for {trained.step} steps"
    if origin.exists():
        made = f"imported into Headway from {json.loads(origin.read_text('utf-8'))['source']}"
    elif experiment.initial is not None:
        made += f", beginning with the parameters of {experiment.initial.run}"
    data = to_json(experiment.data)
    fields = {name: data[name] for name in ("corpus", "source", "target", "path") if data.get(name)}
    return "\n".join(
        [
            f"# {experiment.name}",
            "",
            f"A {family.architecture(experiment.model)} {made}.",
            "",
            "## Data",
            "",
            *(f"- {name}: {value}" for name, value in fields.items()),
            "",
            "## Validation",
            "",
            *(lines or ["Not measured."]),
            "",
            "## Experiment",
            "",
            "Saved as experiment.json, this trains it: `headway train experiment.json`",
            "",
            "```json",
            json.dumps(to_json(experiment), indent=2),
            "```",
            "",
        ]
    )
