"""Splash attention, JAX's TPU kernel (`jax.experimental.pallas.ops.tpu.splash_attention`), for our masks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.attention.masks import (
    And,
    Causal,
    Everything,
    Mask,
    Present,
    SameSegment,
    Tokens,
    Window,
    conjuncts,
)

LANES = 128
"""Lengths are multiples of it."""


def positional(mask: Mask) -> Mask | None:
    """Returns what the mask says of positions, or None if segments come in otherwise than by SameSegment
    or Present among its conjuncts.
    """
    parts = [part for part in conjuncts(mask) if part not in (SameSegment(), Present())]
    if any(part.documents for part in parts):
        return None
    return functools.reduce(And, parts) if parts else Everything()


def admits_itself(mask: Mask, length: int) -> bool:
    """Returns whether every token may attend to itself: the kernel has no rows without keys."""
    each = Tokens(np.arange(length, dtype=np.int32)[:, None])
    return bool(np.asarray(mask(each, each)).all())


def splash(
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    v: Float[Array, "batch kv_len kv_heads value_dim"],
    *,
    mask: Mask,
    q_tokens: Tokens,
    kv_tokens: Tokens,
    scale: float,
    soft_cap: float | None = None,
    sink: Float[Array, " heads"] | None = None,
    interpret: bool = False,
) -> Float[Array, "batch q_len heads value_dim"]:
    """Returns what `softmax.reference` returns, dtype of v, for a request that splash serves.

    ``interpret`` runs the kernel's program without a TPU, slowly. The kernel's output and log-sum-exp carry
    the name ``attention_out`` for checkpoint policies.
    """
    place = positional(mask)
    assert place is not None
    run: Any = _kernel(place, q.shape[2], q.shape[1], k.shape[1], soft_cap, interpret)
    arrays = [(q * jnp.asarray(scale, q.dtype)).swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)]
    if q_tokens.segments is None and kv_tokens.segments is None:
        out = jax.vmap(functools.partial(run, sinks=sink))(*arrays)
        return out.swapaxes(1, 2).astype(v.dtype)
    within = mask.within_documents
    ids = [jnp.broadcast_to(_documents(t, within), (q.shape[0], t.length)) for t in (q_tokens, kv_tokens)]
    segments = _module().SegmentIds(*ids)
    out = jax.vmap(functools.partial(run, sinks=sink))(*arrays, segments).swapaxes(1, 2)
    if q_tokens.segments is not None:  # padding reads padding: the kernel compares segments, no more
        out = jnp.where((q_tokens.segments != 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
    return out.astype(v.dtype)


def _documents(tokens: Tokens, within: bool) -> Array:
    """Returns the segments of tokens; all real ones are in one if documents may see each other."""
    if tokens.segments is None:
        return jnp.ones((1, tokens.length), jnp.int32)
    segments = jnp.asarray(tokens.segments)
    return segments if within else (segments != 0).astype(jnp.int32)


def _module() -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel


def _block(length: int) -> int:
    """Returns the largest block of at most 512 tokens that divides the length."""
    return max(size for size in (128, 256, 512) if length % size == 0)


def _kernel(mask: Mask, heads: int, q_len: int, kv_len: int, soft_cap: float | None, interpret: bool) -> Any:
    """Returns the kernel for one row of a batch."""
    kernel = _module()
    q_block, kv_block = _block(q_len), _block(kv_len)
    return kernel.make_splash_mha(
        _library_mask(mask, heads, q_len, kv_len),
        block_sizes=kernel.BlockSizes(
            block_q=q_block, block_kv=kv_block,
            block_q_dkv=q_block, block_kv_dkv=kv_block,
            block_q_dq=q_block, block_kv_dq=kv_block,
        ),
        head_shards=1, q_seq_shards=1, attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name="attention_out", interpret=interpret,
    )  # fmt: skip


def _library_mask(mask: Mask, heads: int, q_len: int, kv_len: int) -> Any:
    """Returns the mask in the kernel's terms: its own where it has one, blocks of booleans for the others."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as library

    shape, parts = (q_len, kv_len), conjuncts(mask)
    if not parts:
        return library.MultiHeadMask([library.FullMask(shape)] * heads)
    if all(isinstance(part, Causal | Window) for part in parts):
        before = min((part.before for part in parts if isinstance(part, Window)), default=None)
        after = min(part.after if isinstance(part, Window) else 0 for part in parts)
        return library.MultiHeadMask([library.LocalMask(shape, (before, after), 0)] * heads)

    class Blocks(library.Mask):
        """The mask, evaluated where the kernel's set-up asks for it."""

        shape = (q_len, kv_len)

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            q, kv = (
                Tokens(np.arange(length, dtype=np.int32)[part][None])
                for part, length in zip(index, self.shape, strict=True)
            )
            return np.broadcast_to(np.asarray(mask(q, kv))[0], (q.length, kv.length))

    return library.MultiHeadMask([Blocks()] * heads)
