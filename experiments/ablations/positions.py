"""Positions: what a softmax GPT gains from each way of telling it where tokens stand.

    headway ablate experiments/ablations/positions.py

The quickstart's text and a model of 2 layers of width 128 with 256 tokens of context, softmax attention. That
learned positions are parameters is made up for by the feed-forward network. How they extrapolate is another
question: experiments/ablations/length_extrapolation.py.

Measured in 15 minutes with `--parallel 2` on two cores: 0.6 million tokens each; means of three seeds with
95 % intervals, of differences seed by seed.

    positions          bits per byte           less none
    none             1.8958 ± 0.0152
    learned          1.9014 ± 0.0226     0.0056 ± 0.0087
    sinusoidal       1.8951 ± 0.0168    -0.0008 ± 0.0063
    rotary           1.7944 ± 0.0119    -0.1014 ± 0.0055
    alibi            1.7777 ± 0.0045    -0.1181 ± 0.0121
    relative-bias    1.8577 ± 0.0147    -0.0381 ± 0.0030

What it shows: telling distances is worth 0.04 to 0.12 bits this early; a vector added for each position,
learned or not, is worth nothing yet that could be measured. (Sinusoids of amplitude 1, 50 times what
embeddings begin with, cost 0.43 bits.)
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
