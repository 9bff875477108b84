"""A task of GLUE with several seeds: the mean and the spread of its metric, CoLA's as it stands here.

    RUN=runs/bert-babylm-10m TASK=cola headway ablate experiments/bert/glue_seeds.py

Environment: RUN, the run of a masked language model to start from; TASK, a task of GLUE, default cola. The
metric is that which GLUE reports first: Matthews correlation of CoLA, F1 of MRPC and QQP, Pearson's
correlation of STS-B, else accuracy. A second choice, the same network from random values, says what
pre-training is worth. Not run by us: the data set is downloaded.
"""

import dataclasses
import os

from finetune_glue import experiment as finetune_glue

from research.ablation.grid import Ablation, Factor
from research.data.labelled_records import GLUE
from research.errors import UserError, nearest
from research.training.warm_start import started_from

METRICS = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}


def ablation() -> Ablation:
    run, task = os.environ.get("RUN"), os.environ.get("TASK", "cola")
    if not run:
        raise UserError("set RUN, the run of a masked language model")
    if task not in GLUE:
        raise UserError(f"TASK {task!r} is no task of GLUE{nearest(task, GLUE)}")
    base = started_from(finetune_glue(), run)
    metric = METRICS.get(task, "accuracy")
    classes = {"stsb": 1, "mnli": 3}.get(task, 2)
    data = dataclasses.replace(
        base.data, source=f"glue/{task}", task="score" if task == "stsb" else "labels", classes=classes
    )
    return Ablation(
        name=f"glue-{task}",
        base=dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, classes=classes),
            data=dataclasses.replace(data, length=min(data.length, base.model.context)),
            evaluation=dataclasses.replace(base.evaluation, best=metric),
        ),
        factors=(
            Factor(
                "start",
                ("initial", "optimizer.learning_rate"),
                {"pre-trained": {}, "random": {"initial": "none", "optimizer.learning_rate": 3e-4}},
            ),
        ),
        seeds=(0, 1, 2),
        quality=f"metrics/{metric}",
    )
