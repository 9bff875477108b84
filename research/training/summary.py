"""What an experiment is and costs, as ``headway show`` prints it, without training or allocating a model."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.training.description import to_json
from research.training.experiment import Experiment
from research.training.paths import path_name
from research.training.program import Functions, functions, mesh_of
from research.training.run_directory import RunDirectory
from research.training.validity import validate


def summary(experiment: Experiment, parts: Functions | None = None) -> dict[str, Any]:
    """Returns description, parameters, FLOPs, shardings and memory, as JSON values.

    Memory is what the compiler assigns to the training step, compiled for the devices that are here.

    Args:
      experiment: the description.
      parts: its functions, on the mesh to show; default: on the experiment's own mesh.

    Raises:
      UserError: the mesh does not fit the devices, or batch, parameters or strategy do not fit the mesh.
    """
    if parts is None:
        mesh = mesh_of(experiment)
        validate(experiment, mesh.shape)
        parts = functions(experiment, mesh)
    tokens = experiment.data.tokens_per_step
    shapes = {name: array.shape for name, array in parts.abstract_batch.items()}
    flops = {
        "full": experiment.model.training_flops(shapes, visible=False),
        "visible": experiment.model.training_flops(shapes, visible=True),
    }
    table = sharding_table(parts.abstract_state.params)
    sizes = {row["path"]: math.prod(row["shape"]) for row in table}
    embeddings = sum(size for path, size in sizes.items() if "embedding" in path)
    return {
        "experiment": to_json(experiment),
        "devices": {"count": parts.mesh.size, "kind": parts.mesh.devices.flat[0].device_kind},
        "mesh": dict(parts.mesh.shape),
        "parameters": {"total": sum(sizes.values()), "without_embeddings": sum(sizes.values()) - embeddings},
        "tokens_per_step": tokens,
        "flops_per_token": {name: value / tokens for name, value in flops.items()},
        "flops_per_step": flops,
        "sharding": table,
        "memory_per_device": memory(parts),
    }


def sharding_table(params: Any) -> list[dict[str, Any]]:
    """Returns path, shape, dtype, PartitionSpec and bytes per device of each (abstract) parameter."""
    return [
        {
            "path": path_name(path),
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "spec": [list(axis) if isinstance(axis, tuple) else axis for axis in leaf.sharding.spec],
            "bytes_per_device": shard_bytes(leaf),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def shard_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of the (abstract) arrays of a tree."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def memory(parts: Functions) -> dict[str, int]:
    """Returns the bytes that the training step needs on each device, by use; it is compiled, not run."""
    state = parts.abstract_state
    compiled = parts.step.lower(state, parts.abstract_batch).compile()  # type: ignore[attr-defined]  # jitted
    analysis = compiled.memory_analysis()
    gradients = shard_bytes(state.params)
    return {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state.optimizer),
        "average": shard_bytes(state.average),
        "batch": shard_bytes(parts.abstract_batch),
        "gradients": gradients,
        "activations_and_other": max(analysis.temp_size_in_bytes - gradients, 0),
        "total": analysis.argument_size_in_bytes + analysis.temp_size_in_bytes,
    }


def run_summary(run: RunDirectory, params: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Returns what a run has reached: step, checkpoints, last metrics, norm and rms of each parameter."""
    last: dict[str, Any] = {}
    for row in run.rows():
        last.update(row)
    norms = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        norm = float(np.linalg.norm(np.asarray(leaf, np.float32).ravel()))
        norms[path_name(path)] = {"norm": norm, "rms": norm / math.sqrt(leaf.size)}
    return {"run": str(run), "step": step, "checkpoints": run.steps(), "metrics": last, "norms": norms}


def text(found: Mapping[str, Any]) -> str:
    """Returns a summary for a reader."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from description_lines(found["experiment"], "")
    devices = found["devices"]
    total, rest = found["parameters"]["total"], found["parameters"]["without_embeddings"]
    yield ""
    yield f"parameters        {total:,} ({rest:,} without embeddings)"
    per_step = found["flops_per_step"]
    yield flops_line(found["flops_per_token"])
    yield (
        f"FLOPs per step    {per_step['full']:.4g} and {per_step['visible']:.4g}, "
        f"for {found['tokens_per_step']:,} tokens"
    )
    axes = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    yield f"mesh              {axes}: {devices['count']} x {devices['kind']}"
    yield ""
    yield from sharding_lines(found["sharding"])
    yield ""
    yield "memory on each device, predicted by compiling the training step for these devices"
    yield from table(
        [(name.replace("_", " "), size(count)) for name, count in found["memory_per_device"].items()]
    )
    if "run" in found:
        yield from _run_lines(found["run"])


def flops_line(per_token: Mapping[str, float]) -> str:
    """Returns the FLOPs of a token, counted both ways."""
    return (
        f"FLOPs per token   {per_token['full']:.4g} with attention counted in full, "
        f"{per_token['visible']:.4g} counting only the keys that a token sees"
    )


def sharding_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what ``sharding_table`` found as aligned lines."""
    yield "sharding of the parameters"
    rows = [("path", "shape", "dtype", "spec", "bytes per device")]
    rows += [
        (
            row["path"],
            " x ".join(map(str, row["shape"])),
            row["dtype"],
            "(" + ", ".join(map(str, row["spec"])) + ")" if any(row["spec"]) else "replicated",
            f"{row['bytes_per_device']:,}",
        )
        for row in found
    ]
    yield from table(rows)


def _run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"run {run['run']}: step {run['step']}, checkpoints {', '.join(map(str, run['checkpoints']))}"
    yield from table([(name, f"{value:.6g}") for name, value in run["metrics"].items()])
    yield ""
    rows = [("parameter", "norm", "root mean square")]
    yield from table(rows + [(p, f"{n['norm']:.5g}", f"{n['rms']:.5g}") for p, n in run["norms"].items()])


def description_lines(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yields a description (as JSON values) as lines, its parts indented."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield f"{indent}{name}: {item['kind']}"
            yield from description_lines(item, indent + "  ")
        elif name != "kind":
            yield f"{indent}{name}: {'none' if item is None else item}"


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yields rows of cells as aligned lines."""
    widths: dict[int, int] = collections.defaultdict(int)
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], len(cell))
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(widths[column]) for column, cell in enumerate(row))).rstrip()


def size(count: int) -> str:
    """Returns a number of bytes in a binary unit."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
