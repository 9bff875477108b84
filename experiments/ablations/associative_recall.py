"""Associative recall: which mechanisms find the value of a key, and with how much state.

    headway ablate experiments/ablations/associative_recall.py

Multi-query associative recall (Zoology; Arora et al., 2023) in a small size: rows of 48 tokens with 8 pairs
of keys and values, 2 layers of width 64 with 4 heads, learned positions for all, and a feed-forward network
just wide enough that all have the same number of parameters. Learning rates are tried for every mechanism.
The short convolution, which can solve half of the task alone, is a choice of its own.
"""

from research.ablation.grid import Ablation, Factor
from research.data.associative_recall import AssociativeRecall
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION = "model.attention"


def ablation() -> Ablation:
    base = Experiment(
        name="associative-recall",
        model=GPT(
            vocabulary=64,
            context=48,
            layers=2,
            width=64,
            heads=4,
            feed_forward_width=128,
            norm="rms",
            bias=False,
            depth="unroll",
        ),
        data=AssociativeRecall(vocabulary=64, length=48, pairs=8, batch=32, valid_batches=16),
        objective=Recall(),
        optimizer=Muon(adam_learning_rate=5e-3),
        schedule=Linear(warmup=50),
        steps=500,
        evaluation=Evaluation(every=100),
        checkpointing=Checkpointing(every=250),
        log_every=20,
    )
    without = {f"{ATTENTION}.convolution": None}
    choices = {
        "softmax": {},
        "window 12": {ATTENTION: "sliding-window", f"{ATTENTION}.window": 12},
        "linear transformer": {ATTENTION: "linear-transformer"},
        "gated linear attention": {ATTENTION: "gla"},
        "mamba-2": {ATTENTION: "mamba2"},
        "delta rule, no convolution": {ATTENTION: "delta-net", **without},
        "delta rule": {ATTENTION: "delta-net"},
        "gated delta rule": {ATTENTION: "gated-delta-net"},
    }
    return Ablation(
        name="associative-recall",
        base=base,
        factors=(Factor("attention", (ATTENTION,), choices),),
        learning_rates=(1e-2, 3e-2),
        quality="valid/accuracy",
        contexts=(48, 1024, 8192),
    )
