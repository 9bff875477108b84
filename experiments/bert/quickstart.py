"""A small BERT learns to fill gaps in the English prose that ships with Python; nothing is downloaded.

headway train experiments/bert/quickstart.py
"""

from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="bert-quickstart",
        model=BERT(
            vocabulary=2048,
            context=128,
            layers=3,
            width=192,
            heads=3,
            positions=Rotary(),
            token_types=0,
            norm="rms",
            placement="pre",
            feed_forward="relu2",
            bias=False,
            pooler=False,
            dropout=0.0,
            depth="unroll",
        ),
        data=MaskedText(source="python-prose", length=128, batch=32, rate=0.3, masked=1.0, random=0.0),
        objective=MaskedLM(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=600,
        evaluation=Evaluation(every=200),
        baselines=True,
    )
