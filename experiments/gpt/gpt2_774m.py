"""GPT-2 774M ("large"): 36 layers, 20 heads, width 1280; Radford et al. (2019), rates of Brown et al. (2020,
table 2.1).

    headway train experiments/gpt/gpt2_774m.py --data.path "openwebtext/*.jsonl"

A batch is 512 x 1,024 tokens in bfloat16 over all devices; where that does not fit, cut it into
micro-batches with --accumulate (the result is the same) or recompute with --model.remat. Any text will do:
files or JSONL by --data.path, or a TFDS data set by --data.source tfds:NAME. Not run by us.
"""

from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Cosine


def experiment() -> Experiment:
    return Experiment(
        name="gpt2-774m",
        model=GPT(
            vocabulary=50304, context=1024, layers=36, width=1280, heads=20, dtype="bfloat16", remat="dots"
        ),
        data=TextData(source="files", length=1024, batch=512, valid_fraction=0.0005),
        optimizer=AdamW(learning_rate=2.5e-4, beta2=0.95),
        schedule=Cosine(warmup=2000, final=0.1),
        steps=600_000,
        evaluation=Evaluation(every=2000, batches=64),
        checkpointing=Checkpointing(every=2000, keep_last=2, keep_every=50_000),
        log_every=50,
    )
