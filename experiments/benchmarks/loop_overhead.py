"""What the training loop costs over the bare jitted step: batches, metrics, progress, event files, transfers.

    python experiments/benchmarks/loop_overhead.py --json loop_overhead.json

One process alternates the bare step (one batch, placed once, dispatched again and again) and `loop.train` on
the text of the standard library, and prints the median of the ratios of neighbouring runs. Evaluation and
saving are left out of both and shown on their own. The model is sized for steps of about 10 ms on two cores;
run it on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from research.data.text import TextData
from research.models.gpt import GPT
from research.training import loop
from research.training.description import to_json
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.program import build
from research.training.progress import Display
from research.training.run_directory import claim

if TYPE_CHECKING:
    from research.training.program import Program

MODEL = GPT(vocabulary=1024, context=64, layers=2, width=96, heads=3, depth="unroll")


def bare(program: Program, steps: int) -> float:
    """Returns milliseconds per step of the jitted step alone."""
    batch = program.place(next(program.batches()))
    state, _ = program.step(program.init(), batch)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = program.step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps * 1e3


def looped(program: Program, experiment: Experiment) -> float:
    """Returns milliseconds per step of the loop, in a run directory of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open(Path(folder) / "progress.txt", "w", encoding="utf-8") as stream,
        claim(Path(folder) / "run", to_json(experiment)) as directory,
    ):
        # A line as often as a terminal would be drawn on.
        outcome = loop.train(program, experiment, directory, display=Display(stream, every=0.25))
    return program.tokens_per_step / outcome.tokens_per_second * 1e3


def saving(program: Program, experiment: Experiment, saves: int) -> tuple[float, float]:
    """Returns seconds that a run gets longer by each save, and the megabytes of a state."""
    seconds = []
    for every in (experiment.steps // saves, experiment.steps):
        one = dataclasses.replace(experiment, checkpointing=Checkpointing(every=every))
        with (
            tempfile.TemporaryDirectory() as folder,
            open(Path(folder) / "progress.txt", "w", encoding="utf-8") as stream,
            claim(Path(folder) / "run", to_json(one)) as directory,
        ):
            seconds.append(loop.train(program, one, directory, display=Display(stream)).seconds)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_state))
    return (seconds[0] - seconds[1]) / (saves - 1), size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps of a run (default 300)")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs (default 9)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    never = 10**9
    experiment = Experiment(
        name="loop-overhead",
        model=MODEL,
        data=TextData(length=MODEL.context, batch=16),
        steps=arguments.steps,
        evaluation=Evaluation(every=never, batches=1),
        checkpointing=Checkpointing(every=never),
    )
    program = build(experiment, experiment.data.prepare(vocabulary=MODEL.vocabulary, report=print))
    bare(program, 20), looped(program, dataclasses.replace(experiment, steps=20))
    pairs = [(bare(program, arguments.steps), looped(program, experiment)) for _ in range(arguments.pairs)]
    seconds, megabytes = saving(program, experiment, saves=6)
    overheads = [with_loop / alone - 1.0 for alone, with_loop in pairs]
    result = {
        "step_ms": statistics.median(alone for alone, _ in pairs),
        "loop_ms": statistics.median(with_loop for _, with_loop in pairs),
        "overhead": statistics.median(overheads),
        "overheads": overheads,
        "save_seconds": seconds,
        "state_megabytes": megabytes,
        "device": jax.devices()[0].device_kind,
    }
    print(f"{'':24}{'ms per step':>14}")
    print(f"{'bare jitted step':24}{result['step_ms']:14.2f}")
    print(f"{'training loop':24}{result['loop_ms']:14.2f}")
    spread = f"{min(overheads):.2%} to {max(overheads):.2%}"
    print(f"overhead {result['overhead']:.2%}, median of {len(pairs)} pairs ({spread})")
    print(f"each save of {megabytes:.1f} MB makes the run {seconds:.2f} s longer")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
