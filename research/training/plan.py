"""What an experiment would cost on chips that are not here: its real step, compiled for them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.inference.sampling import Decoding, sampler
from research.models.gpt import GPT
from research.objectives.causal_lm import CausalLM
from research.scale.chips import Topology
from research.scale.collectives import Collective, collectives
from research.scale.mesh import slice_of
from research.training.description import kind
from research.training.experiment import Experiment
from research.training.overrides import override
from research.training.program import Functions, functions, rows_sharding
from research.training.summary import flops_line, shard_bytes, sharding_lines, sharding_table, size, table
from research.training.validity import validate

STEPS = ("train", "eval", "sample")
"""What can be planned."""


def plan(experiment: Experiment, topology: Topology, step: str = "train") -> dict[str, Any]:
    """Returns what a step of an experiment needs on chips that are not here, as JSON values.

    For TPUs (and simulated devices) the step is compiled: memory and collectives are the compiler's. For GPUs
    memory is added up from the shapes of arrays, and there are no collectives. FLOPs are counted from the
    description. The estimate of the step time is a roofline: the longest of compute at the vendor's peak,
    bytes the compiler counts to and from memory at the vendor's bandwidth (kernels' own traffic is not in
    it), and bytes on the wire at the interconnect's; the sum of the three is printed too, for a program that
    overlaps nothing.

    Args:
      experiment: the description; its sharding is what is planned.
      topology: the chips.
      step: "train", "eval" (the loss of a batch), or "sample" (as many rows as a batch, half of the context
        being given and the other half drawn).

    Raises:
      UserError: the mesh does not fit the chips or the experiment, the step needs too much memory, or there
        is nothing to sample from.
    """
    sharding = experiment.sharding
    mesh = topology.mesh(sharding.data, sharding.fsdp, sharding.tensor, sharding.sequence)
    validate(experiment, mesh.shape)
    parts = functions(experiment, mesh)
    flops, tokens = _flops(experiment, parts, step)
    common = {
        "experiment": experiment.name,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": mesh.size,
        "step": step,
        "mesh": dict(mesh.shape),
        "strategy": sharding.strategy,
        "flops_per_step": flops,
        "flops_per_token": {name: value / tokens for name, value in flops.items()},
        "sharding": sharding_table(parts.abstract_state.params),
    }
    if not topology.compiles:
        return {**common, "compiled": False, **_from_shapes(experiment, parts, topology, step, flops)}
    lowered = _lowered(experiment, parts, step)
    started = time.monotonic()
    compiled = _compile(lowered, topology, step)
    seconds = time.monotonic() - started
    found = collectives(_text(compiled), [slice_of(device) for device in parts.mesh.devices.flat])
    return {
        **common,
        "compiled": True,
        "compile_seconds": seconds,
        "memory_per_device": _memory(parts, compiled, topology, step),
        "collectives": [{**dataclasses.asdict(row), "wire_bytes": row.wire_bytes} for row in found],
        **_estimate(compiled, found, flops, topology, mesh.size),
    }


def _flops(experiment: Experiment, parts: Functions, step: str) -> tuple[dict[str, float], int]:
    """Returns the FLOPs of a step by both counts, and the tokens that it works on."""
    model, tokens = experiment.model, experiment.data.tokens_per_step
    shapes = {name: array.shape for name, array in parts.abstract_batch.items()}
    if step == "sample" and isinstance(model, GPT):
        shapes = {"tokens": (experiment.data.batch, model.context)}
        tokens = experiment.data.batch * model.context
    share = 1.0 if step == "train" else 1 / 3  # forward alone
    both = (("full", False), ("visible", True))
    return {name: share * model.training_flops(shapes, visible=visible) for name, visible in both}, tokens


def _lowered(experiment: Experiment, parts: Functions, step: str) -> Any:
    """Returns the step's program, not compiled yet."""
    state = parts.abstract_state
    if step == "train":
        return parts.step.lower(state, parts.abstract_batch)  # type: ignore[attr-defined]  # jitted
    if step == "eval":
        return parts.sums.lower(state.evaluated, parts.abstract_batch)  # type: ignore[attr-defined]
    model = experiment.model
    if not isinstance(model, GPT) or not isinstance(experiment.objective, CausalLM):
        learned = kind(type(experiment.objective))
        raise UserError(f"--step sample needs objective 'causal-lm'; {experiment.name} learns {learned!r}")
    if parts.mesh.shape["sequence"] > 1:
        raise UserError("--step sample draws a token at a time; take --sharding.sequence 1")
    rows, prompt = experiment.data.batch, model.context // 2
    generate = sampler(
        parts.apply, model.empty_cache, tokens=model.context - prompt, how=Decoding(), stop=(0,)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))

    def split(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows_sharding(parts.mesh, shape))

    whole = NamedSharding(parts.mesh, PartitionSpec())
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    return generate.lower(state.evaluated, split(rows, prompt), split(rows), key)  # type: ignore[attr-defined]


