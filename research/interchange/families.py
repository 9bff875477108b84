"""Every family of checkpoints, and which of them fits a configuration or a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.attention.positions import Learned, Rotary
from research.errors import UserError
from research.interchange.classifiers import BERT_CLASSIFIER, ENDINGS, ROBERTA_CLASSIFIER
from research.interchange.decoders import GPT2, LLAMA, QWEN3
from research.interchange.encoder_decoders import MARIAN, T5
from research.interchange.encoders import BERT_, MODERNBERT, ROBERTA
from research.interchange.family import Config, Family
from research.interchange.layouts import slots
from research.models.classifier import Classifier

FAMILIES = {
    family.model_type: family
    for family in (GPT2, LLAMA, QWEN3, BERT_, ROBERTA, MODERNBERT, MARIAN, T5)
}  # fmt: skip
"""Every family, by ``model_type``."""
CLASSIFIERS = {family.model_type: family for family in (BERT_CLASSIFIER, ROBERTA_CLASSIFIER)}
"""Families of encoders with the head of a task, by ``model_type``."""


def of_config(config: Config) -> Family:
    """Returns the family of a ``config.json``; UserError, naming the supported ones, if there is none."""
    found = config.get("model_type")
    if found not in FAMILIES:
        raise UserError(f"model_type {found!r} is not supported; supported: {', '.join(FAMILIES)}")
    architecture = next(iter(config.get("architectures") or ()), "")
    if not architecture.endswith(ENDINGS):
        return FAMILIES[found]
    if found not in CLASSIFIERS:
        raise UserError(f"{architecture} is not supported; classifiers of {', '.join(CLASSIFIERS)} are")
    return CLASSIFIERS[found]


def of_model(model: Any) -> tuple[Family, dict[str, Any]]:
    """Returns the family that can express a model, and the model's configuration in it.

    Raises:
      UserError: none can; the message names the field that stands in the way.
    """
    reasons = []
    for family in (*FAMILIES.values(), *CLASSIFIERS.values()):
        if not isinstance(model, family.model):
            continue
        config = {
            "model_type": family.model_type,
            "architectures": [family.architecture(model)],
            **family.configure(model),
        }
        try:
            there = _essence(family.describe(config, tensor_names(family, model)))
        except UserError as error:
            reasons.append(f"{family.model_type}: {error}")
            continue
        wanted = _essence(model)
        differing = next((name for name in wanted if wanted[name] != there.get(name)), None)
        if differing is None:
            return family, config
        reasons.append(f"{family.model_type} has no {differing} {wanted[differing]!r}")
    why = "; ".join(reasons) or f"a {type(model).__name__} fits none of {', '.join(FAMILIES)}"
    raise UserError(f"this model cannot be exported: {why}")


def tensor_names(family: Family, model: Any) -> set[str]:
    """Returns the names of the tensors that hold a model's parameters."""
    return {name for slot in slots(family.layout(model)).values() for _, name in slot.rows}


def _essence(model: Any) -> dict[str, Any]:
    """Returns what a description's function depends on, defaults resolved."""
    if isinstance(model, Classifier):
        fields = {name: getattr(model, name) for name in ("classes", "per_token", "pooling")}
        encoder = _essence(model.bert)
        del encoder["pooler"]  # a row's is the encoder's or its own, with one meaning
        return {**fields, **encoder}
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    for name in ("dropout", "attention_dropout", "depth", "remat", "engine", "dtype"):
        fields.pop(name, None)
    positions = model.positions
    if not isinstance(positions, Learned):
        del fields["context"]
    if isinstance(positions, Rotary):
        base = positions.base if positions.local_base is None else positions.local_base
        fields["positions"] = dataclasses.replace(positions, local_base=base)
    if "decoder_layers" in fields:
        fields |= {"decoder_layers": model.decoder_depth, "decoder_attention": model.target_attention}
    geometry = model.geometry
    resolved = {"kv_heads": geometry.kv_heads, "head_dim": geometry.head_dim}
    return {**fields, **resolved, "feed_forward_width": model.hidden}
