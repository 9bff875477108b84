"""Does pre-training pay? An encoder from a pre-trained run against the same network from random values.

    RUN=runs/bert-babylm-10m-cpu DATA=shared headway ablate experiments/bert/pretraining_pays.py

Environment: RUN, the run of a masked language model; DATA, the directory with banking77/{train,test}.csv,
clinc150/clinc150.tsv and snips/snips.tsv. All labels and a tenth of them, three seeds each; the report has
means and spreads of the accuracy after the last step on what the owners of each text hold out (SNIPS: 700
validation texts; CLINC150: the 4,500 test requests that are in scope), so none is chosen by it. Runs take the
same steps, whichever their text, with the same dropout, and a run pre-trained by Muon goes on with Muon. All
this was chosen on a tenth of Banking77 for the pre-trained start; random values do better without dropout (in
single runs, in the order of the table's first four rows, 90.8, 74.8, 91.8 and 78.0).

Measured, from the run of babylm_10m_cpu.py (two points at a time on two cores, 107 minutes with other work
beside them): accuracy in percent, mean and standard deviation of three seeds.

    text, labels             pre-trained    random values    difference (95 % interval)
    Banking77, all            91.8 ± 0.6       90.0 ± 0.5                     1.9 ± 1.6
    Banking77, a tenth        77.3 ± 0.5       74.4 ± 0.3                     3.0 ± 0.8
    CLINC150, all             92.6 ± 0.1       91.2 ± 0.2                     1.4 ± 0.5
    CLINC150, a tenth         81.7 ± 0.5       77.2 ± 0.5                     4.5 ± 0.7
    SNIPS, all                98.4 ± 0.2       98.1 ± 0.4                     0.2 ± 1.1
    SNIPS, a tenth            97.0 ± 0.4       96.7 ± 0.4                     0.3 ± 1.8
"""

import dataclasses
import os

from finetune_banking77 import experiment as banking77
from finetune_clinc150 import experiment as clinc150
from finetune_snips import experiment as snips

from research.ablation.grid import Ablation, Factor
from research.errors import UserError
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.warm_start import started_from


def task(experiment: Experiment, path: str, valid_path: str | None = None) -> dict[str, object]:
    """Returns what sets a text and its labels, by field."""
    data = experiment.data
    fields = ("text", "label", "split_field", "valid_split", "classes")
    return {
        "data.path": path,
        "data.valid_path": valid_path,
        **{f"data.{field}": getattr(data, field) for field in fields},
        "model.classes": experiment.model.classes,
    }


def ablation() -> Ablation:
    run, data = os.environ.get("RUN"), os.environ.get("DATA")
    if not run or not data:
        raise UserError("set RUN, the run of a masked language model, and DATA, the directory of the texts")
    tasks = {
        "Banking77": task(banking77(), f"{data}/banking77/train.csv", f"{data}/banking77/test.csv"),
        "CLINC150": task(clinc150(), f"{data}/clinc150/clinc150.tsv"),
        "SNIPS": task(snips(), f"{data}/snips/snips.tsv"),
    }
    base = started_from(banking77(), run)
    return Ablation(
        name="pretraining-pays",
        base=dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, bert=dataclasses.replace(base.model.bert, dropout=0.2)),
            steps=1500,
            evaluation=Evaluation(every=300),
            checkpointing=Checkpointing(every=300, keep_last=1),
        ),
        factors=(
            Factor("text", tuple(next(iter(tasks.values()))), tasks),
            Factor(
                "labels",
                ("data.train_fraction", "steps"),
                {"all": {}, "a tenth": {"data.train_fraction": 0.1, "steps": 600}},
            ),
            Factor(
                "start",
                ("initial", "optimizer"),
                {
                    "pre-trained": {
                        "optimizer": "muon",
                        "optimizer.learning_rate": 5e-3,
                        "optimizer.adam_learning_rate": 1e-3,
                    },
                    "random": {"initial": "none", "optimizer.learning_rate": 1e-3},
                },
            ),
        ),
        matched=("start",),
        seeds=(0, 1, 2),
        quality="valid/accuracy",
    )
