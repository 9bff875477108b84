"""Fine-tuning on CLINC150: which of 150 intents a request has (Larson et al., 2019).

    headway train experiments/bert/finetune_clinc150.py --from RUN --data.path clinc150.tsv

RUN is a pre-trained BERT; model and tokenizer are its own. Without --from the same file trains a small
network of its own from scratch. With --data.train_fraction 0.1 a tenth of the labels is used. Published for
BERT-base, without out-of-scope requests as here: 96 to 97 % accuracy.
"""

from research.data.labelled_text import LabelledText
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.objectives.classification import Classification
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="bert-clinc150",
        model=Classifier(
            bert=BERT(vocabulary=4096, context=128, layers=4, width=256, heads=4, depth="unroll"),
            classes=150,
            pooling="mean",
        ),
        data=LabelledText(
            text="text",
            label="intent",
            split_field="split",
            valid_split="test",
            classes=150,
            length=48,
            batch=32,
        ),
        objective=Classification(),
        optimizer=AdamW(learning_rate=5e-4, beta2=0.98, weight_decay=0.01, layer_decay=0.9),
        schedule=Linear(warmup=200),
        steps=4690,
        evaluation=Evaluation(every=469, patience=3),
        checkpointing=Checkpointing(every=469, keep_last=1),
    )
