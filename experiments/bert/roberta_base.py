"""RoBERTa-base: BERT-base without sentence pairs, a larger vocabulary and batch (Liu et al., 2019).

    headway train experiments/bert/roberta_base.py --data.path "corpus/*.jsonl"

Whole rows of text up to 512 tokens, masks drawn anew each epoch. The tokenizer trained by default is a cased
WordPiece of 50,265 tokens; RoBERTa's own byte-level BPE is --data.tokenizer tokenizer.json. Published:
500,000 steps of 8,192 sequences on 160 GB of text, learning rate 6e-4. A batch that does not fit into memory
is cut by --accumulate; the result is the same. Not run by us.
"""

from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="roberta-base",
        model=BERT(
            vocabulary=50265,
            context=512,
            token_types=0,
            pooler=False,
            norm_epsilon=1e-5,
            dtype="bfloat16",
            remat="dots",
        ),
        data=MaskedText(source="files", lowercase=False, length=512, batch=8192, valid_fraction=0.001),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=6e-4, beta2=0.98, epsilon=1e-6, weight_decay=0.01),
        schedule=Linear(warmup=24_000),
        steps=500_000,
        accumulate=64,
        clip=None,
        evaluation=Evaluation(every=2000, batches=16),
        checkpointing=Checkpointing(every=2000, keep_last=2),
    )
