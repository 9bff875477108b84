"""Length extrapolation: induction learned at 256 tokens, tested up to 8,192.

    headway ablate experiments/ablations/length_extrapolation.py

After a trigger comes the token that came after it before (Gu & Dao, 2023, section 4.1.2); the distance grows
with the row, what has to be done does not. Positions separate: a softmax that knows only what was near, or
only positions that it has seen, fails beyond them. 2 layers of width 64. Estimated, not run: 17 minutes on
two idle cores.
"""

from research.ablation.grid import Ablation, Factor
from research.data.induction import Induction
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear

ATTENTION, POSITIONS = "model.attention", "model.positions"


def ablation() -> Ablation:
    base = Experiment(
        name="length-extrapolation",
        model=GPT(
            vocabulary=17,
            context=8192,
            layers=2,
            width=64,
            heads=2,
            positions=None,
            norm="rms",
            bias=False,
            feed_forward_width=128,
            depth="unroll",
        ),
        data=Induction(length=256, questions=16, batch=16, test_rows=32),
        objective=Recall(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=50),
        steps=600,
        evaluation=Evaluation(every=100),
        checkpointing=Checkpointing(every=300),
    )
    choices = {
        "none": {},
        "sinusoidal": {POSITIONS: "sinusoidal"},
        "rotary": {POSITIONS: "rotary"},
        "alibi": {POSITIONS: "alibi"},
        "relative bias": {POSITIONS: "relative-bias"},
        "forgetting": {ATTENTION: "forgetting"},
        "mamba-2": {ATTENTION: "mamba2"},
        "gated delta rule": {ATTENTION: "gated-delta-net"},
    }
    return Ablation(
        name="length-extrapolation",
        base=base,
        factors=(Factor("positions", (ATTENTION, POSITIONS), choices),),
        quality="valid/accuracy",
        contexts=(256, 2048, 8192),
    )
