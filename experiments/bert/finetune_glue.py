"""Fine-tuning on a task of GLUE (Wang et al., 2019) through TFDS, CoLA as it stands here.

    headway train experiments/bert/finetune_glue.py --from RUN --data.source glue/cola

Tasks: cola, sst2, mrpc, qqp, mnli (--data.classes 3 --model.classes 3), qnli, rte, wnli, and stsb
(--data.task score --data.classes 1 --model.classes 1 --evaluation.best pearson). At the end it prints
accuracy, F1 and the Matthews correlation of the validation split (of MNLI's mismatched one too), or Pearson's
and Spearman's correlation. Several seeds: glue_seeds.py. Not run by us: the data set is downloaded.
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
        name="bert-glue",
        model=Classifier(bert=BERT(), classes=2),
        data=LabelledText(source="glue/cola", classes=2, length=128, batch=32),
        objective=Classification(),
        optimizer=AdamW(learning_rate=3e-5, beta2=0.999, weight_decay=0.01, layer_decay=0.9),
        schedule=Linear(warmup=100),
        steps=1600,
        evaluation=Evaluation(every=100, best="accuracy", patience=4),
        checkpointing=Checkpointing(every=100, keep_last=1),
    )
