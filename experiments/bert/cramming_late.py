"""The second stage of `cramming.py`: the same network goes on with four times the batch, down to rate 0.

    headway train experiments/bert/cramming_late.py --from runs/bert-cramming --data.path "corpus/*.jsonl"

Early on, a small batch says as well as a large one where to go, and costs less; late in training it does not
(Geiping & Goldstein, 2023, raise it over the run). Model, tokenizer and parameters are the first stage's; the
optimizer's moments begin anew, hence the short warm-up, and another seed gives rows in another order.

Budget: 16,000 steps of 4,096 x 128 tokens are 8.4e9 tokens, at 7.6e8 FLOPs a token 6.4e18 FLOPs: 14.2 hours
on an A100 (312 TFLOP/s) at 40 % of its peak. With the first stage's 7.1 hours 21.3: one day, with time left
to read the text. The 40 % are an assumption. Not run by us.
"""

import dataclasses

from cramming import experiment as cramming

from research.training.experiment import Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Linear


def experiment() -> Experiment:
    base = cramming()
    return dataclasses.replace(
        base,
        name="bert-cramming-late",
        data=dataclasses.replace(base.data, batch=4096),
        optimizer=AdamW(learning_rate=1e-3, beta2=0.98, epsilon=1e-12, weight_decay=0.01),
        schedule=Linear(warmup=500),
        steps=16_000,
        accumulate=8,
        seed=1,
    )
