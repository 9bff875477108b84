"""Which classifiers can be exchanged, and what is said of the others."""

from __future__ import annotations

import dataclasses

import pytest

from research.errors import UserError
from research.interchange.families import of_config, of_model
from research.models.bert import BERT
from research.models.classifier import Classifier

SMALL = Classifier(bert=BERT(vocabulary=30, context=16, layers=2, width=8, heads=2), classes=3)


def test_the_pooler_of_the_encoder_or_an_own_is_the_same_tensor():
    own = dataclasses.replace(SMALL, bert=dataclasses.replace(SMALL.bert, pooler=False))
    (one, config), (other, again) = of_model(SMALL), of_model(own)
    assert one is other and config == again and config["architectures"] == ["BertForSequenceClassification"]
    assert of_config(config) is one
    paths = [
        {row.ours for row in one.layout(model) if getattr(row, "theirs", "") == "bert.pooler.dense.weight"}
        for model in (SMALL, own)
    ]
    assert paths == [{"bert/pooler/kernel"}, {"pooler/kernel"}]


def test_what_no_family_has_is_named():
    with pytest.raises(UserError, match=r"this model cannot be exported: .*bert has no pooling 'mean'"):
        of_model(dataclasses.replace(SMALL, pooling="mean"))
    with pytest.raises(UserError) as error:
        of_config({"model_type": "modernbert", "architectures": ["ModernBertForSequenceClassification"]})
    assert str(error.value) == (
        "ModernBertForSequenceClassification is not supported; classifiers of bert, roberta are"
    )