def _compile(lowered: Any, topology: Topology, step: str) -> Any:
    try:
        return lowered.compile()
    except Exception as error:
        reason = _shortage(str(error))
        if reason is None:
            raise
        raise UserError(_does_not_fit(topology, step, reason)) from error


def _text(compiled: Any) -> str:
    """Returns the compiled program as text."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:  # in a form that is newer than this JAX
        raise UserError(
            "the compiler's program cannot be read: libtpu is not the one that this JAX was made with; "
            'pip install -e ".[tpu]"'
        ) from error


def _does_not_fit(topology: Topology, step: str, reason: str) -> str:
    return (
        f"the {step} step does not fit {topology.slices} x {topology.name}: {reason}; take more chips, "
        "--accumulate, --model.remat block, a smaller --data.batch, or another --sharding.strategy"
    )


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


def _arguments(parts: Functions, step: str) -> dict[str, int]:
    """Returns the bytes of a step's arguments on each device."""
    state, train = parts.abstract_state, step == "train"
    return {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state.optimizer) if train else 0,
        "average": shard_bytes(state.average) if train else 0,
        "batch": shard_bytes(parts.abstract_batch) if step != "sample" else 0,
    }


def _memory(parts: Functions, compiled: Any, topology: Topology, step: str) -> dict[str, Any]:
    # The compiler does not refuse all that is too much: of v5p it took 105 GiB.
    analysis = compiled.memory_analysis()
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    total += (
        analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.generated_code_size_in_bytes
    )
    found = {
        **_arguments(parts, step),
        "gradients_activations_and_other": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
        "total": total,
    }
    return found if topology.chip is None else _within(found, topology, step)


def _within(memory: dict[str, Any], topology: Topology, step: str) -> dict[str, Any]:
    """Returns memory with its share of the chip's; raises UserError with the bytes that are too many."""
    chip, total = topology.chip, memory["total"]
    assert chip is not None
    if (over := total - chip.memory) > 0:
        reason = f"{size(total)} are needed, {size(over)} more than there are ({over:,} bytes)"
        raise UserError(_does_not_fit(topology, step, reason))
    return {**memory, "share_of_memory": total / chip.memory}


def _from_shapes(
    experiment: Experiment, parts: Functions, topology: Topology, step: str, flops: Mapping[str, float]
) -> dict[str, Any]:
    """Returns memory as far as shapes tell it, and the time of the arithmetic alone."""
    chip = topology.chip
    assert chip is not None
    if step == "sample":
        raise UserError(
            f"--step sample is planned for TPUs and cpu:N, whose compilers are here, not {chip.name}"
        )
    memory = _arguments(parts, step)
    if step == "train":
        memory["gradients"] = memory["parameters"]
        memory["activations_kept"] = _kept(experiment, parts)
    return {
        "memory_per_device": _within({**memory, "total": sum(memory.values())}, topology, step),
        "estimate": {"compute_seconds": flops["full"] / parts.mesh.size / chip.flops},
    }


