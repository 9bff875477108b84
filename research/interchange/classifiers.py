"""Families of fine-tuned encoders: BERT and RoBERTa with a head for rows, or for their words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from research.interchange.encoders import BERT_, ROBERTA, body
from research.interchange.family import Config, Family, Layout
from research.interchange.layouts import Layers, Row, linear
from research.models.classifier import Classifier

WORDS = "ForTokenClassification"
"""Ends the architectures that classify every token."""
ENDINGS = ("ForSequenceClassification", WORDS)


def _description(encoder: Family) -> Callable[[Config, Collection[str]], Classifier]:
    def describe(config: Config, names: Collection[str]) -> Classifier:
        bert = encoder.describe({"tie_word_embeddings": True, **config}, names)
        (architecture,) = config["architectures"]
        rate = config.get("classifier_dropout")
        return Classifier(
            bert=dataclasses.replace(bert, pooler=False),
            classes=len(config.get("id2label") or "01"),  # of two labels a file says nothing
            per_token=architecture.endswith(WORDS),
            head_dropout=config.get("hidden_dropout_prob", 0.1) if rate is None else rate,
        )

    return describe


def _config(encoder: Family) -> Callable[[Classifier], dict[str, Any]]:
    def configure(classifier: Classifier) -> dict[str, Any]:
        labels = {str(label): f"LABEL_{label}" for label in range(classifier.classes)}
        return {
            **encoder.configure(classifier.bert),
            "classifier_dropout": classifier.head_dropout,
            "id2label": labels,
            "label2id": {name: int(label) for label, name in labels.items()},
        }

    return configure


def _layout(prefix: str, pooler: str, head: str) -> Callable[[Classifier], Layout]:
    def layout(classifier: Classifier) -> Layout:
        rows = tuple(_below_bert(item) for item in body(classifier.bert, prefix))
        if classifier.per_token:
            return (*rows, *linear("class_head", "classifier"))
        own = "bert/pooler" if classifier.bert.pooler else "pooler"
        return (*rows, *linear(own, pooler), *linear("class_head", head))

    return layout


def _below_bert(item: Row | Layers) -> Row | Layers:
    """Returns a row of an encoder as one of a classifier's."""
    if isinstance(item, Layers):
        return dataclasses.replace(item, path=f"bert/{item.path}")
    return dataclasses.replace(item, ours=f"bert/{item.ours}")


def _family(encoder: Family, name: str, layout: Callable[[Classifier], Layout]) -> Family:
    return Family(
        encoder.model_type,
        lambda classifier: name + ENDINGS[classifier.per_token],
        Classifier,
        _description(encoder),
        _config(encoder),
        layout,
        ignored=encoder.ignored,
        renamed=encoder.renamed,
    )


BERT_CLASSIFIER = _family(BERT_, "Bert", _layout("bert.", "bert.pooler.dense", "classifier"))
ROBERTA_CLASSIFIER = _family(
    ROBERTA, "Roberta", _layout("roberta.", "classifier.dense", "classifier.out_proj")
)


def encoder_of(model: Any) -> Any:
    """Returns the encoder of a classifier; any other model as it is."""
    return model.bert if isinstance(model, Classifier) else model
