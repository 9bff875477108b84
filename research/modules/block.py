"""Transformer blocks and stacks of them: encoder, decoder, and decoder with cross-attention."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.cache import Slots
from research.attention.masks import Tokens
from research.attention.mechanisms import Mechanism
from research.attention.positions import RelativeBias
from research.modules.attention import AttentionSpec
from research.modules.feed_forward import FeedForward, FeedForwardName
from research.modules.mixers import mixer
from research.modules.norm import Norm, NormName
from research.modules.placement import placed

Remat = Literal["none", "block", "dots"]
_SAVEABLE = jax.checkpoint_policies
POLICIES: dict[str, Any] = {
    "block": None,
    # Attention's output is saved too, by the names that its engines give it: no kernel runs twice.
    "dots": _SAVEABLE.save_from_both_policies(
        _SAVEABLE.dots_with_no_batch_dims_saveable,
        _SAVEABLE.save_only_these_names("attention_out", "attention_lse"),
    ),
}


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What the blocks of a stack share."""

    attention: AttentionSpec
    """Of the self-attention; its bias, dropout and initialisation are the feed-forward network's too."""
    hidden: int
    feed_forward: FeedForwardName = "gelu"
    norm: NormName = "layer"
    norm_bias: bool = True
    norm_epsilon: float = 1e-5
    placement: Literal["pre", "post"] = "pre"
    """"pre": x + f(norm(x)) (GPT-2); "post": norm(x + f(x)) (Vaswani et al., 2017; BERT)."""
    cross_attention: Mechanism | None = None
    """Of a second attention, over a memory, between self-attention and feed-forward; None: there is none."""
    attention_norm: bool = True
    """Whether the self-attention has a norm of its own ("pre": without, it reads x as it is)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a block reads beside the residual stream, the same for every layer."""

    tokens: Tokens | None = None
    memory: Float[Array, "batch memory_length width"] | None = None
    memory_tokens: Tokens | None = None
    slots: Slots | None = None


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, feed-forward; each with a residual and a norm."""

    spec: BlockSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        context: Context,
        cache: Any = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Any]:
        """Returns the block's output and its decoding state, if one was given.

        With cross-attention the state is a pair: that of the self-attention, and what is read of the memory
        (its keys and values, or a sum of them), None before the first call.
        """
        spec, attention = self.spec, self.spec.attention
        pre = spec.placement == "pre"
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))

        def norm(name: str) -> Norm:
            return Norm(spec.norm, spec.norm_bias, spec.norm_epsilon, name=name)

        attention_norm = norm("attention_norm") if spec.attention_norm else _as_it_is
        of_memory = None
        if spec.cross_attention is not None and cache is not None:
            cache, of_memory = cache
        out, cache = mixer(attention, "attention")(
            attention_norm(x) if pre else x,
            context.tokens,
            cache=None if cache is None or context.slots is None else (cache, context.slots),
            key=keys[0],
        )
        x = x + out if pre else attention_norm(x + out)
        if spec.cross_attention is not None:
            cross_norm = norm("cross_attention_norm")
            cross = dataclasses.replace(
                attention, mechanism=spec.cross_attention, causal=False, positions=None
            )
            out, of_memory = mixer(cross, "cross_attention")(
                cross_norm(x) if pre else x,
                context.tokens,
                memory=context.memory,
                memory_tokens=context.memory_tokens,
                projected=of_memory,
                key=keys[1],
            )
            x = x + out if pre else cross_norm(x + out)
            cache = None if cache is None else (cache, of_memory)
        feed_forward_norm = norm("feed_forward_norm")
        out = FeedForward(
            attention.geometry.width, spec.hidden, spec.feed_forward, attention.bias, attention.dropout,
            attention.stddev, attention.output_stddev, name="feed_forward",
        )(feed_forward_norm(x) if pre else x, keys[2])  # fmt: skip
        return (x + out if pre else feed_forward_norm(x + out)), cache


def _by_reference(spec: BlockSpec) -> BlockSpec:
    """Returns the block with the reference engine, which serves everything and has the same parameters."""
    return dataclasses.replace(spec, attention=dataclasses.replace(spec.attention, engine="reference"))


def _as_it_is(x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """Parameters or decoding states of each group of layers, not stacked along an axis."""

    groups: tuple[Any, ...]

    @classmethod
    def of(cls, stacked: Any) -> Apart:
        """Returns the slices of stacked arrays along their first axis."""
        count = len(jax.tree.leaves(stacked)[0])
        return cls(tuple(jax.tree.map(operator.itemgetter(index), stacked) for index in range(count)))


def parameters_apart(params: Any) -> Any:
    """Returns a model's parameters with the blocks of its stacks apart; a stack takes them either way.

    XLA on a CPU copies a layer's slice of a stacked kernel before each product, so that a step of decoding,
    which is bound by memory, takes twice as long.
    """
    return (
        {
            name: Apart.of(value) if name.startswith("blocks") else parameters_apart(value)
            for name, value in params.items()
        }
        if isinstance(params, dict)
        else params
    )


def cache_apart(cache: tuple[tuple[Any, ...], Slots]) -> tuple[tuple[Apart, ...], Slots]:
    """Returns the decoding state of a stack whose parameters are apart."""
    return tuple(Apart.of(layers) for layers in cache[0]), cache[1]


class Stack(nn.Module):
    """Blocks over depth, scanned over or unrolled; those of one kind have their parameters stacked.

    Both forms have the same parameters and give the same results: scanning compiles once whatever the depth,
    unrolling lets XLA fuse across layers, which pays for few layers on a CPU.

    Attributes:
      specs: one group of layers; the stack repeats it. The parameters of its n-th block are "blocks" in a
        group of one and "blocks_n" otherwise, with a leading axis over groups.
      layers: blocks in all, a multiple of the group's.
      depth: how the groups are run through.
      remat: what the backward pass recomputes.
    """

    specs: tuple[BlockSpec, ...]
    layers: int
    depth: Literal["scan", "unroll"] = "scan"
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        context: Context,
        cache: tuple[Any, ...] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], tuple[Any, ...] | None]:
        """Returns the last block's output and the cache, if one was given (see ``empty_cache``)."""
        groups = self.layers // len(self.specs)
        # Parameters are found with one row outside any mesh, which an engine asked for by name may not serve.
        specs = tuple(map(_by_reference, self.specs)) if self.is_initializing() else self.specs
        blocks = [Block(spec, parent=None) for spec in specs]
        params = tuple(
            self._parameters(index, block, groups, x, context) for index, block in enumerate(blocks)
        )
        table = self._shared_table()

        def apply(block: Block, x: Array, *layer: Any) -> tuple[Array, Any]:
            params, cache, key = layer
            if _shares_table(block.spec):
                params = {**params, "attention": {**params["attention"], "relative_bias": table}}
            return block.apply({"params": params}, placed(x), context, cache, key)

        if self.remat != "none":
            checkpoint = {"policy": POLICIES[self.remat], "prevent_cse": self.depth == "unroll"}
            apply = jax.checkpoint(apply, static_argnums=0, **checkpoint)

        def group(x: Array, layers: tuple[Any, ...]) -> tuple[Array, Any]:
            caches = []
            for block, *layer in zip(blocks, *layers, strict=True):
                x, cache = apply(block, x, *layer)
                caches.append(cache)
            return x, tuple(caches)

        none = (None,) * len(blocks)
        keys = none if key is None else tuple(jax.random.split(key, (len(blocks), groups)))
        layers = (params, none if cache is None else cache, keys)
        if isinstance(params[0], Apart):
            x, caches = _one_by_one(group, x, layers, groups)
        else:
            x, caches = jax.lax.scan(group, x, layers, unroll=groups if self.depth == "unroll" else 1)
        return x, None if cache is None else caches

    def _parameters(
        self, index: int, block: Block, groups: int, x: Float[Array, "batch length width"], context: Context
    ) -> Any:
        """Returns the stacked parameters of the ``index``-th block of every group."""

        def initialise(key: Key[Array, ""]) -> Any:
            params = jax.vmap(lambda key: block.init(key, x, context)["params"])(
                jax.random.split(key, groups)
            )
            if _shares_table(block.spec):
                del params["attention"]["relative_bias"]
            return params

        name = "blocks" if len(self.specs) == 1 else f"blocks_{index}"
        # `param` alone would trace the initialisation on every call, to compare shapes.
        return self.param(name, initialise) if self.is_initializing() else self.get_variable("params", name)

    def _shared_table(self) -> Float[Array, "buckets heads"] | None:
        """Returns the table of relative positions that the layers share, if they do."""
        for spec in self.specs:
            if _shares_table(spec):
                assert isinstance(spec.attention.positions, RelativeBias)
                shape = (spec.attention.positions.buckets, spec.attention.geometry.heads)
                normal = nn.initializers.normal(spec.attention.stddev)
                return self.param("relative_bias", normal, shape, jnp.float32)
        return None


