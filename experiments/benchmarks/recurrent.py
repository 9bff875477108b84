"""Linear and recurrent attention: time and memory against length, for every mechanism of the family.

    python experiments/benchmarks/recurrent.py --json recurrent.json

One layer's mixing alone (what stands between the projections), beside full attention, on the default device.
The slope is that of log time against log length from 2,048 tokens up: 1 is linear, 2 quadratic. Mechanisms
alternate within each round, and the least time of the rounds counts; temporary memory is the compiler's. The
features are those of the papers, of heads of 64 channels.

Measured on two cores shared with other work, hence in seconds of processor time (jax 0.10.2, forward, batch
1, 4 heads; 2,048 / 4,096 / 8,192 tokens, milliseconds): retention 8 / 19 / 37, mamba2 13 / 22 / 51, gla 16
/ 28 / 61, gated-delta-net 20 / 35 / 78, kimi-delta 27 / 49 / 108, linear-transformer 13 / 21 / 47: slopes
of 0.92 to 1.10; of temporary memory 0.99 to 1.00.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.attention.engines import attend
from research.attention.features import elu_plus_one, favor_key, favor_query, fixed_directions, taylor
from research.attention.masks import Causal
from research.attention.recurrent import recurrent
from research.scale.host_memory import keep_freed_memory

HEAD_DIM = 64
Arrays = dict[str, jax.Array]


def inputs(batch: int, length: int, heads: int) -> Arrays:
    """Returns queries, keys of unit length, values, decays and strengths."""
    rng = np.random.default_rng(0)

    def normal(*dims: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(batch, length, heads, *dims)), jnp.float32)

    k = normal(HEAD_DIM)
    return {
        "q": normal(HEAD_DIM) / 8,
        "k": k / jnp.linalg.norm(k, axis=-1, keepdims=True),
        "v": normal(HEAD_DIM),
        "scalar": -0.1 * jnp.abs(normal()),
        "vector": -0.1 * jnp.abs(normal(HEAD_DIM)),
        "strength": jax.nn.sigmoid(normal()),
    }


def normalised(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns normalised kernel attention over features."""
    out = recurrent(q, k, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1))[0]
    return out[..., :-1] / out[..., -1:]


def mixing(decay: str | None, delta: bool, dim: int) -> Callable[[Arrays], jax.Array]:
    """Returns the recurrence of a mechanism with keys of ``dim`` channels."""

    def run(x: Arrays) -> jax.Array:
        log_decay = None if decay is None else x[decay][..., :dim] if decay == "vector" else x[decay]
        strength = x["strength"] if delta else None
        return recurrent(
            x["q"][..., :dim], x["k"][..., :dim], x["v"], log_decay=log_decay, strength=strength
        )[0]

    return run


def performer(x: Arrays) -> jax.Array:
    """Returns Performer attention with 266 random features."""
    directions = jnp.asarray(fixed_directions(HEAD_DIM, 266, seed=0))
    return normalised(favor_query(x["q"], directions), favor_key(x["k"], directions), x["v"])


CASES: dict[str, Callable[[Arrays], jax.Array]] = {
    "softmax": lambda x: attend(x["q"], x["k"], x["v"], mask=Causal()),
    "linear-transformer": lambda x: normalised(elu_plus_one(x["q"]), elu_plus_one(x["k"]), x["v"]),
    "performer": performer,
    "based": lambda x: normalised(taylor(x["q"][..., :16]), taylor(x["k"][..., :16]), x["v"]),
    "retention": lambda x: mixing("scalar", False, 32)(x | {"scalar": x["scalar"][0, 0]}),
    "mamba2": mixing("scalar", False, 64),
    "gla": mixing("vector", False, 32),
    "delta-net": mixing(None, True, 64),
    "gated-delta-net": mixing("scalar", True, 32),
    "kimi-delta": mixing("vector", True, 32),
}


def compiled(run: Callable[[Arrays], jax.Array], x: Arrays, backward: bool) -> tuple[Any, int]:
    """Returns the compiled function and the bytes of its temporaries."""
    function = run if not backward else jax.grad(lambda x: run(x).sum())
    program = jax.jit(function).lower(x).compile()
    memory = program.memory_analysis()
    return program, 0 if memory is None else memory.temp_size_in_bytes


def slope(lengths: list[int], values: list[float]) -> float | None:
    """Returns the exponent of growth from 2,048 tokens up."""
    points = [(n, value) for n, value in zip(lengths, values, strict=True) if n >= 2048]
    if len(points) < 2:
        return None
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row per mechanism."""
    rows = {name: {"mechanism": name, "seconds": [], "bytes": []} for name in arguments.mechanism or CASES}
    for length in arguments.lengths:
        x = inputs(arguments.batch, length, arguments.heads)
        programs = {}
        for name, row in rows.items():
            if name == "softmax" and length > arguments.longest_softmax:
                continue
            programs[name], size = compiled(CASES[name], x, arguments.backward)
            row["bytes"].append(size)
            jax.block_until_ready(programs[name](x))
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(arguments.rounds):
            for name, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program(x))
                seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            rows[name]["seconds"].append(min(times))
    for row in rows.values():
        row["lengths"] = arguments.lengths[: len(row["seconds"])]
        row["time_slope"] = slope(row["lengths"], row["seconds"])
        row["memory_slope"] = slope(row["lengths"], row["bytes"])
    return list(rows.values())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mechanism", choices=CASES, action="append", help="default: all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 4096, 8192, 16_384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest-softmax", type=int, default=8192)
    parser.add_argument("--backward", action="store_true", help="time the gradient instead of the output")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    arguments.lengths.sort()
    keep_freed_memory()  # as training does; the slope would else be that of page faults
    rows = measure(arguments)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; milliseconds, batch {arguments.batch},")
    print(f"{arguments.heads} heads of {HEAD_DIM}, {'gradient' if arguments.backward else 'forward'}")
    print(
        "| mechanism | " + " | ".join(f"{n:,}" for n in arguments.lengths) + " | slope of time | of memory |"
    )
    print("|---|" + "---:|" * (len(arguments.lengths) + 2))
    for row in rows:
        cells = [f"{1e3 * seconds:.1f}" for seconds in row["seconds"]]
        cells += [""] * (len(arguments.lengths) - len(cells))
        cells += ["" if s is None else f"{s:.2f}" for s in (row["time_slope"], row["memory_slope"])]
        print(f"| {row['mechanism']} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
