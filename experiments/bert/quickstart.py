"""A small BERT learns to fill gaps in the English prose that ships with Python; nothing is downloaded.

    headway train experiments/bert/quickstart.py

Every second layer sees three tokens to either side only: what stands beside a gap says most about it, and a
network that must find that out by itself spends its first hundred steps on it.

Measured with Python 3.11.7 (one run, seed 0, two quiet cores, 3:52 minutes with nothing cached): 31.3 % of
the masked tokens of the held-out files filled right; unigram 5.0 %, bigram with the left neighbour 16.6 %,
bigram with both neighbours 28.8 %. Packed rows hold 99.6 % real tokens.
"""

from research.attention.catalogue import Interleaved
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="bert-quickstart",
        model=BERT(
            vocabulary=2048,
            context=128,
            layers=4,
            width=128,
            heads=2,
            attention=Interleaved(first=SlidingWindow(window=7), firsts=1, second=Softmax(), seconds=1),
            positions=Rotary(base=1000.0),
            token_types=0,
            norm="rms",
            placement="pre",
            feed_forward="relu2",
            bias=False,
            pooler=False,
            dropout=0.0,
            depth="unroll",
        ),
        data=MaskedText(source="python-prose", length=128, batch=16, rate=0.3, masked=1.0, random=0.0),
        objective=MaskedLM(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=20),
        steps=1000,
        evaluation=Evaluation(every=500),
        baselines=True,
    )
