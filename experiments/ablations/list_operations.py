"""ListOps, small: does a model look at more than the first operator?

    headway ablate experiments/ablations/list_operations.py

Long Range Arena's task with its generator and short expressions: 20 to 100 tokens, 5 deep, at most 5
arguments. What the commonest answer, the root operator alone, and the root operator with its literal
arguments score on the same rows stands above the table; a model that does not beat the last has not learned
to evaluate. The arena's own size is

    --data.min-length 501 --data.max-length 1999 --data.depth 10 --data.arguments 10 --model.context 1999

which takes hours a point on two cores. One seed; `--seeds 0,1,2` gives intervals.

Measured in 21 minutes on one core of two, the other idle: 28,800 expressions each, one seed, one learning
rate. The commonest answer is right 12.7 % of the time, the root operator alone 25.2 %, with its literal
arguments 42.4 %.

    attention             accuracy    training tokens/s
    softmax                  0.394               34,061
    sliding window           0.338               33,105
    big-bird                 0.371               32,014
    linear transformer       0.358               23,303
    performer                0.305               16,859
    mamba-2                  0.281               16,594
    gated delta rule         0.286               15,836

What it shows: none has learned to evaluate. Softmax is nearly as good as the root with its literals, the
others lie between that and the root operator alone. The arena's own rows are such that the root operator
alone scores 36 %, and seven of the eleven models of its table score 33 to 37.
"""

from research.ablation.grid import Ablation, Factor
from research.attention.positions import Rotary
from research.data.list_operations import ListOperations
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION, POSITIONS = "model.attention", "model.positions"


def ablation() -> Ablation:
    base = Experiment(
        name="list-operations",
        model=GPT(
            vocabulary=16,
            context=100,
            layers=4,
            width=64,
            heads=2,
            positions=Rotary(),
            norm="rms",
            bias=False,
            depth="unroll",
        ),
        data=ListOperations(min_length=20, max_length=100, depth=5, arguments=5, train_rows=40_000, batch=32),
        objective=Recall(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=50),
        steps=900,
        evaluation=Evaluation(every=150),
        checkpointing=Checkpointing(every=300),
    )
    choices = {
        "softmax": {},
        "sliding window": {ATTENTION: "sliding-window", f"{ATTENTION}.window": 16},
        "big-bird": {ATTENTION: "big-bird", f"{ATTENTION}.block": 8},
        "linear transformer": {ATTENTION: "linear-transformer"},
        "performer": {ATTENTION: "performer"},
        "mamba-2": {ATTENTION: "mamba2", POSITIONS: None},
        "gated delta rule": {ATTENTION: "gated-delta-net", POSITIONS: None},
    }
    return Ablation(
        name="list-operations",
        base=base,
        factors=(Factor("attention", (ATTENTION, POSITIONS), choices),),
        quality="valid/accuracy",
        contexts=(100, 2000),
    )
