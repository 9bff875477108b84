"""What models of one or more stacks share: mechanisms spread over depth, their costs, and what cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from research.attention.catalogue import Attention
from research.attention.engines import EngineName
from research.attention.mechanisms import Geometry, Mechanism, SlidingWindow
from research.attention.positions import Positions, RelativeBias, Rotary, Sinusoidal, YaRN
from research.modules.block import BlockSpec
from research.modules.feed_forward import GATED


class _Fields(Protocol):
    """Fields that every description of a Transformer has."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int | None: ...
    @property
    def head_dim(self) -> int | None: ...
    @property
    def context(self) -> int: ...
    @property
    def positions(self) -> Positions | None: ...
    @property
    def feed_forward_width(self) -> int | None: ...


class _Described(_Fields, Protocol):
    @property
    def geometry(self) -> Geometry: ...


class Stacked:
    """What descriptions of Transformers derive from the fields that all of them have."""

    @property
    def geometry(self: _Fields) -> Geometry:
        """Sizes of an attention layer."""
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        head_dim = self.width // self.heads if self.head_dim is None else self.head_dim
        return Geometry(self.width, self.heads, kv_heads, head_dim, self.context)

    @property
    def hidden(self: _Fields) -> int:
        """Hidden width of the feed-forward network."""
        return 4 * self.width if self.feed_forward_width is None else self.feed_forward_width


def with_pattern(
    block: BlockSpec, attention: Attention, positions: Positions | None
) -> tuple[BlockSpec, ...]:
    """Returns the repeating group of blocks: ``block`` with each mechanism of the pattern."""
    return tuple(
        dataclasses.replace(
            block,
            attention=dataclasses.replace(
                block.attention,
                mechanism=mechanism,
                positions=_positions_of(mechanism, positions) if positioned else None,
            ),
        )
        for mechanism, positioned in attention.layers()
    )


def _positions_of(mechanism: Mechanism, positions: Positions | None) -> Positions | None:
    """Returns the positional encoding of the layers of a mechanism."""
    if isinstance(positions, Rotary) and positions.local_base is not None:
        base = positions.local_base if isinstance(mechanism, SlidingWindow) else positions.base
        return dataclasses.replace(positions, base=base, local_base=None)
    return positions


def stack_matmul_parameters(specs: tuple[BlockSpec, ...], layers: int) -> int:
    """Returns the number of weights in matrix products of a stack: no biases, no norms."""
    total = 0
    for spec in specs:
        geometry = spec.attention.geometry
        products = 3 if spec.feed_forward in GATED else 2
        total += (
            spec.attention.mechanism.matmul_parameters(geometry) + products * geometry.width * spec.hidden
        )
        if spec.cross_attention is not None:
            total += spec.cross_attention.matmul_parameters(geometry)
    return layers // len(specs) * total


def stack_flops_per_token(specs: tuple[BlockSpec, ...], layers: int, length: int, *, visible: bool) -> float:
    """Returns the forward FLOPs of one token in a stack's self-attention, beyond its weights.

    Args:
      specs: the repeating group of blocks.
      layers: blocks in all.
      length: tokens in a sequence.
      visible: count only the pairs that masks admit.
    """
    per_group = sum(
        spec.attention.mechanism.flops_per_token(
            spec.attention.geometry, length, causal=spec.attention.causal, visible=visible
        )
        for spec in specs
    )
    return layers // len(specs) * per_group


def attention_problems(
    model: _Described, attention: Attention, layers: int, *, causal: bool, field: str = "model.attention"
) -> Iterator[str]:
    """Yields what keeps a model from being built with its heads, positions and attention.

    Args:
      model: the description.
      attention: its attention.
      layers: blocks of the stack.
      causal: whether a token may see only those before it.
      field: the field that says which attention.
    """
    if model.width % model.heads and model.head_dim is None:
        yield (
            f"model.heads {model.heads} does not divide model.width {model.width}; "
            f"{nearest_divisors(model.width, model.heads)}"
        )
        return
    if model.kv_heads is not None and model.heads % model.kv_heads:
        yield (
            f"model.kv_heads {model.kv_heads} does not divide model.heads {model.heads}; "
            f"{nearest_divisors(model.heads, model.kv_heads)}"
        )
        return
    head_dim = model.geometry.head_dim
    if isinstance(model.positions, Rotary) and head_dim % 2:
        yield (
            "model.positions 'rotary' needs an even number of channels per head, and model.width "
            f"{model.width} / model.heads {model.heads} is {head_dim}"
            if model.head_dim is None
            else f"model.positions 'rotary' needs an even model.head_dim, not {head_dim}"
        )
    if isinstance(model.positions, Rotary) and isinstance(model.positions.scaling, YaRN):
        yarn = model.positions.scaling
        if yarn.fast <= yarn.slow:
            yield (
                f"model.positions.scaling.fast {yarn.fast:g} must be above model.positions.scaling.slow "
                f"{yarn.slow:g}: pairs that turn that often are left, those slower are interpolated"
            )
    if isinstance(model.positions, Sinusoidal) and model.width % 2:
        yield f"model.positions 'sinusoidal' needs an even model.width, not {model.width}"
    if isinstance(model.positions, RelativeBias):
        near = model.positions.buckets // (2 if causal else 4)
        if near < 1 or model.positions.max_distance <= near:
            yield (
                f"model.positions 'relative-bias' needs at least {2 if causal else 4} buckets and a "
                f"max_distance above a {'half' if causal else 'quarter'} of them, not "
                f"{model.positions.buckets} and {model.positions.max_distance}"
            )
    period = len(attention.layers())
    if layers % period:
        yield (
            f"{field} repeats every {period} layers, which does not divide the {layers} layers; "
            f"nearest: {max(layers // period, 1) * period} layers"
        )
    yield from named(attention.problems(model.geometry, model.positions, causal=causal), field)


def engine_problems(engine: EngineName, *attentions: Mechanism) -> Iterator[str]:
    """Yields that an engine was asked for by name where no layer has softmax attention for it to compute."""
    mechanisms = [mechanism for attention in attentions for mechanism, _ in attention.layers()]
    if engine != "auto" and not any(mechanism.engines for mechanism in mechanisms):
        names = " and ".join(dict.fromkeys(type(mechanism).__name__ for mechanism in mechanisms))
        yield (
            f"model.engine {engine!r} computes softmax attention, and {names} has none: "
            "it is computed in one way alone; leave model.engine out"
        )


def named(problems: Iterator[str], field: str) -> Iterator[str]:
    """Yields what mechanisms say of "model.attention", as said of the field that describes them."""
    return (problem.replace("model.attention", field) for problem in problems)


def nearest_divisors(whole: int, wanted: int) -> str:
    """Returns "nearest: a or b": the divisors of ``whole`` beside ``wanted``."""
    divisors = [d for d in range(1, whole + 1) if whole % d == 0]
    below = max((d for d in divisors if d < wanted), default=None)
    above = min((d for d in divisors if d > wanted), default=None)
    return "nearest: " + " or ".join(str(d) for d in (below, above) if d is not None)
