"""Attention on meshes of eight simulated devices against its definition; a process of its own.

Prints JSON: for each case the largest errors of the output and of each gradient, and the collectives of the
compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attention_oracle import dense, softmax_attention
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.attention import Causal, Everything, Mask, Present, SameSegment, Tokens, Window, attend
from research.attention.devices import on_each_device
from research.attention.splash import splash
from research.scale.mesh import AXES

BATCH, LENGTH = 4, 32


@dataclasses.dataclass(frozen=True)
class Case:
    """One call on one mesh."""

    mesh: tuple[int, int, int, int]
    """Devices along data, fsdp, tensor and sequence."""
    mask: Mask
    engine: str = "ring"
    heads: tuple[int, int] = (4, 2)
    places: str = "in order"
    """Or "packed": documents and padding that holds NaN; or "scattered": any positions."""
    sink: bool = False
    soft_cap: float | None = None
    length: int = LENGTH
    head_dim: int = 8


CASES = {
    "causal": Case((1, 1, 1, 8), Causal()),
    "packed, odd heads": Case((2, 1, 2, 2), Causal() & SameSegment(), heads=(6, 3), places="packed"),
    "both ways": Case((1, 2, 1, 4), Everything(), sink=True, soft_cap=2.0),
    "flash": Case((2, 2, 2, 1), Causal() & SameSegment(), "flash", places="packed"),
    "flash by rows": Case((2, 2, 1, 1), Causal(), "flash", heads=(3, 1)),
    "flash by heads": Case((1, 1, 8, 1), Everything(), "flash", heads=(8, 2), sink=True),
    "flash by length": Case((1, 2, 2, 2), Causal(), "flash"),
    "gathered": Case((1, 2, 2, 2), Causal() & SameSegment(), "reference", places="packed"),
    "three devices": Case((1, 1, 1, 3), Causal(), heads=(4, 1), length=30),
    "window": Case((1, 1, 1, 8), Causal() & Window(5), places="scattered"),
    "padding, both ways": Case((1, 1, 4, 2), Everything() & Present(), heads=(4, 1), places="packed"),
    "packed, both ways, sink": Case((1, 1, 2, 4), SameSegment(), places="packed", sink=True),
    "splash": Case(
        (2, 1, 2, 1), Causal() & SameSegment(), "splash", (4, 1), "packed", True, length=128, head_dim=128
    ),
}
FAST = ["causal", "packed, odd heads", "both ways", "flash"]
SLOW = [name for name in CASES if name not in FAST]


def tokens_of(places: str, length: int, rng: np.random.Generator) -> Tokens:
    """Returns positions and documents as the case asks for."""
    if places == "in order":
        return Tokens.arange(length)
    if places == "scattered":
        return Tokens(jnp.asarray(rng.permutation(length)[None], jnp.int32))
    segments, positions = np.zeros((2, BATCH, length), np.int32)
    for row in range(BATCH):
        first, second = np.sort(rng.integers(1, length, 2))
        segments[row, :first], segments[row, first:second] = 1, 2
        positions[row, :first], positions[row, first:second] = np.arange(first), np.arange(second - first)
        positions[row, second:] = np.arange(length - second)
    return Tokens(jnp.asarray(positions), jnp.asarray(segments), in_order=True)


def run(case: Case) -> dict[str, Any]:
    """Returns the errors of a case, and its collectives."""
    rng = np.random.default_rng(3)
    heads, kv_heads = case.heads
    shapes = [(BATCH, case.length, count, case.head_dim) for count in (heads, kv_heads, kv_heads, heads)]
    q, k, v, cotangent = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    sink = rng.normal(size=heads).astype(np.float32) if case.sink else None
    tokens = tokens_of(case.places, case.length, rng)
    allowed = dense(
        case.mask & Present() if tokens.segments is not None else case.mask, tokens, tokens, BATCH
    )
    scale = case.head_dim**-0.5
    want, (*want_qkv, _, want_sink) = softmax_attention(
        q, k, v, allowed, scale=scale, soft_cap=case.soft_cap, sink=sink, cotangent=cotangent
    )
    if tokens.segments is not None:
        padding = np.asarray(tokens.segments)[:, :, None, None] == 0
        q, k, v = (np.where(padding, np.float32(np.nan), x) for x in (q, k, v))
    options: dict[str, Any] = {"mask": case.mask, "scale": scale, "soft_cap": case.soft_cap}
    call = functools.partial(attend, q_tokens=tokens, kv_tokens=tokens, engine=case.engine, **options)
    if case.engine == "splash":  # which a CPU can only interpret
        part = functools.partial(splash, interpret=True, **options)

        def call(q: Any, k: Any, v: Any, sink: Any) -> Any:
            filled = (jnp.where(padding, 0.0, x) for x in (q, k, v))
            return on_each_device(part, *filled, tokens, tokens, sink)

    mesh = jax.make_mesh(
        case.mesh, AXES, (AxisType.Auto,) * 4, devices=jax.devices()[: int(np.prod(case.mesh))]
    )

    def both(q: Any, k: Any, v: Any, sink: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out, pull = jax.vjp(lambda q, k, v, sink: call(q, k, v, sink=sink), q, k, v, sink)
            return out, pull(jnp.asarray(cotangent))

    spread = NamedSharding(mesh, P(("data", "fsdp"), "sequence"))
    placed = [jax.device_put(x, spread) for x in (q, k, v)]
    by_head = None if sink is None else jax.device_put(sink, NamedSharding(mesh, P()))
    compiled = jax.jit(both).lower(*placed, by_head).compile()
    out, (d_q, d_k, d_v, d_sink) = compiled(*placed, by_head)
    pairs = {"out": (out, want), **dict(zip("qkv", zip((d_q, d_k, d_v), want_qkv, strict=True), strict=True))}
    if case.sink:
        pairs["sink"] = (d_sink, want_sink)
    return {
        "errors": {
            name: float(np.abs(np.asarray(a, np.float64) - b).max()) for name, (a, b) in pairs.items()
        },
        "collectives": sorted(
            set(re.findall(r" (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", compiled.as_text()))
        ),
    }


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    json.dump({name: run(CASES[name]) for name in sys.argv[1:]}, sys.stdout)
