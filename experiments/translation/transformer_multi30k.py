"""A small Transformer on Multi30k, English to German: 4+4 layers, width 128, joint BPE of 10,000 tokens.

    headway train experiments/translation/transformer_multi30k.py --data.directory MULTI30K
    headway average runs/transformer-multi30k --out runs/averaged --last 10
    headway evaluate runs/averaged

Without --data.directory the files are downloaded from their owners (github.com/multi30k/dataset; for
non-commercial research and education). The text is the owners' lower-cased tokenised form, on which figures
are published: BLEU 41.0 / 33.4 / 29.9 on test_2016_flickr / test_2017_flickr / test_2017_mscoco is the best
for a text-only Transformer of this size (Wu et al., 2021), whose recipe this is. A base-size Transformer does
worse on 29,000 pairs. Not trained to its end by us yet.
"""

from research.data.bitext import Bitext
from research.models.transformer import Transformer
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import ReciprocalSqrt


def experiment() -> Experiment:
    return Experiment(
        name="transformer-multi30k",
        model=Transformer(
            vocabulary=10000,
            layers=4,
            width=128,
            heads=4,
            feed_forward_width=256,
            dropout=0.3,
            depth="unroll",
        ),
        data=Bitext(corpus="multi30k", tokenised=True, batch_tokens=4096),
        objective=Translation(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=5e-3, beta1=0.9, beta2=0.98, epsilon=1e-9, weight_decay=0.0),
        schedule=ReciprocalSqrt(warmup=2000),
        steps=8000,
        clip=None,
        evaluation=Evaluation(every=200),
        checkpointing=Checkpointing(every=200, keep_last=10),
        samples=3,
    )
