"""Associative recall: which mechanisms find the value of a key, and with how much state.

    headway ablate experiments/ablations/associative_recall.py

Multi-query associative recall (Zoology; Arora et al., 2023) in a small size: rows of 32 tokens with 4 pairs
of keys and values, 2 layers of width 64 with 4 heads, learned positions for all, and a feed-forward network
just wide enough that all have the same number of parameters (72,000, within 1 %). Two learning rates are
tried for every mechanism. The short convolution, which can solve half of the task alone, is a choice of its
own.

Measured: 600 steps of 2,048 tokens, one seed, on two cores that many other processes were using, so times
are left out. Bytes are those of the decoding state. Naming any of the row's values is right 25 % of the
time.

    attention                    accuracy at rate 0.01      0.03     bytes at 32        at 8,192
    softmax                                     1.0000    0.2881          32,768       8,388,608
    window 8                                    0.2249    0.2290           8,256           8,256
    linear transformer                          0.2961    0.3005           8,704           8,704
    mamba-2                                     0.2808    0.3254          19,456          19,456
    delta rule, no convolution                  0.3843    0.6184           8,192           8,192
    delta rule                                  1.0000    1.0000          12,800          12,800
    gated delta rule                            0.9990    0.2837           7,168           7,168

RWKV-7 and native sparse attention came later and are not in the table. Mamba-2 has got a bias in its
convolution since, and the delta rules a smaller epsilon and other first rates; they were not measured again.

What it shows: softmax solves the task (between steps 200 and 400, and only at the lower rate); a window does
not see far enough; the delta rule recalls what additive states, no smaller, do not; gated, it does so with
the smallest state of all; and the convolution decides how soon: with it the plain delta rule is done after
200 steps. Rates must be swept: two of the three that solve the task do so at one of the two only. What it
does not show: that the others never would, for the loss of the additive ones was still falling after 600
steps, and how much seeds matter.
"""

from research.ablation.grid import Ablation, Factor
from research.data.associative_recall import AssociativeRecall
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION = "model.attention"
NSA = {"summary": 2, "stride": 2, "block": 4, "top": 4, "window": 8}


def ablation() -> Ablation:
    base = Experiment(
        name="associative-recall",
        model=GPT(
            vocabulary=64,
            context=32,
            layers=2,
            width=64,
            heads=4,
            feed_forward_width=128,
            norm="rms",
            bias=False,
            depth="unroll",
        ),
        data=AssociativeRecall(vocabulary=64, length=32, pairs=4, batch=64, valid_batches=16),
        objective=Recall(),
        optimizer=Muon(adam_learning_rate=5e-3),
        schedule=Linear(warmup=50),
        steps=600,
        evaluation=Evaluation(every=100),
        checkpointing=Checkpointing(every=300),
        log_every=20,
    )
    without = {f"{ATTENTION}.convolution": None}
    choices = {
        "softmax": {},
        "window 8": {ATTENTION: "sliding-window", f"{ATTENTION}.window": 8},
        "linear transformer": {ATTENTION: "linear-transformer"},
        "mamba-2": {ATTENTION: "mamba2"},
        "delta rule, no convolution": {ATTENTION: "delta-net", **without},
        "delta rule": {ATTENTION: "delta-net"},
        "gated delta rule": {ATTENTION: "gated-delta-net"},
        "rwkv-7": {ATTENTION: "rwkv7", f"{ATTENTION}.rank": 8},
        "nsa": {
            ATTENTION: "nsa",
            "model.kv_heads": 1,
            **{f"{ATTENTION}.{name}": n for name, n in NSA.items()},
        },
    }
    return Ablation(
        name="associative-recall",
        base=base,
        factors=(Factor("attention", (ATTENTION, "model.kv_heads"), choices),),
        learning_rates=(1e-2, 3e-2),
        quality="valid/accuracy",
        contexts=(32, 1024, 8192),
    )
