"""GPT-2 1558M ("XL"): 48 layers, 25 heads, width 1600; Radford et al. (2019), rates of Brown et al. (2020,
table 2.1).

    headway train experiments/gpt/gpt2_1558m.py --data.path "openwebtext/*.jsonl"
    headway plan experiments/gpt/gpt2_1558m.py --topology v5e:16x16 --sharding.fsdp 64 --sharding.data 4

A batch is 512 x 1,024 tokens in bfloat16 over all devices; where that does not fit, cut it into
micro-batches with --accumulate (the result is the same) or recompute with --model.remat. Any text will do:
files or JSONL by --data.path, or a TFDS data set by --data.source tfds:NAME. Not run by us. Its width
divides over an fsdp axis of up to 64, its 25 heads over a tensor axis of 5 or 25.
"""

import dataclasses

from gpt2_124m import experiment as gpt2_124m

from research.training.experiment import Experiment


def experiment() -> Experiment:
    base = gpt2_124m()
    return dataclasses.replace(
        base,
        name="gpt2-1558m",
        model=dataclasses.replace(base.model, layers=48, width=1600, heads=25, remat="block"),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=2e-4),
    )
