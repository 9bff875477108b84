"""Language modelling: GPT with every causal mechanism, on the quickstart's text or on yours.

    headway ablate experiments/ablations/language_modelling.py
    headway ablate experiments/ablations/language_modelling.py --data.source files --data.path PROSE

2 layers of width 128 with 256 tokens of context, and a feed-forward network just wide enough that all
mechanisms have the same number of parameters. Rotary positions for softmax mechanisms, for sums without decay
and for retention; none for those that choose their decay or remove. Native sparse attention shares keys and
values among heads, as it was made for; patterns are scaled down to the context. A run sees 0.4 million
tokens: it tells what a mechanism learns soon, which is more of what is near than of what is far. With one
seed differences of a hundredth of a bit may be chance; `--seeds 0,1,2` gives intervals in three times the
time, `--parallel 2` gives each of two points a core.

Measured in 26 minutes on one core of two, the other training (softmax's speed suffered from more than that);
state and decoding at 16,384 tokens, a token of one sequence.

    attention                 bits per byte    training tokens/s    state, bytes    decoding, ms
    softmax                           1.938                8,315      33,554,432            5.48
    multi-query                       1.945               11,440      16,777,216            4.06
    sliding window                    1.903               12,060         131,584            0.09
    latent                            1.986               11,431      12,582,912            3.54
    differential                      1.949                9,968      33,554,432            7.89
    forgetting                        1.878               10,012      33,816,576            5.67
    longformer                        1.901               11,037         106,912            0.09
    big-bird                          1.929               11,503      33,554,432            4.86
    sparse transformer                1.899               12,249      33,554,432            5.86
    moba                              1.911                6,564      33,554,432           15.72
    nsa                               1.911                7,187      21,007,640            0.98
    reformer                          1.954               12,255      33,554,432           17.25
    linear transformer                2.001               10,877          66,560            0.07
    performer                         1.982                7,828         276,640            0.09
    based                             1.973                9,550         159,120            0.07
    retention                         1.990               12,588          32,768            0.06
    gated linear attention            1.965               11,303          32,768            0.06
    mamba-2                           1.927                9,331         140,288            0.07
    delta rule                        2.126                9,750          74,752            0.08
    gated delta rule                  1.927               10,250          38,912            0.07
    kimi delta                        2.066                9,151          38,912            0.09
    rwkv-7                            1.867                6,829          66,560            0.10

What it shows: so early, what prefers the near is ahead of softmax over everything: windows and sparse
patterns, and decays that the text chooses (forgetting, RWKV-7, the gated delta rule, Mamba-2). The best of
all, RWKV-7, has a constant state; so have a window and Longformer. Rotary positions are worth 0.02 to 0.03 to
sums without them and to retention. The delta rule lacks a decay. Kimi delta lags by its gate, a sigmoid: with
SiLU it had 1.914, and the gated delta rule with a sigmoid 1.973. What it does not show: where they end,
recall over long texts, other learning rates, and chance: with two heads a layer, rates of decay begin with
two random numbers, and the gated delta rule, which has 1.927 here, had 1.898 with others.
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
