"""Positions: what a softmax GPT gains from each way of telling it where tokens stand.

    headway ablate experiments/ablations/positions.py

The quickstart's text and model (4 layers of width 128, 256 tokens of context), softmax attention. That
learned positions are parameters is made up for by the feed-forward network. How they extrapolate is another
question: experiments/ablations/length_extrapolation.py. About two minutes a point on two idle cores.
"""

from research.ablation.grid import Ablation, Factor
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear


def ablation() -> Ablation:
    base = Experiment(
        name="positions",
        model=GPT(
            vocabulary=2048,
            context=256,
            layers=4,
            width=128,
            heads=2,
            positions=None,
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
    kinds = ("learned", "sinusoidal", "rotary", "alibi", "relative-bias")
    choices = {"none": {}, **{kind: {"model.positions": kind} for kind in kinds}}
    return Ablation(
        name="positions",
        base=base,
        factors=(Factor("positions", ("model.positions",), choices),),
        seeds=(0, 1, 2),
        quality="valid/bits_per_byte",
        contexts=(256, 2048),
    )
