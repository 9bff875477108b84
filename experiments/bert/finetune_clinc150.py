"""Fine-tuning on CLINC150: which of 150 intents a request has (Larson et al., 2019).

    headway train experiments/bert/finetune_clinc150.py --from RUN --data.path clinc150.tsv

RUN is a pre-trained BERT; model and tokenizer are its own. Without --from the same file trains a small
network of its own from scratch. With --data.train_fraction 0.1 a tenth of the labels is used. Published for
BERT-base, without out-of-scope requests as here: 96 to 97 % accuracy.
"""

import dataclasses

from finetune_banking77 import experiment as banking77

from research.data.labelled_text import LabelledText
from research.training.experiment import Checkpointing, Evaluation, Experiment


def experiment() -> Experiment:
    base = banking77()
    return dataclasses.replace(
        base,
        name="bert-clinc150",
        model=dataclasses.replace(base.model, classes=150),
        data=LabelledText(
            text="text",
            label="intent",
            split_field="split",
            valid_split="test",
            classes=150,
            length=48,
            batch=32,
        ),
        steps=4690,
        evaluation=Evaluation(every=469, best="accuracy", patience=3),
        checkpointing=Checkpointing(every=469, keep_last=1),
    )
