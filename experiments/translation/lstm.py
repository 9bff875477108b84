"""An LSTM encoder-decoder without attention on Multi30k: all the decoder knows is one thought vector.

    headway train experiments/translation/lstm.py --data.directory MULTI30K
    headway evaluate runs/lstm

After Sutskever et al. (2014): two layers, the source read backwards, the decoder beginning with the encoder's
last state. Scores fall with the length of the source (evaluate prints them by length), those of
lstm_attention.py should not. Not measured by us yet.
"""

from research.data.bitext import Bitext
from research.models.seq2seq import Seq2Seq
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="lstm",
        model=Seq2Seq(
            vocabulary=10000,
            layers=2,
            width=256,
            bidirectional=False,
            reverse_source=True,
            attention=None,
            input_feeding=False,
            dropout=0.3,
        ),
        data=Bitext(corpus="multi30k", tokenised=True, batch_tokens=2048),
        objective=Translation(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=2e-3, beta1=0.9, beta2=0.98, weight_decay=0.0),
        schedule=Linear(warmup=500, final=0.02),
        steps=8000,
        evaluation=Evaluation(every=250),
        checkpointing=Checkpointing(every=250, keep_last=5),
        samples=3,
    )
