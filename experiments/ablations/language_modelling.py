"""Language modelling: GPT with every causal mechanism, on the quickstart's text or on yours.

    headway ablate experiments/ablations/language_modelling.py
    headway ablate experiments/ablations/language_modelling.py --data.source files --data.path PROSE

2 layers of width 128 with 256 tokens of context, and a feed-forward network just wide enough that all
mechanisms have the same number of parameters. Rotary positions for softmax mechanisms, none for those that
have a notion of order of their own. Native sparse attention shares keys and values among heads, as it was
made for; patterns are scaled down to the context. A run sees 0.4 million tokens: it tells what a mechanism
learns soon, which is more of what is near than of what is far. With one seed differences of a hundredth of a
bit may be chance; `--seeds 0,1,2` gives intervals in three times the time, `--parallel 2` gives each of two
points a core. Estimated, not run: 25 minutes on two idle cores.
"""

from research.ablation.grid import Ablation, Factor
from research.attention.positions import Rotary
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION, POSITIONS = "model.attention", "model.positions"


def softmax(kind: str, **fields: object) -> dict[str, object]:
    return {ATTENTION: kind, **{f"{ATTENTION}.{name}": value for name, value in fields.items()}}


def recurrent(kind: str, **fields: object) -> dict[str, object]:
    return {**softmax(kind, **fields), POSITIONS: None}


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
        "sliding window": softmax("sliding-window", window=64),
        "latent": softmax("latent", rank=64),
        "differential": softmax("differential"),
        "forgetting": {ATTENTION: "forgetting", POSITIONS: None},
        "longformer": softmax("longformer", window=48, global_tokens=4),
        "big-bird": softmax("big-bird", block=16),
        "sparse transformer": softmax("sparse-transformer", stride=16),
        "moba": softmax("moba", block=16, top=4),
        "nsa": {
            **softmax("nsa", summary=4, stride=4, block=16, top=4, window=32),
            "model.kv_heads": 1,
        },
        "reformer": softmax("reformer"),
        "linear transformer": recurrent("linear-transformer"),
        "performer": recurrent("performer"),
        "based": recurrent("based"),
        "retention": recurrent("retention"),
        "gated linear attention": recurrent("gla"),
        "mamba-2": recurrent("mamba2"),
        "delta rule": recurrent("delta-net"),
        "gated delta rule": recurrent("gated-delta-net"),
        "kimi delta": recurrent("kimi-delta"),
        "rwkv-7": recurrent("rwkv7"),
    }
    return Ablation(
        name="language-modelling",
        base=base,
        factors=(Factor("attention", (ATTENTION, POSITIONS, "model.kv_heads"), choices),),
        quality="valid/bits_per_byte",
        contexts=(256, 2048, 16384),
    )
