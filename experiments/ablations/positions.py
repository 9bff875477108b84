"""Positions: what a softmax GPT gains from each way of telling it where tokens stand.

    headway ablate experiments/ablations/positions.py

The quickstart's text and a model of 2 layers of width 128 with 256 tokens of context, softmax attention. That
learned positions are parameters is made up for by the feed-forward network. How they extrapolate is another
question: experiments/ablations/length_extrapolation.py. Estimated, not run: 20 minutes on two idle cores.
"""

import dataclasses

from language_modelling import ablation as language_modelling

from research.ablation.grid import Ablation, Factor


def ablation() -> Ablation:
    base = language_modelling().base
    model = dataclasses.replace(base.model, positions=None)
    base = dataclasses.replace(base, name="positions", steps=300, model=model)
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
