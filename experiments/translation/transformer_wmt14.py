"""The base model of "Attention Is All You Need" (Vaswani et al., 2017) on WMT14 English to German.

    headway train experiments/translation/transformer_wmt14.py

6+6 layers, width 512, 8 heads, joint BPE of 37,000 tokens, batches of 25,000 tokens a side, 100,000 steps of
Adam with 4,000 of warm-up, label smoothing 0.1, the last 5 checkpoints averaged (headway average), beam 4,
length penalty 0.6. Published BLEU: 27.3. The big model is transformer_wmt14_big.py. Not run by us.
"""

from research.data.bitext import Bitext
from research.models.transformer import Transformer
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import ReciprocalSqrt


def experiment() -> Experiment:
    return Experiment(
        name="transformer-wmt14",
        model=Transformer(vocabulary=37000, dtype="bfloat16"),
        data=Bitext(corpus="tfds:wmt14_translate/de-en", batch_tokens=25000, length=256),
        objective=Translation(label_smoothing=0.1),
        # Peak of width^-0.5 * min(step^-0.5, step * warmup^-1.5): (512 * 4000)^-0.5.
        optimizer=AdamW(learning_rate=6.99e-4, beta1=0.9, beta2=0.98, epsilon=1e-9, weight_decay=0.0),
        schedule=ReciprocalSqrt(warmup=4000),
        steps=100_000,
        clip=None,
        evaluation=Evaluation(every=1000),
        checkpointing=Checkpointing(every=1000, keep_last=20),
    )
