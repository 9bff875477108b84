"""A small Transformer on Multi30k, English to German: 4+4 layers, width 128, joint BPE of 10,000 tokens.

    headway train experiments/translation/transformer_multi30k.py --data.directory MULTI30K
    headway evaluate runs/transformer-multi30k

Without --data.directory the files are downloaded from their owners (github.com/multi30k/dataset; for
non-commercial research and education). The text is the owners' lower-cased tokenised form, on which figures
are published: BLEU 41.0 / 33.4 / 29.9 on test_2016_flickr / test_2017_flickr / test_2017_mscoco is the best
for a text-only Transformer of this size (Wu et al., 2021). Theirs is post-norm, trained by Adam for 8,000
steps of 4,096 tokens; to train theirs:

    --model.placement post --model.norm layer --model.dropout 0.3 --steps 8000 --data.batch-tokens 4096 \\
        --optimizer adamw --optimizer.learning-rate 5e-3 --optimizer.beta2 0.98 --optimizer.weight-decay 0 \\
        --schedule reciprocal-sqrt --schedule.warmup 2000

Pre-norm and Muon get there in fewer steps: validation bits per byte after 400 steps of 2,048 tokens are 0.905
where Adam (rate 3e-3, post-norm) has 1.31 after 500.

Measured (mean of three seeds, pinned to one core of two, 105 to 115 minutes with other work on both; beam 5,
last checkpoint): BLEU 41.2 / 34.3 / 29.8 on the three tests (41.8, 41.0 and 40.9; 34.6, 34.0 and 34.3; 30.3,
29.5 and 29.7), validation 0.474, 0.471 and 0.474 bits per byte (1.58 nats a token; training, with dropout,
1.05 to 1.16: more dropout may help yet). With a vocabulary of 4,000 and 7,600 steps 40.6 / 32.7 / 26.9 and
0.492; with that vocabulary, dropout 0.3 and 11,000 steps 39.8 / 32.1 / 27.0. After 1,500 steps, the whole of
their schedule, a vocabulary of 8,000 has 0.587 bits per byte, one of 4,000 has 0.634.
"""

from research.data.bitext import Bitext
from research.models.transformer import Transformer
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="transformer-multi30k",
        model=Transformer(
            vocabulary=10000,
            layers=4,
            width=128,
            heads=4,
            feed_forward_width=256,
            placement="pre",
            norm="rms",
            dropout=0.2,
            depth="unroll",
        ),
        data=Bitext(corpus="multi30k", tokenised=True, batch_tokens=2048),
        objective=Translation(label_smoothing=0.1),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=5e-3),
        schedule=Linear(warmup=300, final=0.01),
        steps=10000,
        clip=None,
        evaluation=Evaluation(every=400),
        checkpointing=Checkpointing(every=400, keep_last=3),
        samples=3,
    )
