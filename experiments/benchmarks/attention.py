"""Attention's time and memory against length, beside PyTorch's `scaled_dot_product_attention`.

    pip install -e ".[peers]"
    python experiments/benchmarks/attention.py --json attention.json --plot attention.png

Everything runs in one process, in alternation; a ratio is the median of the ratios of neighbouring runs,
PyTorch's time over ours. Beside wall time stands the processor time of all threads, which other programs on
the machine disturb less. Memory is the compiler's figure for temporaries. Sparse patterns are compared with
what their blocks predict: shares of the blocks and of the time of attending to everything in the same tiles.

`--topology v5e:2x2` compiles for a TPU that is not here instead (pip install libtpu) and prints the
compiler's temporaries on one device.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.attention import (
    Causal,
    Everything,
    Global,
    Mask,
    RandomBlocks,
    Strided,
    Tokens,
    Window,
    attend,
)
from research.attention.block_map import EMPTY, block_map
from research.attention.flash import flash
from research.attention.tiles import Tiling, tiling_of
from research.scale.host_memory import keep_freed_memory

HEADS, HEAD_DIM = 8, 64
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sparse_patterns(length: int) -> dict[str, Mask]:
    """Returns sparse masks of one length, by name."""
    return {
        "window 256": Causal() & Window(255),
        "longformer": Window(128, 128) | Global(64),
        "bigbird": Window(192, 192) | Global(128) | RandomBlocks(64, 3, length),
        "strided": Strided(math.isqrt(length)),
    }


def entries(length: int, *, causal: bool) -> dict[str, Attention]:
    """Returns what is measured at a length, by name; mechanisms can be added."""
    mask = Causal() if causal else Everything()
    found: dict[str, Attention] = {"flash": functools.partial(attend, mask=mask, engine="flash")}
    if length <= 2048:
        found["reference"] = functools.partial(attend, mask=mask, engine="reference")
    if jax.default_backend() == "gpu":
        found["cudnn"] = functools.partial(attend, mask=mask, engine="cudnn")
    return found


def arrays(batch: int, length: int, dtype: str) -> list[jax.Array]:
    """Returns q, k, v and the cotangent, [batch, length, heads, head_dim]."""
    random = np.random.default_rng(0)
    shape = (batch, length, HEADS, HEAD_DIM)
    return [jnp.asarray(random.normal(size=shape), dtype) for _ in range(4)]


def both_passes(attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> Any:
    """Returns the output and the gradients of q, k and v."""
    out, pull = jax.vjp(attention, q, k, v)
    return out, pull(g)


def compiled(attention: Attention, operands: list[jax.Array], backward: bool) -> Any:
    """Returns the compiled forward pass, or both passes."""
    if backward:
        return jax.jit(functools.partial(both_passes, attention)).lower(*operands).compile()
    return jax.jit(attention).lower(*operands[:3]).compile()


def peer(batch: int, length: int, *, causal: bool, backward: bool) -> Callable[[], None]:
    """Returns a run of PyTorch's attention, in its own layout."""
    import torch

    torch.manual_seed(0)
    q, k, v, g = (torch.randn(batch, HEADS, length, HEAD_DIM) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_(backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        if backward:
            torch.autograd.grad(out, (q, k, v), g)

    return run


def alternate(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, dict[str, list[float]]]:
    """Returns wall and processor seconds of each run, taken in turns for about ``seconds`` in all."""
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in runs}
    for run in runs.values():
        run()
    end, turns = time.perf_counter() + seconds, 0
    while turns < 3 or (time.perf_counter() < end and turns < 30):
        turns += 1
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["cpu"].append(time.process_time() - cpu)
    return found


def measure(batch: int, length: int, *, causal: bool, backward: bool, seconds: float) -> list[dict[str, Any]]:
    """Returns a row for each entry and for PyTorch."""
    operands = arrays(batch, length, "float32")
    programs = {
        name: compiled(attention, operands, backward)
        for name, attention in entries(length, causal=causal).items()
    }
    arguments = operands if backward else operands[:3]
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(lambda f: jax.block_until_ready(f(*arguments)), program)
        for name, program in programs.items()
    }
    runs["torch"] = peer(batch, length, causal=causal, backward=backward)
    taken = alternate(runs, seconds)
    rows = []
    for name, times in taken.items():
        row = {
            "entry": name, "batch": batch, "length": length, "causal": causal, "backward": backward,
            "ms": 1e3 * statistics.median(times["wall"]), "cpu_ms": 1e3 * statistics.median(times["cpu"]),
            "ratio": ratio(taken["torch"]["wall"], times["wall"]),
            "cpu_ratio": ratio(taken["torch"]["cpu"], times["cpu"]),
            "temporary_mib": temporaries(programs[name]) if name in programs else None,
        }  # fmt: skip
        rows.append(row)
    return rows


