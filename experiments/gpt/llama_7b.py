"""A model shaped as Llama 2 7B: 32 layers, 32 heads, width 4096, SwiGLU 11008 (Touvron et al., 2023).

    headway train experiments/gpt/llama_7b.py --data.path "corpus/*.jsonl"
    headway plan experiments/gpt/llama_7b.py --topology v5p:4x4x4 --sharding.tensor 4 --accumulate 2
    headway plan experiments/gpt/llama_7b.py --topology v5e:16x16 --slices 2 --sharding.tensor 4

6,738,415,616 parameters. A batch is 1,024 x 4,096 tokens, 4M as published, and the learning rate, warm-up and
betas are theirs; 2 trillion tokens would be 476,837 steps. Weights are sharded over the axis fsdp and, by
--sharding.tensor, heads and hidden units over another; --sharding.sequence splits the length too (ring
attention). Not run by us.
"""

from research.attention.positions import Rotary
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Checkpointing, Evaluation, Experiment, Sharding
from research.training.optimizer import AdamW
from research.training.schedule import Cosine


def experiment() -> Experiment:
    return Experiment(
        name="llama-7b",
        model=GPT(
            vocabulary=32000,
            context=4096,
            layers=32,
            width=4096,
            heads=32,
            feed_forward="swiglu",
            feed_forward_width=11008,
            positions=Rotary(),
            norm="rms",
            bias=False,
            tied_head=False,
            dtype="bfloat16",
            remat="block",
        ),
        data=TextData(source="files", length=4096, batch=1024, valid_fraction=0.0001),
        optimizer=AdamW(learning_rate=3e-4, beta2=0.95),
        schedule=Cosine(warmup=2000, final=0.1),
        steps=476_837,
        sharding=Sharding("fsdp+tensor"),
        evaluation=Evaluation(every=2000, batches=16),
        checkpointing=Checkpointing(every=2000, keep_last=2, keep_every=50_000),
        log_every=20,
    )
