"""nanoGPT's character model for a CPU: 0.8M parameters, 2,000 steps of 12 x 64 characters of Shakespeare.

    headway train experiments/gpt/shakespeare_char_cpu.py --data.path input.txt

The text is "tinyshakespeare" (1,115,394 characters; github.com/karpathy/char-rnn,
data/tinyshakespeare/input.txt), its last tenth held out, as is customary. Published (nanoGPT's README):
validation loss about 1.88, in about 3 minutes.

Measured on the whole held-out tenth, two cores of an AMD EPYC: 1.777 nats per character after 2,000 steps
(one run, seed 0). The rate is three times nanoGPT's 1e-3, with which the same run reached 1.909.
"""

from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.schedule import Cosine


def experiment() -> Experiment:
    return Experiment(
        name="shakespeare-char-cpu",
        model=GPT(vocabulary=66, context=64, layers=4, width=128, heads=4, bias=False, depth="unroll"),
        data=TextData(source="files", tokenizer="characters", split="tail", length=64, batch=12),
        optimizer=AdamW(learning_rate=3e-3, beta2=0.99),
        schedule=Cosine(warmup=100, final=0.1),
        steps=2000,
        evaluation=Evaluation(every=250),
        samples=1,
    )
