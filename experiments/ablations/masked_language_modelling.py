"""Masked language modelling: a small BERT with mechanisms that read in both directions.

    headway ablate experiments/ablations/masked_language_modelling.py

The prose that ships with Python, rows of 128 tokens, 3 layers of width 128. Rotary positions for softmax
mechanisms, for sums without decay and for retention; none for the others. One seed; `--seeds 0,1,2` gives
intervals. Linformer is left out: rows are packed, which it cannot read.

Measured on one core of two, the other training or idle: 1.2 million tokens each, one seed; loss in nats per
masked token.

    attention                 validation loss    training tokens/s
    softmax                             4.992               11,224
    sliding window                      4.698               11,082
    differential                        4.850               10,760
    longformer                          4.731               11,849
    big-bird                            4.808               11,907
    linear transformer                  5.771                8,252
    performer                           5.649                4,670
    latent                              5.118               11,654
    reformer                            4.863               12,571
    based                               5.669                6,388
    retention                           5.632               11,785
    gated linear attention              5.342                8,438
    mamba-2                             4.696                6,579
    delta rule                          4.644                5,905
    gated delta rule                    4.730                7,192
    kimi delta                          4.626                5,755
    rwkv-7                              4.538                2,872

What it shows: this early, looking near is learned sooner than looking anywhere, and the fewer the keys, the
sooner. The delta rule, Kimi delta and RWKV-7, read in both directions, are ahead of every softmax here; sums
over the whole row, without decay or with a fixed one, hardly tell a gap's neighbours from the rest. What it
does not: where they end, and chance.
"""

from research.ablation.grid import Ablation, Factor
from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION, POSITIONS = "model.attention", "model.positions"


def ablation() -> Ablation:
    base = Experiment(
        name="masked-language-modelling",
        model=BERT(
            vocabulary=2048,
            context=128,
            layers=3,
            width=128,
            heads=2,
            positions=Rotary(),
            token_types=0,
            norm="rms",
            placement="pre",
            feed_forward="relu2",
            bias=False,
            pooler=False,
            dropout=0.0,
            depth="unroll",
        ),
        data=MaskedText(source="python-prose", length=128, batch=32, rate=0.3, masked=1.0, random=0.0),
        objective=MaskedLM(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=300,
        evaluation=Evaluation(every=100),
        checkpointing=Checkpointing(every=100),
    )
    choices = {
        "softmax": {},
        "sliding window": {ATTENTION: "sliding-window", f"{ATTENTION}.window": 33},
        "differential": {ATTENTION: "differential"},
        "longformer": {ATTENTION: "longformer", f"{ATTENTION}.window": 32, f"{ATTENTION}.global_tokens": 4},
        "big-bird": {ATTENTION: "big-bird", f"{ATTENTION}.block": 8},
        "linear transformer": {ATTENTION: "linear-transformer"},
        "performer": {ATTENTION: "performer"},
        "latent": {ATTENTION: "latent", f"{ATTENTION}.rank": 64},
        "reformer": {ATTENTION: "reformer"},
        "based": {ATTENTION: "based"},
        "retention": {ATTENTION: "retention"},
        "gated linear attention": {ATTENTION: "gla", POSITIONS: None},
        "mamba-2": {ATTENTION: "mamba2", POSITIONS: None},
        "delta rule": {ATTENTION: "delta-net", POSITIONS: None},
        "gated delta rule": {ATTENTION: "gated-delta-net", POSITIONS: None},
        "kimi delta": {ATTENTION: "kimi-delta", POSITIONS: None},
        "rwkv-7": {ATTENTION: "rwkv7", POSITIONS: None},
    }
    return Ablation(
        name="masked-language-modelling",
        base=base,
        factors=(Factor("attention", (ATTENTION, POSITIONS), choices),),
    )
