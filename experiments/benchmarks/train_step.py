"""The training step beside PyTorch: Hugging Face GPT-2 of the same size under torch.compile, the same batch.

    pip install -e ".[peers]" && python experiments/benchmarks/train_step.py --json train_step.json

Both do forward, backward, clipping and fused AdamW on the same token ids, in alternating blocks of steps in
one process; the table gives medians over blocks and the median of the ratios of neighbouring blocks. The
machine's own matmul rate is measured in the same alternation. `--model gpt2-124m` (bfloat16, batch x 1024) is
for a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data.text import TextData
from research.models.gpt import GPT
from research.scale.costs import matmul_rate, peak_flops
from research.scale.host_memory import keep_freed_memory
from research.training.experiment import Experiment
from research.training.optimizer import AdamW
from research.training.program import functions, place_rows


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a batch, and how often to measure."""

    model: GPT
    batch: int
    blocks: int
    steps: int


CASES = {
    "shakespeare-cpu": Case(
        GPT(vocabulary=66, context=64, layers=4, width=128, heads=4, depth="unroll"),
        batch=12,
        blocks=15,
        steps=20,
    ),
    "shakespeare": Case(
        GPT(vocabulary=66, context=256, layers=6, width=384, heads=6, depth="unroll", dropout=0.2),
        batch=64, blocks=5, steps=1,
    ),
    "gpt2-124m": Case(GPT(dtype="bfloat16", remat="none"), batch=32, blocks=10, steps=10),
}  # fmt: skip


def ours(case: Case, tokens: np.ndarray) -> Callable[[], float]:
    """Returns a function that takes one of our training steps and waits for it."""
    data = TextData(length=case.model.context, batch=case.batch)
    parts = functions(Experiment(name="benchmark", model=case.model, data=data, optimizer=AdamW(1e-3)))
    shape = (case.batch, case.model.context)
    batch = place_rows(
        parts.mesh,
        {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
            "segments": np.ones(shape, np.int32),
            "weights": np.ones(shape, np.float32),
        },
    )
    state = parts.init()

    def step() -> float:
        nonlocal state
        state, metrics = parts.step(state, batch)
        return float(metrics["train/loss"])

    return step


def peer(case: Case, tokens: np.ndarray) -> Callable[[], float]:
    """Returns a function that takes one training step of Hugging Face's GPT-2 and waits for it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = case.model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    dropout = {name: model.dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    config = GPT2Config(
        vocab_size=model.vocabulary, n_positions=model.context, n_embd=model.width, n_layer=model.layers,
        n_head=model.heads, use_cache=False, attn_implementation="sdpa", **dropout,
    )  # fmt: skip
    network = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids = torch.tensor(tokens, dtype=torch.long, device=device)

    @torch.compile
    def loss_of(inputs: Any, targets: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=model.dtype == "bfloat16"):
            logits = network(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(
            logits.float().view(-1, model.vocabulary), targets.reshape(-1)
        )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def measure(name: str) -> dict[str, Any]:
    """Returns the figures of one case."""
    case = CASES[name]
    shape = (case.batch, case.model.context + 1)
    tokens = np.random.default_rng(0).integers(0, 65, shape, dtype=np.int32)
    sides = {"headway": ours(case, tokens), "torch": peer(case, tokens)}
    for step in sides.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks = []
    dtype = case.model.dtype
    for block in range(case.blocks):
        for side in list(sides) if block % 2 else list(sides)[::-1]:
            start = time.perf_counter()
            for _ in range(case.steps):
                sides[side]()
            seconds[side].append((time.perf_counter() - start) / case.steps)
        peaks.append(matmul_rate(repeats=3, dtype=dtype))
    count = case.batch * case.model.context
    flops = {
        convention: count * case.model.training_flops_per_token(case.model.context, visible=visible)
        for convention, visible in (("full", False), ("visible", True))
    }
    peak = peak_flops(jax.devices()[0].device_kind) or statistics.median(peaks)
    ours_s, torch_s = (statistics.median(seconds[side]) for side in ("headway", "torch"))
    return {
        "case": name,
        "batch": case.batch,
        "headway_ms": 1e3 * ours_s,
        "torch_ms": 1e3 * torch_s,
        "headway_tokens_per_second": count / ours_s,
        "torch_tokens_per_second": count / torch_s,
        "ratio": statistics.median(b / a for a, b in zip(seconds["headway"], seconds["torch"], strict=True)),
        "peak_flops": peak,
        "headway_share_of_peak": flops["full"] / ours_s / peak,
        "headway_share_of_peak_causal": flops["visible"] / ours_s / peak,
        "torch_share_of_peak": flops["full"] / torch_s / peak,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CASES, action="append", help="default: both Shakespeare models")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `headway train` does; both sides gain
    rows = [measure(name) for name in arguments.model or ["shakespeare-cpu", "shakespeare"]]
    import torch

    print(f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0].device_kind}")
    print("| case | ours, tokens/s | PyTorch, tokens/s | ratio | share of peak, ours (causal) | PyTorch |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['case']} (batch {row['batch']}) | {row['headway_tokens_per_second']:,.0f} "
            f"| {row['torch_tokens_per_second']:,.0f} | {row['ratio']:.2f} "
            f"| {row['headway_share_of_peak']:.0%} ({row['headway_share_of_peak_causal']:.0%}) "
            f"| {row['torch_share_of_peak']:.0%} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
