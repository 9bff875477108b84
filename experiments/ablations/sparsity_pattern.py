"""Sparsity patterns: which keys matter, when every token may look at about 64 of 512.

    headway ablate experiments/ablations/sparsity_pattern.py

Window, dilated window, window with global tokens, window with global and random blocks, and the two of the
Sparse Transformer, on the quickstart's text in rows of 512 tokens: 4 layers of width 128. Time says what the
block engine makes of the pattern. About four minutes a point on two idle cores.
"""

from research.ablation.grid import Ablation, Factor
from research.attention.positions import Rotary
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION = "model.attention"


def pattern(kind: str, **fields: object) -> dict[str, object]:
    return {ATTENTION: kind, **{f"{ATTENTION}.{name}": value for name, value in fields.items()}}


def ablation() -> Ablation:
    base = Experiment(
        name="sparsity-pattern",
        model=GPT(
            vocabulary=2048,
            context=512,
            layers=4,
            width=128,
            heads=2,
            positions=Rotary(),
            norm="rms",
            feed_forward="relu2",
            bias=False,
        ),
        data=TextData(source="standard-library", length=512, batch=8),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=300,
        evaluation=Evaluation(every=100, batches=16),
        checkpointing=Checkpointing(every=100),
    )
    choices = {
        "full": {},
        "window 64": pattern("sliding-window", window=64),
        "window 64, dilated 4": pattern("longformer", window=64, dilation=4, global_tokens=0),
        "window 60, 4 global tokens": pattern("longformer", window=60, global_tokens=4),
        "window, global and random blocks": pattern(
            "big-bird", block=16, window=3, global_blocks=1, random_blocks=1
        ),
        "strided 32": pattern("sparse-transformer", factors="strided", stride=32),
        "fixed 32": pattern("sparse-transformer", factors="fixed", stride=32, summary=4),
    }
    return Ablation(
        name="sparsity-pattern",
        base=base,
        factors=(Factor("pattern", (ATTENTION,), choices),),
        seeds=(0, 1, 2),
        quality="valid/bits_per_byte",
        contexts=(512, 4096),
    )
