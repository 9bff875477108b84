"""nanoGPT's character model: 10.7M parameters, 5,000 steps of 64 x 256 characters of Shakespeare.

    headway train experiments/gpt/shakespeare_char.py --data.path input.txt

The text is "tinyshakespeare" (see shakespeare_char_cpu.py). Published (nanoGPT's README): best validation
loss 1.4697, in about 3 minutes on one A100. The model overfits after some 2,000 steps; the best checkpoint
is kept and is what `headway sample` and `headway evaluate` load. Not run to the end by us: two CPU cores
would take about 13 hours.
"""

from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Cosine


def experiment() -> Experiment:
    return Experiment(
        name="shakespeare-char",
        model=GPT(
            vocabulary=66, context=256, layers=6, width=384, heads=6, bias=False, dropout=0.2, depth="unroll"
        ),
        data=TextData(source="files", tokenizer="characters", split="tail", length=256, batch=64),
        optimizer=AdamW(learning_rate=1e-3, beta2=0.99),
        schedule=Cosine(warmup=100, final=0.1),
        steps=5000,
        evaluation=Evaluation(every=250),
        checkpointing=Checkpointing(every=250),
        samples=1,
    )
