"""Fine-tuning on Banking77: which of 77 intents a customer's question has (Casanueva et al., 2020).

    headway train experiments/bert/finetune_banking77.py --from RUN \
        --data.path banking77/train.csv --data.valid_path banking77/test.csv

RUN is a pre-trained BERT; model and tokenizer are its own. Without --from the same file trains a small
network of its own from scratch. With --data.train_fraction 0.1 a tenth of the labels is used. Published for
BERT-base: 93.7 % accuracy.
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
        name="bert-banking77",
        model=Classifier(
            bert=BERT(vocabulary=4096, context=128, layers=4, width=256, heads=4, depth="unroll"),
            classes=77,
            pooling="mean",
        ),
        data=LabelledText(text="text", label="category", classes=77, length=48, batch=32),
        objective=Classification(),
        optimizer=AdamW(learning_rate=5e-4, beta2=0.98, weight_decay=0.01, layer_decay=0.9),
        schedule=Linear(warmup=200),
        steps=3120,
        evaluation=Evaluation(every=312, best="accuracy", patience=3),
        checkpointing=Checkpointing(every=312, keep_last=1),
    )
