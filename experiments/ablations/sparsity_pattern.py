"""Sparsity patterns: which keys matter, when every token may look at about 64 of 512.

    headway ablate experiments/ablations/sparsity_pattern.py

Window, dilated window, window with global tokens, window with global and random blocks, and the two of the
Sparse Transformer, on the quickstart's text in rows of 512 tokens: 2 layers of width 128. Time says what the
block engine makes of the pattern.

Measured in 8 minutes with `--parallel 2 --seeds 0` on two cores: 0.6 million tokens each.

    pattern                             bits per byte    training tokens/s
    full                                        1.859                6,569
    window 64                                   1.794               11,395
    window 64, dilated 4                        1.942               10,226
    window 60, 4 global tokens                  1.799               10,328
    window, global and random blocks            1.810                9,335
    strided 32                                  1.790                7,772
    fixed 32                                    1.828                8,590

What it shows: so early the nearest keys are worth most. The dilated window, which lacks them, is the one
pattern that is worse than full attention; strided, which has them and a grid beyond, is best, but its blocks
are scattered: two thirds of the window's speed.
"""

import dataclasses

from language_modelling import ablation as language_modelling

from research.ablation.grid import Ablation, Factor

ATTENTION = "model.attention"


def pattern(kind: str, **fields: object) -> dict[str, object]:
    return {ATTENTION: kind, **{f"{ATTENTION}.{name}": value for name, value in fields.items()}}


def ablation() -> Ablation:
    base = language_modelling().base
    base = dataclasses.replace(
        base,
        name="sparsity-pattern",
        steps=300,
        model=dataclasses.replace(base.model, context=512),
        data=dataclasses.replace(base.data, length=512, batch=4),
    )
    choices = {
        "full": {},
        "window 64": pattern("sliding-window", window=64),
        "window 64, dilated 4": pattern("longformer", window=64, dilation=4, global_tokens=0),
        "window 60, 4 global tokens": pattern("longformer", window=60, global_tokens=4),
        "window, global and random blocks": pattern(
            "big-bird", block=16, window=3, global_blocks=1, random_blocks=1
        ),
        "strided 32": pattern("sparse-transformer", factors="strided", stride=32),
        "fixed 32": pattern("sparse-transformer", factors="fixed", stride=32, summary=4),
    }
    return Ablation(
        name="sparsity-pattern",
        base=base,
        factors=(Factor("pattern", (ATTENTION,), choices),),
        seeds=(0, 1),
        quality="valid/bits_per_byte",
        contexts=(512, 4096),
    )
