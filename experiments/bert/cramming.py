"""A BERT in one day on one GPU, after the recipe of Geiping & Goldstein (2023).

    headway train experiments/bert/cramming.py --data.path "corpus/*.jsonl"
    headway train experiments/bert/cramming_late.py --from runs/bert-cramming --data.path "corpus/*.jsonl"

Pre-norm, no biases, gated feed-forward, packed rows of 128 tokens, no next-sentence pairs, no dropout,
masking 40 % (Wettig et al., 2023). A small batch first and a large one late, in two stages whose schedules
make one cycle: a long linear warm-up here, a linear decay to 0 there.

Budget: 32,000 steps of 1,024 x 128 tokens are 4.2e9 tokens, at 7.6e8 FLOPs a token 3.2e18 FLOPs: 7.1 hours on
an A100 (312 TFLOP/s) at 40 % of its peak; both stages 21.3 hours. The 40 % are an assumption. Published: 78.6
GLUE (development) with their recipe in 24 hours on one A6000. Not run by us.
"""

from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import WarmupStableDecay


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
        data=MaskedText(source="files", length=128, batch=1024, rate=0.4, valid_fraction=0.001),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=5e-4, beta2=0.98, epsilon=1e-12, weight_decay=0.01),
        schedule=WarmupStableDecay(warmup=24_000, decay=0.0),
        steps=32_000,
        accumulate=2,
        clip=0.5,
        evaluation=Evaluation(every=500, batches=8),
        checkpointing=Checkpointing(every=500, keep_last=2),
    )
