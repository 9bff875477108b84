"""BERT's pre-training step beside PyTorch: Hugging Face BERT of the same size under torch.compile.

    pip install -e ".[peers]" && python experiments/benchmarks/bert_step.py --json bert_step.json

Both do forward, backward, clipping and fused AdamW on the same rows of 128 tokens with the same gaps (15 %),
in alternating blocks of steps in one process; the figures are medians over blocks, ratios medians of the
ratios of neighbouring blocks. Two more figures show what the step's own means are worth: our step without
gathering the gaps before the output projection (as Hugging Face's is), and packing: real tokens of the
quickstart's text, their share and how many a second, in packed rows and with one piece to a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from research.data.masked_text import MaskedText
from research.data.masking import Draws, Kinds, Masking, mask
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM
from research.scale.host_memory import keep_freed_memory
from research.training.experiment import Experiment
from research.training.optimizer import AdamW
from research.training.program import functions, place_rows

LENGTH = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a batch, and how often to measure."""

    model: BERT
    batch: int
    blocks: int
    steps: int


CASES = {
    "small": Case(
        BERT(vocabulary=8192, context=LENGTH, layers=4, width=256, heads=4, depth="unroll", dropout=0.0),
        batch=16, blocks=7, steps=2,
    ),
    "base": Case(BERT(context=LENGTH, dropout=0.0, depth="unroll"), batch=8, blocks=3, steps=1),
    "base-gpu": Case(BERT(context=LENGTH, dropout=0.0, dtype="bfloat16"), batch=256, blocks=7, steps=5),
}  # fmt: skip


def rows(case: Case) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens with gaps."""
    random = np.random.default_rng(0)
    shape, vocabulary = (case.batch, LENGTH), case.model.vocabulary
    tokens = random.integers(5, vocabulary, shape, dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    special = np.arange(vocabulary) < 5
    how = Masking()
    draws = Draws.of(random, case.batch, LENGTH, how.most(LENGTH))
    found = mask(tokens, how, Kinds(4, special, np.zeros(vocabulary, bool)), draws)
    return {
        "tokens": found.tokens,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (case.batch, 1)),
        "segments": np.ones(shape, np.int32),
        "selected": found.selected,
        "targets": found.targets,
        "weights": found.weights,
    }


def everywhere(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the batch with every place selected, the gaps alone having weight."""
    shape = batch["tokens"].shape
    targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    row, column = np.nonzero(batch["weights"])
    at = batch["selected"][row, column]
    targets[row, at], weights[row, at] = batch["targets"][row, column], 1.0
    selected = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    return {**batch, "selected": selected, "targets": targets, "weights": weights}


def ours(case: Case, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """Returns a function that takes one of our training steps and waits for it."""
    data = MaskedText(length=LENGTH, batch=case.batch)
    experiment = Experiment(
        name="benchmark", model=case.model, data=data, objective=MaskedLM(), optimizer=AdamW(1e-4)
    )
    parts = functions(experiment)
    placed = place_rows(parts.mesh, batch)
    state = parts.init()

    def step() -> float:
        nonlocal state
        state, metrics = parts.step(state, placed)
        return float(metrics["train/loss"])

    return step


def peer(case: Case, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """Returns a function that takes one training step of Hugging Face's BERT and waits for it."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    model = case.model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    config = BertConfig(
        vocab_size=model.vocabulary, max_position_embeddings=model.context, hidden_size=model.width,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, intermediate_size=model.hidden,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    network = BertForMaskedLM(config).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    full = everywhere(batch)
    labels = np.where(full["weights"] > 0, full["targets"], -100)
    tokens, targets = (
        torch.tensor(array, dtype=torch.long, device=device) for array in (batch["tokens"], labels)
    )

    @torch.compile
    def loss_of(tokens: Any, targets: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=model.dtype == "bfloat16"):
            return network(input_ids=tokens, labels=targets).loss

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def alternating(sides: dict[str, Callable[[], float]], case: Case) -> dict[str, list[float]]:
    """Returns seconds of a step of each side, one figure a block, the sides by turns."""
    for step in sides.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for block in range(case.blocks):
        for side in list(sides) if block % 2 else list(sides)[::-1]:
            start = time.perf_counter()
            for _ in range(case.steps):
                sides[side]()
            seconds[side].append((time.perf_counter() - start) / case.steps)
    return seconds


def measure(name: str) -> dict[str, Any]:
    """Returns the figures of one case."""
    case = CASES[name]
    batch = rows(case)
    sides = {
        "headway": ours(case, batch),
        "headway, all places": ours(case, everywhere(batch)),
        "torch": peer(case, batch),
    }
    seconds = alternating(sides, case)
    own = seconds["headway"]
    return {
        "case": name,
        "batch": case.batch,
        "tokens_per_second": {
            side: case.batch * LENGTH / statistics.median(times) for side, times in seconds.items()
        },
        "ratio_to_torch": statistics.median(b / a for a, b in zip(own, seconds["torch"], strict=True)),
        "gain_of_gathering": statistics.median(
            b / a for a, b in zip(own, seconds["headway, all places"], strict=True)
        ),
    }


def packing(pieces: Literal["documents", "sentences"]) -> dict[str, Any]:
    """Returns what packing is worth on the quickstart's text: shares of real tokens, and of them a second.

    Our step of the small model, on its first batch of packed rows and of rows with one piece each.
    """
    case = CASES["small"]
    fill: dict[str, float] = {}
    real: dict[str, int] = {}
    steps: dict[str, Callable[[], float]] = {}
    for name, packed in (("packed", True), ("one piece to a row", False)):
        data = MaskedText(
            source="python-prose", length=LENGTH, batch=case.batch, packed=packed, pieces=pieces
        )
        prepared = data.prepare(vocabulary=case.model.vocabulary)
        batch = next(iter(prepared.train_batches(seed=0, process_index=0, process_count=1)))
        fill[name] = prepared.train.fill  # type: ignore[union-attr]  # rows, not pairs
        real[name], steps[name] = int((batch["segments"] > 0).sum()), ours(case, batch)
    seconds = alternating(steps, case)
    rates = {name: real[name] / statistics.median(times) for name, times in seconds.items()}
    return {"pieces": pieces, "real_share": fill, "real_tokens_per_second": rates}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CASES, action="append", help="default: small and base")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    keep_freed_memory()  # as `headway train` does; both sides gain
    found: dict[str, Any] = {"packing": [packing("documents"), packing("sentences")], "cases": []}
    for row in found["packing"]:
        for name, rate in row["real_tokens_per_second"].items():
            share = f"{row['real_share'][name]:.1%} of the tokens are real"
            print(f"{row['pieces']}, {name}: {share}, {rate:,.0f} of them a second")
    for name in arguments.model or ["small", "base"]:
        row = measure(name)
        found["cases"].append(row)
        for side, rate in row["tokens_per_second"].items():
            print(f"{name}: {side}: {rate:,.0f} tokens/s")
        print(f"{name}: {row['ratio_to_torch']:.2f} x PyTorch; gathering {row['gain_of_gathering']:.2f} x")
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
