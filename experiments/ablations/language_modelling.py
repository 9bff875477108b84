"""Language modelling: GPT with eighteen causal mechanisms, on the quickstart's text or on yours.

    headway ablate experiments/ablations/language_modelling.py
    headway ablate experiments/ablations/language_modelling.py --data.source files --data.path PROSE

The quickstart's model with 256 tokens of context: 4 layers of width 128, and a feed-forward network just
wide enough that all mechanisms have the same number of parameters. Rotary positions for softmax mechanisms,
none for those that have a notion of order of their own. About two minutes a point on two idle cores.
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
            layers=4,
            width=128,
            heads=2,
            positions=Rotary(),
            norm="rms",
            feed_forward="relu2",
            bias=False,
        ),
        data=TextData(source="standard-library", length=256, batch=16),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=300,
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
        "linear transformer": recurrent("linear-transformer"),
        "performer": recurrent("performer"),
        "based": recurrent("based"),
        "retention": recurrent("retention"),
        "gated linear attention": recurrent("gla"),
        "mamba-2": recurrent("mamba2"),
        "delta rule": recurrent("delta-net"),
        "gated delta rule": recurrent("gated-delta-net"),
        "kimi delta": recurrent("kimi-delta"),
    }
    return Ablation(
        name="language-modelling",
        base=base,
        factors=(Factor("attention", (ATTENTION, POSITIONS, "model.kv_heads"), choices),),
        seeds=(0, 1, 2),
        quality="valid/bits_per_byte",
        contexts=(256, 2048, 16384),
    )
