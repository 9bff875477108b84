"""A small run for tests on real processes: a step is a matter of milliseconds."""

import os

from research.data.associative_recall import AssociativeRecall
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import ReciprocalSqrt


def experiment() -> Experiment:
    return Experiment(
        name="tiny",
        model=GPT(vocabulary=64, context=16, layers=1, width=16, heads=2, dropout=0.1),
        data=AssociativeRecall(vocabulary=64, length=16, batch=8, valid_batches=1),
        objective=Recall(),
        optimizer=AdamW(learning_rate=1e-3),
        schedule=ReciprocalSqrt(),
        steps=int(os.environ.get("TINY_STEPS", "16")),
        evaluation=Evaluation(every=1000, batches=1),
        checkpointing=Checkpointing(every=4),
        log_every=1,
    )
