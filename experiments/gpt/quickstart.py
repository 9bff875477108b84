"""A small GPT learns Python from the standard library of the Python that runs it.

    headway train experiments/gpt/quickstart.py

Measured on two cores of an AMD EPYC with Python 3.11.7 (one run, seed 0, nothing cached): first step 20 s
after the command, done after 4:02 minutes. Bits per byte of the 63 held-out files: 1.565; interpolated
Kneser-Ney trigram over the same tokens 1.602, bigram 1.901, unigram 2.855; xz -9 1.675. 1 of 20 samples
parses as Python.
"""

from research.attention.positions import Rotary
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="gpt-quickstart",
        model=GPT(
            vocabulary=2048,
            context=256,
            layers=4,
            width=128,
            heads=2,
            positions=Rotary(),
            norm="rms",
            feed_forward="relu2",
            bias=False,
        ),
        data=TextData(source="standard-library", length=256, batch=16),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=420,
        evaluation=Evaluation(every=140, batches=8),
        baselines=True,
        samples=20,
    )
