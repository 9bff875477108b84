"""A small GPT learns Python from the standard library of the Python that runs it.

Run: headway train experiments/gpt/quickstart.py
"""

from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="gpt-quickstart",
        model=GPT(
            vocabulary=2048,
            context=256,
            layers=4,
            width=192,
            heads=3,
            positions="rotary",
            norm="rms",
            bias=False,
        ),
        data=TextData(source="standard-library", length=256, batch=16),
        optimizer=AdamW(learning_rate=3e-3),
        steps=600,
        evaluation=Evaluation(every=200, batches=8),
        baselines=True,
        samples=20,
    )
