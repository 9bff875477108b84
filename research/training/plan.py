"""What an experiment would cost on chips that are not here: its real step, compiled for them."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.scale.chips import Topology, slice_of
from research.scale.collectives import Collective, collectives
from research.training.description import kind
from research.training.experiment import Experiment
from research.training.overrides import override
from research.training.program import Functions, functions
from research.training.summary import flops_line, shard_bytes, sharding_lines, sharding_table, size, table
from research.training.validity import validate

STEPS = ("train", "eval")
"""What can be planned."""


def plan(experiment: Experiment, topology: Topology, step: str = "train") -> dict[str, Any]:
    """Compiles a step of an experiment for a topology and returns what it needs, as JSON values.

    Memory and collectives are the compiler's. FLOPs are counted from the description. The estimate of the
    step time is a roofline: the longest of compute at the vendor's peak, bytes the compiler counts to and
    from memory at the vendor's bandwidth (kernels' own traffic is not in it), and bytes on the wire at the
    interconnect's; the sum of the three is printed too, for a program that overlaps nothing.

    Args:
      experiment: the description; its sharding is what is planned.
      topology: the chips.
      step: "train" or "eval".

    Raises:
      UserError: the mesh does not fit the chips or the experiment, or the step needs too much memory.
    """
    sharding = experiment.sharding
    mesh = topology.mesh(sharding.data, sharding.fsdp, sharding.tensor, sharding.sequence)
    validate(experiment, mesh.shape)
    parts = functions(experiment, mesh)
    started = time.monotonic()
    compiled = _compile(parts, step, topology)
    seconds = time.monotonic() - started
    found = collectives(compiled.as_text(), [slice_of(device) for device in mesh.devices.flat])
    shapes = {name: array.shape for name, array in parts.abstract_batch.items()}
    share = 1.0 if step == "train" else 1 / 3  # forward alone
    flops = {
        name: share * experiment.model.training_flops(shapes, visible=visible)
        for name, visible in (("full", False), ("visible", True))
    }
    return {
        "experiment": experiment.name,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": mesh.size,
        "step": step,
        "mesh": dict(mesh.shape),
        "strategy": sharding.strategy,
        "compile_seconds": seconds,
        "memory_per_device": _memory(parts, compiled, topology, step),
        "collectives": [{**dataclasses.asdict(row), "wire_bytes": row.wire_bytes} for row in found],
        "flops_per_step": flops,
        "flops_per_token": {name: value / experiment.data.tokens_per_step for name, value in flops.items()},
        "estimate": _estimate(compiled, found, flops, topology, mesh.size),
        "sharding": sharding_table(parts.abstract_state.params),
    }


def _compile(parts: Functions, step: str, topology: Topology) -> Any:
    state = parts.abstract_state
    if step == "train":
        lowered = parts.step.lower(state, parts.abstract_batch)  # type: ignore[attr-defined]  # jitted
    else:
        lowered = parts.sums.lower(state.evaluated, parts.abstract_batch)  # type: ignore[attr-defined]
    try:
        return lowered.compile()
    except Exception as error:
        reason = _shortage(str(error))
        if reason is None:
            raise
        raise UserError(
            f"the {step} step does not fit {topology.slices} x {topology.name}: {reason}; take more chips, "
            "--accumulate, --model.remat block, a smaller --data.batch, or another --sharding.strategy"
        ) from error


def _shortage(message: str) -> str | None:
    """Returns what the compiler says of too little memory, with the bytes that are too many."""
    needed = re.search(r"\(([\d.]+)([KMGT])\)? exceeds available HBM \(([\d.]+)([KMGT])\)", message)
    if needed:
        units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        asked = int(float(needed[1]) * units[needed[2]])
        over = asked - int(float(needed[3]) * units[needed[4]])
        return f"{size(asked)} are needed, {size(over)} more than there are ({over:,} bytes)"
    used = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", message)
    return f"it uses {used[1]} of {used[2]}" if used else None


def _memory(parts: Functions, compiled: Any, topology: Topology, step: str) -> dict[str, Any]:
    analysis = compiled.memory_analysis()
    state = parts.abstract_state
    arguments = {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state.optimizer) if step == "train" else 0,
        "average": shard_bytes(state.average) if step == "train" else 0,
        "batch": shard_bytes(parts.abstract_batch),
    }
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    total += (
        analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.generated_code_size_in_bytes
    )
    return {
        **arguments,
        "gradients_activations_and_other": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
        "total": total,
        "share_of_memory": total / topology.chip.memory,
    }


def _estimate(
    compiled: Any, found: list[Collective], flops: Mapping[str, float], topology: Topology, chips: int
) -> dict[str, float]:
    chip = topology.chip
    accessed = compiled.cost_analysis().get("bytes accessed", 0.0)
    inside = sum(row.wire_bytes for row in found if not row.between_slices)
    between = sum(row.wire_bytes for row in found if row.between_slices)
    seconds = {
        "compute": flops["full"] / chips / chip.flops,
        "memory": accessed / chip.memory_bandwidth,
        "inside_slices": inside / chip.interconnect,
        "between_slices": between / chip.hosts,
    }
    longest, total = max(seconds.values()), sum(seconds.values())
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "step_seconds_overlapped": longest,
        "step_seconds_one_after_another": total,
        "mfu_overlapped": seconds["compute"] / longest,
        "mfu_one_after_another": seconds["compute"] / total,
    }


def search(experiment: Experiment, topology: Topology, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Plans strategies x remat policies x micro-batches, and returns those that nothing beats.

    A row is kept if no other needs less memory and less time. What does not fit or does not go together is
    reported and left out.

    Raises:
      UserError: the model has no remat policies.
    """
    if not hasattr(experiment.model, "remat"):
        raise UserError(f"--search varies model.remat, which {kind(type(experiment.model))!r} does not have")
    rows = []
    choices = itertools.product(("fsdp", "replicated"), ("none", "dots", "block"), (1, 4))
    for strategy, remat, accumulate in choices:
        name = f"{strategy}, remat {remat}, {accumulate} micro-batches"
        variant = dataclasses.replace(
            experiment,
            accumulate=accumulate,
            sharding=override(experiment.sharding, {"strategy": strategy}),
            model=override(experiment.model, {"remat": remat}),
        )
        try:
            found = plan(variant, topology)
        except UserError as error:
            report(f"{name}: {error}")
            continue
        row = {
            "strategy": strategy,
            "remat": remat,
            "accumulate": accumulate,
            "bytes": found["memory_per_device"]["total"],
            "seconds": found["estimate"]["step_seconds_one_after_another"],
        }
        report(f"{name}: {size(row['bytes'])}, {row['seconds']:.3f} s")
        rows.append(row)
    return [row for row in rows if not any(_beats(other, row) for other in rows)]


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    pairs = [(one[name], other[name]) for name in ("bytes", "seconds")]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def text(found: Mapping[str, Any]) -> str:
    """Returns a plan for a reader."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    axes = " x ".join(f"{axis} {count}" for axis, count in found["mesh"].items())
    yield (
        f"{found['experiment']}: its {found['step']} step compiles for {found['slices']} x "
        f"{found['topology']} ({found['chips']} chips) in {found['compile_seconds']:.0f} s"
    )
    yield f"mesh              {axes}; strategy {found['strategy']}"
    memory = found["memory_per_device"]
    yield ""
    yield f"memory on each device ({memory['share_of_memory']:.0%} of the chip's)"
    yield from table(
        [(name.replace("_", " "), size(n)) for name, n in memory.items() if name != "share_of_memory"]
    )
    yield ""
    yield "collectives in a step, on each device"
    rows = [("kind", "between", "devices", "count", "payload", "on the wire")]
    rows += [
        (
            row["kind"],
            "slices" if row["between_slices"] else "chips of a slice",
            str(row["devices"]),
            str(row["count"]),
            size(row["bytes"]),
            size(int(row["wire_bytes"])),
        )
        for row in found["collectives"]
    ]
    yield from table(rows)
    estimate = found["estimate"]
    yield ""
    yield flops_line(found["flops_per_token"])
    yield "roofline          " + ", ".join(
        f"{name.replace('_', ' ')} {1e3 * estimate[f'{name}_seconds']:.1f} ms"
        for name in ("compute", "memory", "inside_slices", "between_slices")
    )
    yield (
        f"step              between {1e3 * estimate['step_seconds_overlapped']:.1f} ms (all overlaps: MFU "
        f"{estimate['mfu_overlapped']:.0%}) and {1e3 * estimate['step_seconds_one_after_another']:.1f} ms "
        f"(nothing does: {estimate['mfu_one_after_another']:.0%})"
    )
    yield ""
    yield from sharding_lines(found["sharding"])
