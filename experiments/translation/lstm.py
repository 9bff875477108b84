"""An LSTM encoder-decoder without attention on Multi30k: all the decoder knows is one thought vector.

    headway train experiments/translation/lstm.py --data.directory MULTI30K
    headway evaluate runs/lstm

After Sutskever et al. (2014): two layers, the source read backwards, the decoder beginning with the encoder's
last state. Measured (one seed, pinned to one core of two, 36 minutes with other work on both; beam 5, last
checkpoint): BLEU 20.1 / 12.8 / 10.5 on the three tests. From sources of 10 to 14 words to those of 20 to 29
it falls by 40 % (16.3 to 9.7), that of lstm_attention.py with the optimizer here by 20 % (33.2 to 26.4).
"""

import dataclasses

from lstm_attention import experiment as lstm_attention

from research.models.seq2seq import Seq2Seq
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import AdamW


def experiment() -> Experiment:
    base = lstm_attention()
    return dataclasses.replace(
        base,
        name="lstm",
        model=Seq2Seq(
            vocabulary=4000,
            layers=2,
            width=256,
            bidirectional=False,
            reverse_source=True,
            attention=None,
            input_feeding=False,
            dropout=0.3,
        ),
        optimizer=AdamW(learning_rate=2e-3, beta1=0.9, beta2=0.98, weight_decay=0.0),
        steps=4000,
        evaluation=Evaluation(every=500),
    )
