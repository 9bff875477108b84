"""Fine-tuning on SNIPS: which of 7 intents a spoken request has (Coucke et al., 2018).

    headway train experiments/bert/finetune_snips.py --from RUN --data.path snips.tsv

RUN is a pre-trained BERT; model and tokenizer are its own. Without --from the same file trains a small
network of its own from scratch. With --data.train_fraction 0.1 a tenth of the labels is used. Published for
BERT-base on another split of the same texts: 98.6 % accuracy.
"""

import dataclasses

from finetune_banking77 import experiment as banking77

from research.data.labelled_text import LabelledText
from research.training.experiment import Checkpointing, Evaluation, Experiment


def experiment() -> Experiment:
    base = banking77()
    return dataclasses.replace(
        base,
        name="bert-snips",
        model=dataclasses.replace(base.model, classes=7),
        data=LabelledText(text="text", label="intent", split_field="split", classes=7, length=48, batch=32),
        steps=2150,
        evaluation=Evaluation(every=430, best="accuracy", patience=3),
        checkpointing=Checkpointing(every=430, keep_last=1),
    )
