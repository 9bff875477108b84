"""Language modelling: GPT with every causal mechanism, on the quickstart's text or on yours.

    headway ablate experiments/ablations/language_modelling.py
    headway ablate experiments/ablations/language_modelling.py --data.source files --data.path PROSE

2 layers of width 128 with 256 tokens of context, and a feed-forward network just wide enough that all
mechanisms have the same number of parameters. Rotary positions for softmax mechanisms, none for those that
have a notion of order of their own. Native sparse attention shares keys and values among heads, as it was
made for; patterns are scaled down to the context. A run sees 0.4 million tokens: it tells what a mechanism
learns soon, which is more of what is near than of what is far. With one seed differences of a hundredth of a
bit may be chance; `--seeds 0,1,2` gives intervals in three times the time, `--parallel 2` gives each of two
points a core.

Measured in 23 minutes with `--parallel 2` on two cores (points slow their neighbours down where they wait for
memory, a Performer most); state and decoding at 16,384 tokens, a token of one sequence, on one core.

    attention                 bits per byte    training tokens/s    state, bytes    decoding, ms
    softmax                           1.938                8,581      33,554,432           10.61
    multi-query                       1.945                8,318      16,777,216            7.87
    sliding window                    1.903                8,677         131,584            0.11
    latent                            1.986                8,133      12,582,912            5.78
    differential                      1.949                7,676      33,554,432           12.18
    forgetting                        1.878                8,874      33,816,576           11.20
    longformer                        1.901                8,538         106,912            0.09
    big-bird                          1.929                8,538      33,554,432            8.63
    sparse transformer                1.899                8,268      33,554,432           10.33
    moba                              1.910                6,488      33,554,432           23.27
    nsa                               1.911                4,432      21,007,640            2.34
    reformer                          2.017                7,905      33,554,432           24.77
    linear transformer                2.020                4,423          66,560            0.07
    performer                         2.007                2,558         276,640            0.12
    based                             2.008                6,322         159,120            0.07
    retention                         2.019                8,170          32,768            0.06
    gated linear attention            1.970                7,078          32,768            0.08
    mamba-2                           1.941                5,101         140,288            0.08
    delta rule                        2.125                4,718          74,752            0.10
    gated delta rule                  1.898                5,252          38,912            0.07
    kimi delta                        2.070                5,849          38,912            0.09
    rwkv-7                            1.871                4,523          66,560            0.13

What it shows: so early, what prefers the near is ahead of softmax over everything: windows and sparse
patterns, and decays that the text chooses (forgetting, gated delta rule, RWKV-7). The best of all, RWKV-7,
has a constant state; so have a window and Longformer. The delta rule lacks a decay. Kimi delta lags by its
gate, a sigmoid: with SiLU it has 1.914, and the gated delta rule with a sigmoid 1.973 (not 1.898). What it
does not show: where they end, recall over long texts, and other learning rates.
"""

from research.ablation.grid import Ablation, Factor
from research.attention.positions import Rotary
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION, POSITIONS = "model.attention", "model.positions"


def described(kind: str, **fields: object) -> dict[str, object]:
    return {ATTENTION: kind, **{f"{ATTENTION}.{name}": value for name, value in fields.items()}}


def without_positions(kind: str, **fields: object) -> dict[str, object]:
    return {**described(kind, **fields), POSITIONS: None}


def ablation() -> Ablation:
    base = Experiment(
        name="language-modelling",
        model=GPT(
            vocabulary=2048,
            context=256,
            layers=2,
            width=128,
            heads=2,
            positions=Rotary(),
            norm="rms",
            feed_forward="relu2",
            bias=False,
        ),
        data=TextData(source="standard-library", length=256, batch=8),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=200,
        evaluation=Evaluation(every=100, batches=16),
        checkpointing=Checkpointing(every=100),
    )
    choices = {
        "softmax": {},
        "multi-query": {"model.kv_heads": 1},
        "sliding window": described("sliding-window", window=64),
        "latent": described("latent", rank=64),
        "differential": described("differential"),
        "forgetting": without_positions("forgetting"),
        "longformer": described("longformer", window=48, global_tokens=4),
        "big-bird": described("big-bird", block=16),
        "sparse transformer": described("sparse-transformer", stride=16),
        "moba": described("moba", block=16, top=4),
        "nsa": {
            **described("nsa", summary=4, stride=4, block=16, top=4, window=32),
            "model.kv_heads": 1,
        },
        "reformer": described("reformer"),
        "linear transformer": described("linear-transformer"),
        "performer": described("performer"),
        "based": described("based"),
        "retention": described("retention"),
        "gated linear attention": without_positions("gla"),
        "mamba-2": without_positions("mamba2"),
        "delta rule": without_positions("delta-net"),
        "gated delta rule": without_positions("gated-delta-net"),
        "kimi delta": without_positions("kimi-delta"),
        "rwkv-7": without_positions("rwkv7"),
    }
    return Ablation(
        name="language-modelling",
        base=base,
        factors=(Factor("attention", (ATTENTION, POSITIONS, "model.kv_heads"), choices),),
        quality="valid/bits_per_byte",
        contexts=(256, 2048, 16384),
    )
