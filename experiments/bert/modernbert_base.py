"""ModernBERT-base: 22 layers, one with global attention to two with local (Warner et al., 2024).

    headway train experiments/bert/modernbert_base.py --data.path "corpus/*.jsonl"

Pre-norm, rotary positions (base 160,000 in global layers, 10,000 in local ones), GeGLU, no biases, packed
rows, 30 % masking and warm-up, constant rate, decay; a global layer, and then local, local, global seven
times, as published. Published: 88.4 GLUE after 2 trillion tokens. Not run by us.
"""

from research.attention.catalogue import Interleaved
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import WarmupStableDecay


def experiment() -> Experiment:
    return Experiment(
        name="modernbert-base",
        model=BERT(
            vocabulary=50368,
            context=1024,
            layers=22,
            width=768,
            heads=12,
            attention=Interleaved(first=SlidingWindow(window=129), firsts=2, second=Softmax(), seconds=1),
            feed_forward_width=1152,
            feed_forward="exact-geglu",
            positions=Rotary(base=160_000.0, local_base=10_000.0),
            token_types=0,
            norm_epsilon=1e-5,
            lead=True,
            placement="pre",
            bias=False,
            pooler=False,
            dropout=0.0,
            dtype="bfloat16",
            remat="dots",
        ),
        data=MaskedText(
            source="files", lowercase=False, length=1024, batch=4608, rate=0.3, valid_fraction=0.0005
        ),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=8e-4, beta2=0.98, epsilon=1e-6, weight_decay=1e-5),
        schedule=WarmupStableDecay(warmup=650, decay=0.03),
        steps=360_000,
        accumulate=48,
        evaluation=Evaluation(every=1000, batches=8),
        checkpointing=Checkpointing(every=1000, keep_last=2),
    )
