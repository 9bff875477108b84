"""Hybrids: how few softmax layers among linear ones recall as well as softmax alone.

    headway ablate experiments/ablations/hybrid_ratio.py

Multi-query associative recall with more pairs (16) than a small state holds, 4 layers of width 64: gated
delta rule and softmax in proportions from none to all, the softmax layers last in each group and without
positions (the linear layers know the order).

Measured in 14 minutes with `--parallel 2 --seeds 0` on two cores: 25,600 rows each, one learning rate.

    layers                   accuracy    state at 16,384 tokens, bytes
    softmax                     0.076                       33,554,432
    1 linear to 1 softmax       1.000                       16,788,480
    3 linear to 1 softmax       0.071                        8,405,504
    linear                      0.050                           22,528

What it shows: half softmax, half linear finds them all, where neither alone has begun to after 800 steps: the
convolution of the linear layers brings a key beside its value, and softmax looks them up. That one softmax
layer in four has not begun either is one seed at one learning rate.
"""

from research.ablation.grid import Ablation, Factor
from research.data.associative_recall import AssociativeRecall
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION = "model.attention"


def mixed(linear: int, full: int) -> dict[str, object]:
    return {
        ATTENTION: "interleaved",
        f"{ATTENTION}.first": "gated-delta-net",
        f"{ATTENTION}.firsts": linear,
        f"{ATTENTION}.second": "softmax",
        f"{ATTENTION}.seconds": full,
    }


def ablation() -> Ablation:
    base = Experiment(
        name="hybrid-ratio",
        model=GPT(
            vocabulary=128,
            context=128,
            layers=4,
            width=64,
            heads=2,
            positions=None,
            norm="rms",
            bias=False,
            feed_forward_width=128,
            depth="unroll",
        ),
        data=AssociativeRecall(vocabulary=128, length=128, pairs=16, batch=32, valid_batches=8),
        objective=Recall(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=50),
        steps=800,
        evaluation=Evaluation(every=100),
        checkpointing=Checkpointing(every=400),
    )
    choices = {
        "softmax": {},
        "1 linear to 1 softmax": mixed(1, 1),
        "3 linear to 1 softmax": mixed(3, 1),
        "linear": {ATTENTION: "gated-delta-net"},
    }
    return Ablation(
        name="hybrid-ratio",
        base=base,
        factors=(Factor("layers", (ATTENTION,), choices),),
        seeds=(0, 1),
        quality="valid/accuracy",
        contexts=(128, 2048, 16384),
    )
