"""Transformer blocks and stacks of them: encoder, decoder, and decoder with cross-attention."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from research.attention.cache import KeyValues, Slots
from research.attention.masks import Everything, Mask, Tokens
from research.modules.attention import AttentionSpec, MultiHeadAttention
from research.modules.feed_forward import FeedForward, FeedForwardName
from research.modules.norm import Norm, NormName
from research.modules.placement import placed

Remat = Literal["none", "block", "dots"]
POLICIES: dict[str, Any] = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What the blocks of a stack share."""

    attention: AttentionSpec
    hidden: int
    feed_forward: FeedForwardName = "gelu"
    norm: NormName = "layer"
    norm_bias: bool = True
    norm_epsilon: float = 1e-5
    placement: Literal["pre", "post"] = "pre"
    """"pre": x + f(norm(x)) (GPT-2); "post": norm(x + f(x)) (Vaswani et al., 2017; BERT)."""
    mask: Mask = Everything()  # noqa: RUF009 (frozen)
    cross_attention: bool = False
    """A second attention, over a memory, between self-attention and feed-forward."""
    cross_mask: Mask = Everything()  # noqa: RUF009 (frozen)


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
        cache: KeyValues | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], KeyValues | None]:
        """Returns the block's output and its part of the cache, if one was given."""
        spec, attention = self.spec, self.spec.attention
        pre = spec.placement == "pre"
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))

        def norm(name: str) -> Norm:
            return Norm(spec.norm, spec.norm_bias, spec.norm_epsilon, name=name)

        attention_norm = norm("attention_norm")
        out, cache = MultiHeadAttention(attention, spec.mask, name="attention")(
            attention_norm(x) if pre else x,
            context.tokens,
            cache=None if cache is None or context.slots is None else (cache, context.slots),
            key=keys[0],
        )
        x = x + out if pre else attention_norm(x + out)
        if spec.cross_attention:
            cross_norm = norm("cross_attention_norm")
            out, _ = MultiHeadAttention(attention, spec.cross_mask, name="cross_attention")(
                cross_norm(x) if pre else x,
                context.tokens,
                memory=context.memory,
                memory_tokens=context.memory_tokens,
                key=keys[1],
            )
            x = x + out if pre else cross_norm(x + out)
        feed_forward_norm = norm("feed_forward_norm")
        out = FeedForward(
            attention.width, spec.hidden, spec.feed_forward, attention.bias, attention.dropout,
            attention.stddev, attention.output_stddev, name="feed_forward",
        )(feed_forward_norm(x) if pre else x, keys[2])  # fmt: skip
        return (x + out if pre else feed_forward_norm(x + out)), cache


class Stack(nn.Module):
    """``layers`` blocks whose parameters are stacked along a leading axis, scanned over or unrolled.

    Both forms have the same parameters and give the same results: scanning compiles once whatever the depth,
    unrolling lets XLA fuse across layers, which pays for few layers on a CPU.
    """

    spec: BlockSpec
    layers: int
    depth: Literal["scan", "unroll"] = "scan"
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        context: Context,
        cache: KeyValues | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], KeyValues | None]:
        """Returns the last block's output and the cache, if one was given."""
        block = Block(self.spec, parent=None)

        def initialise(key: Key[Array, ""]) -> Any:
            keys = jax.random.split(key, self.layers)
            return jax.vmap(lambda key: block.init(key, x, context)["params"])(keys)

        params = self.param("blocks", initialise)

        def apply(x: Array, layer: Any) -> tuple[Array, KeyValues | None]:
            params, cache, key = layer
            x = placed(x)
            return block.apply({"params": params}, x, context, cache, key)  # type: ignore[return-value]

        if self.remat != "none":
            apply = jax.checkpoint(apply, policy=POLICIES[self.remat], prevent_cse=self.depth == "unroll")
        layers = (params, cache, None if key is None else jax.random.split(key, self.layers))
        return jax.lax.scan(apply, x, layers, unroll=self.layers if self.depth == "unroll" else 1)