def measure_sparse(length: int, seconds: float) -> list[dict[str, Any]]:
    """Returns a row for each sparse pattern: its time beside what the number of its blocks predicts."""
    operands = arrays(1, length, "float32")
    tokens = Tokens(np.arange(length, dtype=np.int32)[None])

    def run(mask: Mask, tiling: Tiling) -> Callable[[], Any]:
        attention = functools.partial(
            flash, mask=mask, q_tokens=tokens, kv_tokens=tokens, tiling=tiling, scale=HEAD_DIM**-0.5
        )
        program = compiled(attention, operands, True)
        return lambda: jax.block_until_ready(program(*operands))

    runs, shares, tilings = {}, {}, {}
    for name, mask in sparse_patterns(length).items():
        tiling = tiling_of(mask, 1, length, length, HEADS, HEADS, cpu=jax.default_backend() == "cpu")
        runs[name], tilings[name] = run(mask, tiling), tiling
        kinds = block_map(mask, length, length, tiling.q_block, tiling.kv_block)
        shares[name] = float((kinds != EMPTY).mean())
    for tiling in set(tilings.values()):
        runs[str(tiling)] = run(Everything(), tiling)
    taken = alternate(runs, seconds)
    return [
        {
            "pattern": name, "length": length, "tile": tiling.q_block, "blocks": shares[name],
            "ms": 1e3 * statistics.median(taken[name]["wall"]),
            "time": 1 / ratio(taken[str(tiling)]["wall"], taken[name]["wall"]),
            "cpu_time": 1 / ratio(taken[str(tiling)]["cpu"], taken[name]["cpu"]),
        }
        for name, tiling in tilings.items()
    ]  # fmt: skip


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Returns the median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def temporaries(program: Any) -> float:
    """Returns MiB of temporaries of a compiled program."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def slope(lengths: list[int], values: list[float]) -> float:
    """Returns the exponent of growth: the slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def compile_for(topology: str, length: int) -> list[dict[str, Any]]:
    """Returns temporaries of engines compiled for one device of a TPU slice that need not be here."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("one",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = []
    for size in (length // 2, length):
        shape = jax.ShapeDtypeStruct((1, size, HEADS, HEAD_DIM), jnp.bfloat16, sharding=sharding)
        for engine in ("splash", "flash", "reference"):
            attention = functools.partial(attend, mask=Causal(), engine=engine)
            with jax.set_mesh(mesh):
                program = jax.jit(functools.partial(both_passes, attention)).lower(*[shape] * 4).compile()
            rows.append(
                {"entry": engine, "topology": topology, "length": size, "temporary_mib": temporaries(program)}
            )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes time and memory against length."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5))
    names = dict.fromkeys(row["entry"] for row in rows)
    panels = (("ms", False, "forward"), ("ms", True, "forward + backward"), ("temporary_mib", True, "memory"))
    for axis, (what, backward, title) in zip(axes, panels, strict=True):
        for name in names:
            points = [
                (row["length"], row[what])
                for row in rows
                if row["entry"] == name and row["backward"] is backward and row[what]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="length", ylabel=what, title=title)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints rows as a Markdown table."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()) + " |")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, default=8192, help="tokens in a batch, whose size is 1 to 8")
    parser.add_argument("--bidirectional", action="store_true", help="attend to everything; default: causal")
    parser.add_argument("--seconds", type=float, default=10, help="for each length and pass")
    parser.add_argument("--sparse-lengths", type=int, nargs="*", default=[4096, 8192])
    parser.add_argument("--topology", action="append", help="compile for a TPU slice, such as v5e:2x2")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="PNG of time and memory against length")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    if arguments.topology:
        figures["compiled"] = [row for name in arguments.topology for row in compile_for(name, 8192)]
        print_table(figures["compiled"])
    else:
        keep_freed_memory()
        rows: list[dict[str, Any]] = []
        for length in arguments.lengths:
            for backward in (False, True):
                batch = min(8, max(1, arguments.tokens // length))
                found = measure(
                    batch, length, causal=not arguments.bidirectional, backward=backward,
                    seconds=arguments.seconds,
                )  # fmt: skip
                print_table(found)
                rows += found
        figures["dense"] = rows
        long = [
            r for r in rows if r["entry"] == "flash" and r["backward"] and r["length"] * r["batch"] >= 8192
        ]
        if len(long) > 1:  # memory of one row of the batch
            memory = slope([r["length"] for r in long], [r["temporary_mib"] / r["batch"] for r in long])
            print(f"flash's memory grows with length to the power {memory:.2f}")
        sparse = [
            row for length in arguments.sparse_lengths for row in measure_sparse(length, arguments.seconds)
        ]
        if sparse:
            print_table(sparse)
        figures["sparse"] = sparse
        if arguments.plot:
            plot(rows, arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
