"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_OPERATION = re.compile(r"^\s*(?:ROOT\s+)?%?[\w.-]+ = (.*?) ([a-z][a-z-]*)\((.*)$")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
"""Of what is sent to the hosts' runtime: how the TPU compiler writes a collective between slices."""
_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.-]+) \(.*\{\s*$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind between groups of one size, in one step."""

    kind: str
    devices: int
    """Devices of a group."""
    between_slices: bool
    """Whether a group has devices of several slices."""
    count: int
    """Executions in a step."""
    bytes: int
    """Payload of all executions, on one device: the whole array that is gathered, reduced or sent."""

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends, by the usual ring algorithms."""
        share = (self.devices - 1) / self.devices
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(hlo: str, slices: Sequence[int]) -> list[Collective]:
    """Returns the collectives of a compiled program, loops unrolled, largest payload first.

    Args:
      hlo: the text of the compiled module.
      slices: for each device of the program, in order, the slice that it is part of.
    """
    program = _computations(hlo)
    entry = next(re.finditer(r"^ENTRY %?([\w.-]+)", hlo, re.M))[1]
    found: dict[tuple[str, int, bool], list[int]] = {}

    def visit(name: str, times: int) -> None:
        for kind, shapes, rest in program.get(name, ()):
            if sent := _sent(kind, shapes, rest, slices):
                key, size = sent
                entry = found.setdefault(key, [0, 0])
                entry[0] += times
                entry[1] += times * size
            if kind == "while":
                body, condition = (_called(rest, word)[0] for word in ("body", "condition"))
                visit(body, times * _trips(program, condition, rest))
            else:
                for called in _called(rest, "calls|to_apply|branch_computations|(?:true|false)_computation"):
                    visit(called, times)

    visit(entry, 1)
    rows = [Collective(*key, count, size) for key, (count, size) in found.items()]
    return sorted(rows, key=lambda row: -row.bytes)


Operation = tuple[str, str, str]
"""Kind, result type, and what follows the opening parenthesis."""


def _sent(
    kind: str, shapes: str, rest: str, slices: Sequence[int]
) -> tuple[tuple[str, int, bool], int] | None:
    """Returns a collective's kind, group size, whether it is between slices, and payload; else None."""
    base = kind.removesuffix("-start")
    if base in KINDS:
        groups = _groups(rest, len(slices))
        between = any(len({slices[device] for device in group}) > 1 for group in groups)
        size = len(groups[0])
        return (base, size, between), _payload(base, kind != base, shapes, size)
    if kind == "send" and (across := _MEGASCALE.search(rest)):
        base, count = across[1].lower().replace("_", "-"), len(set(slices))
        return (base, count, True), max(_sizes(shapes)) * (count if base == "all-gather" else 1)
    return None


def _computations(hlo: str) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    current: list[Operation] | None = None
    for line in hlo.splitlines():
        if opened := _COMPUTATION.match(line):
            current = found.setdefault(opened[1], [])
        elif current is not None and (operation := _OPERATION.match(line)):
            current.append((operation[2], operation[1], operation[3]))
    return found


def _called(rest: str, words: str) -> list[str]:
    """Returns the computations that an operation calls under one of the attributes ``words``."""
    names = []
    for match in re.finditer(rf"\b(?:{words})=(\{{[^}}]*\}}|%?[\w.-]+)", rest):
        names += re.findall(r"[\w.-]+", match[1])
    return names


def _trips(program: dict[str, list[Operation]], condition: str, rest: str) -> int:
    """Returns how often a loop runs: as the compiler noted, or the bound that its condition compares with."""
    if noted := re.search(r'known_trip_count"?:\{"n":"(\d+)"\}', rest):
        return int(noted[1])

    def constants(name: str) -> Iterator[int]:
        for kind, shape, arguments in program.get(name, ()):
            if kind == "constant" and shape.startswith("s32[]"):
                yield int(re.match(r"-?\d+", arguments)[0])  # type: ignore[index]
            for called in _called(arguments, "calls"):
                yield from constants(called)

    return max(constants(condition), default=1)


def _payload(kind: str, asynchronous: bool, shapes: str, devices: int) -> int:
    """Returns the bytes of the whole array on one device, from an operation's result type."""
    sizes = _sizes(shapes)
    if asynchronous and kind != "all-reduce":  # (operands, results, and semaphores)
        sizes = [max(sizes)]
    return sum(sizes) * (devices if kind == "reduce-scatter" else 1)


def _sizes(shapes: str) -> list[int]:
    """Returns the bytes of each array of a result type."""
    return [
        math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) // 8
        for dtype, dims in _SHAPE.findall(shapes)
    ]


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 0


def _groups(rest: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices that an operation works between."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return [[int(n) for n in re.findall(r"\d+", pair)] for pair in re.findall(r"\{[^}]*\}", pairs[1])]
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return [[int(n) for n in re.findall(r"\d+", group)] for group in re.findall(r"\{[^}]*\}", listed[1])]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source, order = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        numbers = numbers.transpose(order) if order else numbers
        return numbers.reshape(shape[0], -1).tolist()
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        split = [list(axes).index(name) for name in re.findall(r"'([^']+)'", mesh[2])]
        numbers = np.moveaxis(
            np.arange(math.prod(axes.values())).reshape([*axes.values()]), split, range(-len(split), 0)
        )
        width = functools.reduce(lambda total, axis: total * list(axes.values())[axis], split, 1)
        return numbers.reshape(-1, width).tolist()
    return [list(range(devices))]
