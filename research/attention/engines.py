"""One function, ``attend``, and the engines behind it, each with what it can serve written in one table."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.biases import Bias
from research.attention.masks import Causal, Everything, Mask, Present, Tokens
from research.attention.softmax import reference
from research.errors import UserError

EngineName = Literal["auto", "reference", "cudnn"]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a call asks of an engine."""

    mask: Mask
    segments: bool
    explicit_positions: bool
    soft_cap: bool
    bias: bool
    sink: bool
    dropout: bool
    dtype: str
    head_dim: int
    value_dim: int
    backend: str


def _cudnn_lacks(request: Request) -> str | None:
    """Returns what keeps cuDNN's fused attention from serving the request, or None."""
    reasons = {
        f"a GPU (this is {request.backend})": request.backend != "gpu",
        f"bfloat16 or float16 (this is {request.dtype})": request.dtype not in ("bfloat16", "float16"),
        f"a head width that is a multiple of 8 and at most 128 (this is {request.head_dim})": (
            request.head_dim % 8 != 0 or request.head_dim > 128 or request.value_dim != request.head_dim
        ),
        "no attention dropout": request.dropout,
        "no soft cap, score bias or sink": request.soft_cap or request.bias or request.sink,
        f"the mask Causal() or Everything() (this is {request.mask})": (
            request.mask not in (Causal(), Everything())
        ),
        "one document per row, in order, without padding": request.segments or request.explicit_positions,
    }
    return next((need for need, missing in reasons.items() if missing), None)


def _reference_lacks(request: Request) -> str | None:
    """The reference engine serves everything."""
    del request
    return None


LACKS = {"cudnn": _cudnn_lacks, "reference": _reference_lacks}
"""The capability table, fastest first: what keeps each engine from serving a request."""


def choose(engine: EngineName, request: Request) -> str:
    """Returns the engine that serves the request: the one asked for, or for "auto" the first that can.

    What "auto" took, and what the faster engines lacked, is logged once.

    Raises:
      UserError: the engine asked for by name cannot serve it; the message names what it lacks.
    """
    if engine == "auto":
        needs = {name: lacks(request) for name, lacks in LACKS.items()}
        chosen = next(name for name, need in needs.items() if need is None)
        _say(chosen, "".join(f"; {name} needs {need}" for name, need in needs.items() if need is not None))
        return chosen
    if (need := LACKS[engine](request)) is not None:
        raise UserError(f"attention engine {engine!r} needs {need}; 'reference' serves everything")
    return engine


@functools.cache
def _say(chosen: str, why: str) -> None:
    _log.info("attention engine: %s%s", chosen, why)


def attend(
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    v: Float[Array, "batch kv_len kv_heads value_dim"],
    *,
    mask: Mask = Everything(),  # noqa: B008 (frozen)
    q_tokens: Tokens | None = None,
    kv_tokens: Tokens | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: Bias | None = None,
    sink: Float[Array, " heads"] | None = None,
    dropout: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    engine: EngineName = "auto",
) -> Float[Array, "batch q_len heads value_dim"]:
    """Returns scaled dot-product attention of q over k and v, dtype of v.

    Args:
      q: queries.
      k: keys; ``heads`` is a multiple of ``kv_heads``.
      v: values.
      mask: which token may attend to which.
      q_tokens: positions and segments of the queries; None: positions 0, 1, 2 …, one document.
      kv_tokens: those of the keys; None: the same as the queries, whose number must then be equal.
      scale: factor on q k^T; None: head_dim ** -0.5.
      soft_cap: c of c * tanh(scores / c), before bias and mask.
      bias: what is added to the scores, from positions and learned parameters; its arrays get gradients.
      sink: a logit per head that takes its share of the softmax and gives nothing (attention sinks, gpt-oss;
        all 0: the softmax "off by one"). Nothing attends to it: a row that may attend to nothing is still 0.
      dropout: rate at which attention weights are dropped when ``dropout_key`` is given.
      dropout_key: key of the dropout.
      engine: who computes it; "auto" takes the fastest that can serve the request.

    Tokens of segment 0 are padding, whatever the mask: they may hold NaN without harm, nothing attends to
    them, and their rows give 0, with 0 gradient.

    Raises:
      ValueError: shapes do not fit, or q_len != kv_len without explicit tokens.
      UserError: ``engine`` cannot serve the request.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are no multiple of {k.shape[2]} key/value heads")
    if kv_tokens is None and q.shape[1] != k.shape[1] and mask != Everything():
        raise ValueError(f"{q.shape[1]} queries and {k.shape[1]} keys: their positions must be given")
    request = Request(
        mask=mask,
        segments=any(t is not None and t.segments is not None for t in (q_tokens, kv_tokens)),
        explicit_positions=q_tokens is not None or kv_tokens is not None,
        soft_cap=soft_cap is not None,
        bias=bias is not None,
        sink=sink is not None,
        dropout=dropout > 0.0 and dropout_key is not None,
        dtype=str(q.dtype),
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        backend=jax.default_backend(),
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if choose(engine, request) == "cudnn":
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=mask == Causal(), implementation="cudnn"
        )
    q_tokens = Tokens.arange(q.shape[1]) if q_tokens is None else q_tokens
    if kv_tokens is None:
        kv_tokens = q_tokens if q.shape[1] == k.shape[1] else Tokens.arange(k.shape[1])
    q, k, v = blank(q, q_tokens), blank(k, kv_tokens), blank(v, kv_tokens)
    if request.segments:
        mask = mask & Present()
    allowed = None if mask == Everything() else mask(q_tokens, kv_tokens)
    return reference(
        q, k, v, allowed, scale=scale, soft_cap=soft_cap,
        bias=None if bias is None else bias(q_tokens, kv_tokens), sink=sink,
        dropout=dropout, dropout_key=dropout_key,
    )  # fmt: skip


def blank(
    x: Float[Array, "batch length heads dim"], tokens: Tokens
) -> Float[Array, "batch length heads dim"]:
    """Returns x with 0 at padding tokens: 0 * NaN would leak into every row and gradient."""
    if tokens.segments is None:
        return x
    return jnp.where((tokens.segments != 0)[:, :, None, None], x, jnp.zeros((), x.dtype))
