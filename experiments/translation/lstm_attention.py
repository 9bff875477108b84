"""An LSTM encoder-decoder with additive attention on Multi30k, English to German.

    headway train experiments/translation/lstm_attention.py --data.directory MULTI30K
    headway evaluate runs/lstm-attention

Other attentions: --model.attention.score dot, general or concat; --model.attention.locality monotonic or
predictive; --model.attention.coverage True. Published for a text-only recurrent model with attention on this
form of the text: BLEU 38.1 / 30.7 / 26.4 (LIUM-CVC, 2017).

Measured (mean of three seeds, pinned to one core of two, 45 to 54 minutes with other work on both; beam 5,
last checkpoint): BLEU 39.1 / 31.8 / 26.9 (39.3, 38.6 and 39.3; 32.0, 31.6 and 31.8; 26.5, 27.1 and 27.2),
validation 0.525, 0.526 and 0.525 bits per byte (1.55 nats a token). With AdamW in place of Muon, 7,000 steps
(38 minutes) and everything else the same, means of two seeds: rate 5e-3, beta2 0.95, weight decay 0.1
39.0 / 31.1 / 26.1, 0.539 (of the first seed; with a vocabulary of 8,000, one seed, 38.8 / 31.2 / 25.6,
0.542); rate 2e-3, beta2 0.98, no decay 38.1 / 30.0 / 25.4, 0.558.
"""

from research.data.bitext import Bitext
from research.models.seq2seq import Alignment, Seq2Seq
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment, Sharding
from research.training.optimizer import Muon
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="lstm-attention",
        model=Seq2Seq(vocabulary=4000, layers=1, width=256, attention=Alignment("additive"), dropout=0.3),
        data=Bitext(corpus="multi30k", tokenised=True, batch_tokens=1536),
        objective=Translation(label_smoothing=0.1),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=300, final=0.01),
        steps=6000,
        evaluation=Evaluation(every=250),
        checkpointing=Checkpointing(every=500, keep_last=3),
        samples=3,
        # Split parameters would be gathered at every token: the TPU compiler moves that into the loops.
        sharding=Sharding("replicated"),
    )