def _kept(experiment: Experiment, parts: Functions) -> int:
    """Returns the bytes on a device that a micro-batch's forward pass keeps for the backward pass.

    They are counted whole and divided over the axes that split rows and length; what "tensor" may split
    further is not taken into account, and neither is what either pass needs for a moment.
    """
    batch = {
        name: jax.ShapeDtypeStruct((x.shape[0] // experiment.accumulate, *x.shape[1:]), x.dtype)
        for name, x in parts.abstract_batch.items()
    }

    def kept(params: Any, batch: Any) -> Any:
        return jax.tree.leaves(jax.vjp(lambda params: parts.sums(params, batch)["loss"], params)[1])

    traced = jax.make_jaxpr(kept)(parts.abstract_state.params, batch).jaxpr
    arguments = {id(variable) for variable in traced.invars}
    outs = {id(x): x.aval for x in traced.outvars if id(x) not in arguments and hasattr(x.aval, "shape")}
    split = math.prod(count for axis, count in parts.mesh.shape.items() if axis != "tensor")
    return sum(aval.size * aval.dtype.itemsize for aval in outs.values()) // split


def _estimate(
    compiled: Any, found: list[Collective], flops: Mapping[str, float], topology: Topology, chips: int
) -> dict[str, Any]:
    """Returns the roofline, under the name "estimate"; nothing for chips without figures."""
    chip = topology.chip
    if chip is None:
        return {}
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
        "estimate": {
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "step_seconds_overlapped": longest,
            "step_seconds_one_after_another": total,
            "mfu_overlapped": seconds["compute"] / longest,
            "mfu_one_after_another": seconds["compute"] / total,
        }
    }


def search(experiment: Experiment, topology: Topology, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Plans strategies x remat policies x micro-batches, and returns those that nothing beats.

    A row is kept if no other needs less memory and less time. What does not fit or does not go together is
    reported and left out.

    Raises:
      UserError: the model has no remat policies, or nothing estimates times for the chips.
    """
    if topology.chip is None or not topology.compiles:
        raise UserError(
            f"--search compares times, which are estimated for TPUs only, not for {topology.name}; choose"
            " one, such as --topology v5e:4x4"
        )
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
    where = f"{found['slices']} x {found['topology']} ({found['chips']} chips)"
    if found["compiled"]:
        yield (
            f"{found['experiment']}: its {found['step']} step compiles for {where} in "
            f"{found['compile_seconds']:.0f} s"
        )
    else:
        yield (
            f"{found['experiment']}: its {found['step']} step on {where}, not compiled: memory is what the "
            "shapes of arrays add up to, without what is needed for a moment only"
        )
    yield f"mesh              {axes}; strategy {found['strategy']}"
    memory = dict(found["memory_per_device"])
    share = memory.pop("share_of_memory", None)
    yield ""
    yield "memory on each device" + ("" if share is None else f" ({share:.0%} of the chip's)")
    yield from table([(name.replace("_", " "), size(n)) for name, n in memory.items()])
    yield from _collective_lines(found)
    estimate = found.get("estimate", {})
    yield ""
    yield flops_line(found["flops_per_token"])
    if estimate:
        yield "roofline          " + ", ".join(
            f"{name.replace('_', ' ')} {1e3 * estimate[f'{name}_seconds']:.1f} ms"
            for name in ("compute", "memory", "inside_slices", "between_slices")
            if f"{name}_seconds" in estimate
        )
    if "step_seconds_overlapped" in estimate:
        least, most = (estimate[f"step_seconds_{how}"] for how in ("overlapped", "one_after_another"))
        yield (
            f"step              between {1e3 * least:.1f} ms (all overlaps: MFU "
            f"{estimate['mfu_overlapped']:.0%}) and {1e3 * most:.1f} ms "
            f"(nothing does: {estimate['mfu_one_after_another']:.0%})"
        )
    yield ""
    yield from sharding_lines(found["sharding"])


def _collective_lines(found: Mapping[str, Any]) -> Iterator[str]:
    if "collectives" not in found:
        return
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
