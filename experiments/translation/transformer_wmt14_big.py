"""The big model of "Attention Is All You Need" (Vaswani et al., 2017) on WMT14 English to German.

    headway train experiments/translation/transformer_wmt14_big.py
    headway average runs/transformer-wmt14-big --out runs/big --last 20
    headway evaluate runs/big --beam 4 --length_penalty 0.6

As transformer_wmt14.py, but of width 1024 with 16 heads, dropout 0.3, 300,000 steps, and the last 20
checkpoints averaged. Published BLEU: 28.4. Not run by us.
"""

import dataclasses

from transformer_wmt14 import experiment as transformer_wmt14

from research.training.experiment import Experiment


def experiment() -> Experiment:
    base = transformer_wmt14()
    return dataclasses.replace(
        base,
        name="transformer-wmt14-big",
        model=dataclasses.replace(base.model, width=1024, heads=16, dropout=0.3),
        # Peak as in the base model: (1024 * 4000)^-0.5.
        optimizer=dataclasses.replace(base.optimizer, learning_rate=4.94e-4),
        steps=300_000,
    )
