"""A program that is no language model: linear regression by gradient descent. As a script, a process to kill.

It has what a GPT's program has (a sharded state, a donated step, a Grain iterator, an evaluation), no more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
import traceback
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import LostError, StoppedError, UserError
from research.scale import hosts
from research.training import loop, run_directory
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.progress import Display

WIDTH = 64


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "momentum", "ballast", "step", "ok"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    params: dict[str, Any]
    momentum: dict[str, Any]
    ballast: Any
    step: Any
    ok: Any


def example(index: int) -> dict[str, np.ndarray]:
    """One example, a function of its index alone."""
    random = np.random.default_rng(index)
    x = random.normal(size=WIDTH).astype(np.float32)
    return {"x": x, "y": np.float32(x.sum() + random.normal())}


def build(
    devices: int = 1,
    bad_step: int | None = None,
    pause: float = 0.0,
    ballast: int = 1,
    hang: int | None = None,
    record: Path | None = None,
) -> SimpleNamespace:
    """A program over ``devices``; the batch of ``bad_step`` holds a NaN; every batch takes ``pause`` seconds.

    Eight times ``ballast`` floats of noise make the state as large as a test needs; the batch of step
    ``hang`` never comes; ``record`` is a folder for what rows each process trains on.
    """
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    vector = {
        "w": jax.ShapeDtypeStruct((WIDTH,), jnp.float32, sharding=rows),
        "b": _scalar(jnp.float32, whole),
    }
    noise = [jax.ShapeDtypeStruct((ballast,), jnp.float32, sharding=whole)] * 8
    abstract = State(vector, dict(vector), noise, _scalar(jnp.int32, whole), _scalar(jnp.bool_, whole))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def init() -> State:
        filler = [jax.random.normal(jax.random.key(i), (ballast,)) for i in range(8)]
        zeros = {"w": jnp.zeros(WIDTH), "b": jnp.zeros(())}
        return State(zeros, jax.tree.map(jnp.copy, zeros), filler, jnp.int32(0), jnp.bool_(True))

    def loss_of(params: dict[str, Any], batch: dict[str, Any]) -> Any:
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)

    def step(state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        loss, gradient = jax.value_and_grad(loss_of)(state.params, batch)
        ok = state.ok & jnp.isfinite(loss)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state.momentum, gradient)
        params = jax.tree.map(lambda p, m: p - 0.003 * m, state.params, momentum)
        new = State(params, momentum, state.ballast, state.step + 1, ok)
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, dataclasses.replace(state, ok=ok))
        rate = 0.003 * (1.0 + state.step.astype(jnp.float32))
        return new, {"train/loss": loss, "train/learning_rate": rate, "ok": ok}

    def batches() -> grain.DatasetIterator:
        def corrupt(index: int) -> dict[str, np.ndarray]:
            if pause and index % 8 == 0:
                time.sleep(pause)  # stands for the work of a longer step
            if hang and index // 8 == hang - 1:
                time.sleep(600)  # stands for a step that never ends
            found = example(index)
            if bad_step and index // 8 == bad_step - 1:
                found["x"][3] = np.nan
            return found

        return iter(grain.MapDataset.range(10**9).map(corrupt).batch(8).to_iter_dataset(_reads()))

    mean_square = jax.jit(lambda w: jnp.mean((w - 1.0) ** 2))

    def evaluate(state: State) -> dict[str, float]:
        error = float(mean_square(state.params["w"]))
        return {"valid/loss": error, "valid/bits_per_byte": 2 * error}

    def diagnose(state: State, batch: dict[str, Any]) -> str:
        return "batch/x" if bool(jnp.any(jnp.isnan(batch["x"]))) else "params/w"

    return SimpleNamespace(
        mesh=mesh,
        abstract_state=abstract,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        batches=batches,
        place=functools.partial(place, rows, record),
        evaluate=evaluate,
        diagnose=diagnose,
        share=lambda batch: 1.0,
        tokens_per_step=8,
        flops_per_step=100.0,
        flops_per_step_causal=50.0,
    )


def place(sharding: NamedSharding, record: Path | None, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices; writes down which they are, a line for a step."""
    index, count = hosts.share(sharding.mesh, ("data",))
    mine = {name: np.split(rows, count)[index] for name, rows in batch.items()}
    if record:
        with open(record / f"rows-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps([zlib.crc32(row.tobytes()) for row in mine["x"]]) + "\n")
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in mine.items()}


def experiment(
    steps: int = 20, save: int = 5, evaluate: int = 10, log: int = 2, **kept: int | None
) -> Experiment:
    """An experiment of so many steps; the model in it is not used."""
    return Experiment(
        name="regression",
        steps=steps,
        evaluation=Evaluation(every=evaluate),
        checkpointing=Checkpointing(every=save, **kept),
        log_every=log,
    )


def run(path: Path, program: Any, description: Experiment, **options: Any) -> loop.Outcome:
    """Claims the directory and trains, as the command does."""
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with hosts.agreed():
            claimed = run_directory.claim(path, dataclasses.asdict(description), primary=primary)
            directory = stack.enter_context(claimed)
        return loop.train(program, description, directory, **{"display": Display(), **options})


def _scalar(dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=sharding)


def _reads() -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=0)


def complain(error: BaseException) -> int:
    """Says what went wrong and returns the exit code, as the command does."""
    if isinstance(error, (UserError, StoppedError, LostError)):
        print(error, file=sys.stderr)
        return error.exit_code
    traceback.print_exception(error)
    return 1


def main() -> int:
    """Trains in a process of its own and exits as the command does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--save", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=0, help="largest file, in bytes")
    parser.add_argument("--ballast", type=int, default=1)
    parser.add_argument("--rank", type=int, help="index of this process, of two")
    parser.add_argument("--port", type=int)
    parser.add_argument("--hang", type=int, help="step whose batch never comes, in the process of rank 1")
    parser.add_argument(
        "--lag", type=float, default=0.0, help="seconds more a batch takes in the process of rank 1"
    )
    parser.add_argument("--record", type=Path, help="folder for the rows that each process trains on")
    arguments = parser.parse_args()
    if arguments.rank is not None:
        hosts.join(f"localhost:{arguments.port}", 2, arguments.rank)
    elif arguments.devices > 1:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    if arguments.limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.limit, arguments.limit))
    try:
        with hosts.together(complain):
            program = build(
                arguments.devices,
                pause=arguments.pause + (arguments.lag if arguments.rank else 0.0),
                ballast=arguments.ballast,
                hang=arguments.hang if arguments.rank else None,
                record=arguments.record,
            )
            description = experiment(arguments.steps, arguments.save)
            options = {"display": Display(every=0.0), "patience": 12.0 if arguments.hang else None}
            outcome = run(arguments.path, program, description, **options)
            total = float(jnp.sum(outcome.state.params["w"]))
    except (UserError, StoppedError) as error:
        return complain(error)
    print(f"w {total.hex()} steps {outcome.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
