"""A BERT in one day on one GPU, after the recipe of Geiping & Goldstein (2023).

    headway train experiments/bert/cramming.py --data.path "corpus/*.jsonl"

Pre-norm, no biases, gated feed-forward, packed rows of 128 tokens, no next-sentence pairs, no dropout, a
large batch and a one-cycle schedule: a long linear warm-up and a linear decay to 0. Masking 40 % (Wettig et
al., 2023). Published: 78.6 GLUE (development) with their recipe in 24 hours on one A6000. Not run by us.
"""

from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="bert-cramming",
        model=BERT(
            vocabulary=32768,
            context=128,
            layers=16,
            positions=Rotary(),
            token_types=0,
            norm_epsilon=1e-5,
            placement="pre",
            feed_forward="geglu",
            feed_forward_width=2048,
            bias=False,
            pooler=False,
            dropout=0.0,
            dtype="bfloat16",
        ),
        data=MaskedText(source="files", length=128, batch=4096, rate=0.4, valid_fraction=0.001),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=1e-3, beta2=0.98, epsilon=1e-12, weight_decay=0.01),
        schedule=Linear(warmup=9_000),
        steps=18_000,
        accumulate=8,
        clip=0.5,
        evaluation=Evaluation(every=500, batches=8),
        checkpointing=Checkpointing(every=500, keep_last=2),
    )
