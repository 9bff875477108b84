"""Greedy sampling beside `generate` of `transformers`: tokens per second, from the same weights.

    python experiments/benchmarks/sampling.py --model gpt2-124m --json sampling.json

Needs the extra "peers". A checkpoint of random weights is written by `transformers` and imported. Both
continue the same prompts of 32 tokens, by turns in one process, after a call each that compiles; prompts are
read within the time. `generate` has its key/value cache; both compute in float32. Medians over the rounds, of
ratios too. A step reads every weight once, however few the rows: "bound" is the rate at which the weights in
products could be read, by the fastest product of a row and a matrix of 256 MiB seen between the rounds. The
share of peak is of the machine's own matrix product. "8-bit" has the blocks' matrices as 8-bit integers. Run
it on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import interchange
import jax
import jax.numpy as jnp
import numpy as np

import research
from research.inference.sampling import Decoding, sample
from research.scale.costs import matmul_rate
from research.training.eight_bit import quantized

PROMPT = 32


def reading_rate(repeats: int = 5) -> float:
    """Returns bytes per second of the product of a row and a matrix, which is read once (the best)."""
    row, matrix = jnp.ones((1, 4096)), jnp.ones((4096, 16384))
    product = jax.jit(jnp.matmul)
    product(row, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        product(row, matrix).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return matrix.nbytes / min(seconds)


def measure(place: Path, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Returns the figures of one batch size."""
    import torch
    import transformers

    run = research.load(place / "run")
    model = run.model
    peer = transformers.GPT2LMHeadModel.from_pretrained(place / "checkpoint", dtype=torch.float32).eval()
    prompts = np.random.default_rng(0).integers(1, model.vocabulary, (batch, PROMPT))

    codes = jax.block_until_ready(jax.jit(quantized)(run.params))

    def ours(params: Any = run.params) -> list[list[int]]:
        return sample(model, params, prompts.tolist(), tokens=tokens, how=Decoding(temperature=0.0))

    def eight_bit() -> list[list[int]]:
        return ours(codes)

    def theirs() -> list[list[int]]:
        with torch.no_grad():
            return peer.generate(
                torch.from_numpy(prompts), attention_mask=torch.ones(batch, PROMPT, dtype=torch.long),
                max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0,
            )[:, PROMPT:].tolist()  # fmt: skip

    same = ours() == theirs()
    eight_bit()
    draws = {"headway": ours, "transformers": theirs, "eight_bit": eight_bit}
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    reading, peaks = [], []
    for index in range(rounds):
        for name in list(draws) if index % 2 else list(draws)[::-1]:
            begin = time.perf_counter()
            draws[name]()
            seconds[name].append(time.perf_counter() - begin)
        reading.append(reading_rate())
        peaks.append(matmul_rate(repeats=2))
    rates = {name: batch * tokens / statistics.median(times) for name, times in seconds.items()}
    ratios, of_codes = (
        [b / a for a, b in zip(seconds[name], seconds["transformers"], strict=True)]
        for name in ("headway", "eight_bit")
    )
    weights = 4 * model.matmul_parameters()
    return {
        "batch": batch,
        "tokens": tokens,
        **rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "eight_bit_ratio": statistics.median(of_codes),
        "same_tokens": same,
        "bytes_per_second": max(reading),
        "bound": batch * max(reading) / weights,
        "share_of_peak": 2 * model.matmul_parameters() * rates["headway"] / max(peaks),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=interchange.MODELS, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--place", type=Path, help="directory to keep the checkpoint and the run in")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = options.place or Path(name)
        if not (place / "run").exists():
            interchange.prepare(options.model, place)
        print(
            "| batch | Headway, tokens/s | generate | ratio | bound | share of peak | same tokens | 8-bit | |"
        )
        print("|---:|---:|---:|---:|---:|---:|---|---:|---:|")
        rows = []
        for batch in options.batch:
            row = measure(place, batch, options.tokens, options.rounds)
            rows.append(row)
            print(
                f"| {row['batch']} | {row['headway']:.1f} | {row['transformers']:.1f} | {row['ratio']:.2f} "
                f"| {row['bound']:.1f} | {row['share_of_peak']:.0%} | {row['same_tokens']} "
                f"| {row['eight_bit']:.1f} | {row['eight_bit_ratio']:.2f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
