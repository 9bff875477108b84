"""GPT-2 774M ("large"): 36 layers, 20 heads, width 1280; Radford et al. (2019), rates of Brown et al. (2020,
table 2.1).

    headway train experiments/gpt/gpt2_774m.py --data.path "openwebtext/*.jsonl"

A batch is 512 x 1,024 tokens in bfloat16 over all devices; where that does not fit, cut it into
micro-batches with --accumulate (the result is the same) or recompute with --model.remat. Any text will do:
files or JSONL by --data.path, or a TFDS data set by --data.source tfds:NAME. Not run by us.
"""

import dataclasses

from gpt2_124m import experiment as gpt2_124m

from research.training.experiment import Experiment


def experiment() -> Experiment:
    base = gpt2_124m()
    return dataclasses.replace(
        base,
        name="gpt2-774m",
        model=dataclasses.replace(base.model, layers=36, width=1280, heads=20, remat="dots"),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=2.5e-4),
    )
