"""A BERT from ten million words of text, the size of BabyLM's small track (Warstadt et al., 2023).

    headway train experiments/bert/babylm_10m.py --data.path eltec-eng/train.txt.xz
    headway evaluate runs/bert-babylm-10m --task blimp --data.path blimp/blimp.jsonl.xz

For one GPU: about 60 passes over the text, 7.9e8 tokens, at 1.4e8 FLOPs a token 1.1e17 FLOPs; the schedule
is one cycle, a quarter of it warm-up. It aims at BLiMP 70. Published with 10M words of BabyLM text: OPT-125M
62.6, GPT-2 small 67.3, RoBERTa 69.5, GPT-BERT 71.7, ELC-BERT 75.8. On ELTeC-eng (10.5M words of novels), a
KenLM 5-gram has 52.6. Not run by us yet; `babylm_10m_cpu.py`, for two cores, has 63.5.
"""

from research.attention.catalogue import Interleaved
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Rotary
from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import Muon
from research.training.schedule import Linear


def experiment() -> Experiment:
    return Experiment(
        name="bert-babylm-10m",
        model=BERT(
            vocabulary=8192,
            context=128,
            layers=12,
            width=384,
            heads=6,
            attention=Interleaved(first=SlidingWindow(window=16), firsts=1, second=Softmax(), seconds=1),
            positions=Rotary(base=1000.0),
            token_types=0,
            norm="rms",
            norm_epsilon=1e-5,
            placement="pre",
            feed_forward="geglu",
            feed_forward_width=1024,
            bias=False,
            pooler=False,
            dropout=0.1,
            dtype="bfloat16",
        ),
        data=MaskedText(
            source="files", split="tail", valid_fraction=0.01, length=128, batch=256, rate=0.3, masked=0.9
        ),
        objective=MaskedLM(),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=3e-3),
        schedule=Linear(warmup=6_000),
        steps=24_000,
        evaluation=Evaluation(every=1000, batches=16),
        checkpointing=Checkpointing(every=1000, keep_last=2),
    )
