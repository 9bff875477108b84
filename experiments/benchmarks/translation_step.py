"""Translation beside PyTorch: the training step and beam search of a Transformer, and an LSTM.

    pip install -e ".[peers]" && python experiments/benchmarks/translation_step.py --json translation.json

The Transformer of experiments/translation/transformer_multi30k.py beside Hugging Face's Marian of the same
shape under torch.compile: forward, backward and Adam on the same pairs (128 of at most 32 tokens a side),
with dropout 0.3 and label smoothing 0.1; then beam search with 5 hypotheses over 64 sources of 24 tokens,
both from random parameters, so that no translation ends before its 24 tokens (Marian's is not allowed to).
The LSTM (2 layers, width 256, 64 rows of 32 steps), forward and backward, beside torch.nn.LSTM. Blocks
alternate in one process; times are medians over blocks, ratios medians of the ratios of neighbouring
blocks, PyTorch's time over ours. At the end a run over batches in 6 buckets, and how often the step was
compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data.bitext import Bitext
from research.data.buckets import PairBatches, TokenPairs, gather, plan
from research.inference.beam import Beam, beam_search
from research.models.transformer import Transformer
from research.modules.lstm import LSTM
from research.objectives.translation import Translation
from research.scale.host_memory import keep_freed_memory
from research.training.experiment import Experiment
from research.training.optimizer import AdamW
from research.training.program import functions, place_rows

MODEL = Transformer(
    vocabulary=10000, layers=4, width=128, heads=4, feed_forward_width=256, dropout=0.3, depth="unroll"
)
ROWS, LENGTH, END, PAD = 128, 32, 0, 1
SENTENCES, WORDS, BEAM = 64, 24, 5
WIDTH, LAYERS, STEPS = 256, 2, 32
Sides = dict[str, Callable[[], Any]]


def pairs(count: int, low: int, high: int) -> TokenPairs:
    """Returns pairs of random tokens, ``low`` to ``high`` on a side."""
    random = np.random.default_rng(0)
    sides = [
        [random.integers(2, MODEL.vocabulary, n).tolist() for n in random.integers(low, high + 1, count)]
        for _ in range(2)
    ]
    return TokenPairs.of(*sides, END)


def trainer() -> Any:
    """Returns our functions of the training experiment."""
    optimizer = AdamW(5e-3, beta1=0.9, beta2=0.98, epsilon=1e-9, weight_decay=0.0)
    data = Bitext(batch_tokens=ROWS * LENGTH, length=LENGTH)
    return functions(
        Experiment(
            name="benchmark",
            model=MODEL,
            data=data,
            objective=Translation(0.1),
            optimizer=optimizer,
            clip=None,
        )
    )


def marian() -> Any:
    """Returns Hugging Face's Marian of the model's shape."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.set_float32_matmul_precision("highest")
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", MODEL.layers), ("attention_heads", MODEL.heads), ("ffn_dim", 256))
    }
    config = MarianConfig(
        vocab_size=MODEL.vocabulary, d_model=MODEL.width, max_position_embeddings=256,
        activation_function="relu", scale_embedding=True, dropout=MODEL.dropout,
        attention_dropout=MODEL.attention_dropout, activation_dropout=0.0, attn_implementation="sdpa",
        pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=None, **sizes,
    )  # fmt: skip
    return MarianMTModel(config)


def training() -> tuple[Sides, int]:
    """Returns a training step of each side, which waits for its end, and its target tokens."""
    import torch

    held = pairs(ROWS, 20, LENGTH - 1)
    bucket = plan(np.full(ROWS, LENGTH), count=1, tokens=ROWS * LENGTH, multiple=8)[0]
    batch = gather(held, np.arange(ROWS), bucket, (0, 1))
    parts = trainer()
    placed, state = place_rows(parts.mesh, batch), parts.init()

    def ours() -> float:
        nonlocal state
        state, metrics = parts.step(state, placed)
        return float(metrics["train/loss"])

    network = marian().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, betas=(0.9, 0.98), eps=1e-9, fused=True)
    names = ("source", "source_segments", "tokens", "segments", "targets", "weights")
    source, seen, tokens, segments, targets, weights = (torch.tensor(batch[name]).long() for name in names)
    labels = torch.where(weights > 0, targets, -100)

    @torch.compile
    def loss_of() -> Any:
        logits = network(
            input_ids=source, attention_mask=seen, decoder_input_ids=tokens, decoder_attention_mask=segments
        ).logits
        return torch.nn.functional.cross_entropy(
            logits.view(-1, MODEL.vocabulary), labels.view(-1), label_smoothing=0.1
        )

    def theirs() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"headway": ours, "torch": theirs}, int(batch["weights"].sum())


