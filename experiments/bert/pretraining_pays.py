"""Does pre-training pay? An encoder from a pre-trained run against the same network from random values.

    RUN=runs/bert-babylm-10m DATA=shared headway ablate experiments/bert/pretraining_pays.py

Environment: RUN, the run of a masked language model; DATA, the directory with banking77/train.csv and
banking77/test.csv. All labels and a tenth of them, three seeds each; the report has means and spreads of the
accuracy.
"""

import dataclasses
import os

from finetune_banking77 import experiment as banking77

from research.ablation.grid import Ablation, Factor
from research.errors import UserError
from research.training.warm_start import started_from


def ablation() -> Ablation:
    run, data = os.environ.get("RUN"), os.environ.get("DATA")
    if not run or not data:
        raise UserError("set RUN, the run of a masked language model, and DATA, the directory of banking77")
    base = started_from(banking77(), run)
    base = dataclasses.replace(
        base,
        name="pretraining-pays",
        data=dataclasses.replace(
            base.data, path=f"{data}/banking77/train.csv", valid_path=f"{data}/banking77/test.csv"
        ),
    )
    return Ablation(
        name="pretraining-pays",
        base=base,
        factors=(
            Factor("start", ("initial",), {"pre-trained": {}, "random": {"initial": "none"}}),
            Factor(
                "labels",
                ("data.train_fraction",),
                {"all": {}, "a tenth": {"data.train_fraction": 0.1}},
            ),
        ),
        learning_rates=(2e-4, 1e-3),
        seeds=(0, 1, 2),
        quality="valid/accuracy",
    )
