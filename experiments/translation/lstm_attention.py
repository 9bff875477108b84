"""An LSTM encoder-decoder with additive attention on Multi30k, English to German.

    headway train experiments/translation/lstm_attention.py --data.directory MULTI30K
    headway evaluate runs/lstm-attention

Other attentions: --model.attention.score dot, general or concat; --model.attention.locality monotonic or
predictive; --model.attention.coverage True. Published for a text-only recurrent model with attention on this
form of the text: BLEU 38.1 / 30.7 / 26.4 (LIUM-CVC, 2017). Measured (one seed, pinned to one core of two,
34 minutes with other work on both; beam 5, last checkpoint): BLEU 37.5 / 29.1 / 23.7, validation 0.602 bits
per byte; the loss of training (1.84 nats a token) is above that of validation (1.78): less dropout may give
more.
"""

from research.data.bitext import Bitext
from research.models.seq2seq import Alignment, Seq2Seq
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="lstm-attention",
        model=Seq2Seq(vocabulary=4000, layers=1, width=256, attention=Alignment("additive"), dropout=0.4),
        data=Bitext(corpus="multi30k", tokenised=True, batch_tokens=1536),
        objective=Translation(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=2e-3, beta1=0.9, beta2=0.98, weight_decay=0.0),
        schedule=Linear(warmup=300, final=0.01),
        steps=5000,
        evaluation=Evaluation(every=250),
        checkpointing=Checkpointing(every=500, keep_last=3),
        samples=3,
    )