def decoding() -> tuple[Sides, int]:
    """Returns a beam search of each side, and its sentences."""
    import torch

    random = np.random.default_rng(1)
    source = random.integers(2, MODEL.vocabulary, (SENTENCES, WORDS), dtype=np.int32)
    source[:, -1] = END
    lengths = np.full(SENTENCES, WORDS, np.int32)
    start = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(MODEL.build().init)(jax.random.key(0), start, start)["params"]
    search = beam_search(MODEL.decoder(), Beam(BEAM), slots=WORDS, end=END)
    arrays = [jnp.asarray(x) for x in (source, lengths, lengths)]

    def ours() -> None:
        jax.block_until_ready(search(params, *arrays))

    network = marian().eval()
    ids = torch.tensor(source).long()
    seen = torch.ones_like(ids)

    def theirs() -> None:
        with torch.inference_mode():
            network.generate(
                input_ids=ids, attention_mask=seen, num_beams=BEAM, do_sample=False, max_new_tokens=WORDS,
                min_new_tokens=WORDS, bad_words_ids=None,
            )  # fmt: skip

    return {"headway": ours, "torch": theirs}, SENTENCES


def recurrence() -> tuple[Sides, int]:
    """Returns an LSTM's forward and backward pass of each side, and its tokens."""
    import torch

    random = np.random.default_rng(2)
    inputs = random.normal(size=(ROWS // 2, STEPS, WIDTH)).astype(np.float32)
    module, x = LSTM(WIDTH, LAYERS, False, 0.0), jnp.asarray(inputs)
    params = module.init(jax.random.key(0), x)["params"]

    @jax.jit
    def gradient(params: Any, x: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            return module.apply({"params": params}, x)[0].sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    network = torch.nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True)
    given = torch.tensor(inputs, requires_grad=True)

    def theirs() -> None:
        network.zero_grad(set_to_none=True)
        given.grad = None
        network(given)[0].sum().backward()

    return {
        "headway": lambda: jax.block_until_ready(gradient(params, x)),
        "torch": theirs,
    }, ROWS // 2 * STEPS


def measure(sides: Sides, count: int, blocks: int, times: int) -> dict[str, float]:
    """Returns rates and their ratio."""
    for run in sides.values():
        for _ in range(2):
            run()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for block in range(blocks):
        for side in list(sides) if block % 2 else list(sides)[::-1]:
            start = time.perf_counter()
            for _ in range(times):
                sides[side]()
            seconds[side].append((time.perf_counter() - start) / times)
    ratio = statistics.median(b / a for a, b in zip(seconds["headway"], seconds["torch"], strict=True))
    return {side: count / statistics.median(times) for side, times in seconds.items()} | {"ratio": ratio}


def compilations(steps: int) -> dict[str, int]:
    """Returns how often the step is compiled in a run over batches in buckets."""
    held = pairs(4000, 4, LENGTH - 1)
    buckets = plan(held.widths(), count=6, tokens=512, multiple=8)
    batches, parts = PairBatches(held, buckets, seed=0), trainer()
    state = parts.init()
    for number in range(steps):
        state, _ = parts.step(state, place_rows(parts.mesh, batches[number]))
    return {"buckets": len(buckets), "compilations": parts.step._cache_size()}


CASES = {
    "training": (training, "target tokens/s", 7, 1),
    "decoding": (decoding, "sentences/s", 5, 1),
    "lstm": (recurrence, "tokens/s", 9, 5),
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[*CASES, "compilations"], action="append", help="default: all")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `headway train` does; both sides gain
    found: dict[str, Any] = {}
    print("| case | ours | PyTorch | ratio |\n|---|---:|---:|---:|")
    for name in arguments.case or CASES:
        if name == "compilations":
            continue
        make, unit, blocks, times = CASES[name]
        row = found[name] = measure(*make(), blocks, times)
        print(
            f"| {name}, {unit} | {row['headway']:,.1f} | {row['torch']:,.1f} | {row['ratio']:.2f} |",
            flush=True,
        )
    if arguments.case is None or "compilations" in arguments.case:
        found["compilations"] = compilations(60)
        print("{compilations} compilations of the step for {buckets} buckets".format(**found["compilations"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