def _one_by_one(
    group: Any, x: Array, layers: tuple[Any, ...], groups: int
) -> tuple[Array, tuple[Apart, ...]]:
    """Returns what a scan over groups would, of parts of which some are apart."""
    found = []
    for index in range(groups):
        own = jax.tree.map(
            lambda part: part.groups[index] if isinstance(part, Apart) else part[index],  # noqa: B023
            layers, is_leaf=lambda part: isinstance(part, Apart),
        )  # fmt: skip
        x, states = group(x, own)
        found.append(states)
    return x, tuple(Apart(states) for states in zip(*found, strict=True))


def _shares_table(spec: BlockSpec) -> bool:
    positions = spec.attention.positions
    return isinstance(positions, RelativeBias) and positions.shared


def empty_cache(
    specs: tuple[BlockSpec, ...], layers: int, batch: int, slots: int, dtype: jnp.dtype
) -> tuple[tuple[Any, ...], Slots]:
    """Returns the empty decoding state of a stack, for ``batch`` rows of at most ``slots`` tokens."""
    groups = layers // len(specs)

    def state(spec: BlockSpec) -> Any:
        own = spec.attention.mechanism.state(spec.attention.geometry, batch, slots, dtype)
        return own if spec.cross_attention is None else (own, None)

    states = (state(spec) for spec in specs)
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (groups, *leaf.shape)), tuple(states))
    return stacked, Slots.empty(batch, slots)
