"""Length extrapolation: induction learned at 256 tokens, tested up to 8,192.

    headway ablate experiments/ablations/length_extrapolation.py

After a trigger comes the token that came after it before (Gu & Dao, 2023, section 4.1.2); the distance grows
with the row, what has to be done does not. Positions separate: a softmax that knows only what was near, or
only positions that it has seen, fails beyond them. 2 layers of width 64.

Measured in about 12 minutes with `--parallel 2` on two cores: 9,600 rows each, one seed. Accuracy on
validation rows like those of training (16 questions anywhere), and on 32 rows of each length with one
question at the end; guessing is right 6 % of the time.

    positions           validation     256     512    1,024    2,048    4,096    8,192
    none                      0.70    0.16    0.09     0.00     0.00     0.09     0.09
    sinusoidal                0.83    0.09    0.09     0.12     0.06     0.09     0.09
    rotary                    0.93    0.66    0.16     0.16     0.06     0.06     0.06
    alibi                     1.00    0.97    0.88     0.84     0.72     0.41     0.38
    relative bias             0.97    0.28    0.12     0.12     0.09     0.09     0.03
    forgetting                1.00    1.00    1.00     1.00     1.00     1.00     1.00
    mamba-2                   1.00    1.00    1.00     1.00     0.97     0.47     0.41
    gated delta rule          1.00    1.00    0.97     0.97     0.81     0.31     0.25

What it shows: softmax with decays that the text chooses is right at 32 times the length it was trained on,
the states of Mamba-2 and the gated delta rule nearly so at 4 to 8 times (as they were before Mamba-2's
convolution had a bias, and the gated delta rule its present first rates); ALiBi fades slowly, the others at
once. The tests' question stands at the end, farther from its answer than most in training: what T5's bias and
no positions at all have learned there is right nearby only.
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
