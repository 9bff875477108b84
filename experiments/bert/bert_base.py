"""BERT-base, uncased: 12 layers, 12 heads, width 768 (Devlin et al., 2019), at sequence 128.

    headway train experiments/bert/bert_base.py --data.path "corpus/*.jsonl"

110,106,428 parameters with both heads. Published: 1,000,000 steps of 256 sequences, nine tenths of them of
128 tokens and the rest of 512 (--data.length 512), on 3.3 billion words; 79.6 GLUE (test). Next-sentence
pairs and 15 % masking as published; rows of one pair are not packed. Not run by us.
"""

from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="bert-base",
        model=BERT(dtype="bfloat16"),
        data=MaskedText(source="files", length=128, batch=256, valid_fraction=0.001, pairs="next"),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=1e-4, beta2=0.999, epsilon=1e-6, weight_decay=0.01),
        schedule=Linear(warmup=10_000),
        steps=1_000_000,
        evaluation=Evaluation(every=5000, batches=64),
        checkpointing=Checkpointing(every=5000, keep_last=2, keep_every=100_000),
        log_every=50,
    )
