"""One function, ``attend``, and the engines behind it, each with what it can serve written in one table."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from research.attention.biases import Bias
from research.attention.devices import Split, on_each_device, split_of
from research.attention.flash import flash
from research.attention.masks import Causal, Everything, Mask, Present, Tokens
from research.attention.ring import pieces, ring
from research.attention.softmax import reference
from research.attention.splash import LANES, admits_itself, positional, splash
from research.attention.tiles import tiling_of
from research.errors import UserError

EngineName = Literal["auto", "reference", "flash", "cudnn", "splash", "ring"]
"""Engines that can be asked for; models' descriptions list the same names."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a call asks of an engine."""

    mask: Mask
    ordered: bool
    """Whether tokens stand at positions 0, 1, 2 …, or their indices say as much as their positions."""
    segments: bool
    soft_cap: bool
    bias: bool
    sink: bool
    dropout: bool
    dtype: str
    batch: int
    heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    backend: str
    split: Split = Split()  # noqa: RUF009 (frozen)
    """Over which devices of the mesh in force the call lies."""

    def undivided(self) -> dict[str, bool]:
        """Returns what keeps devices from computing a part each, as {need: whether it is lacking}."""
        rows, heads, unknown = self.split.rows, self.split.heads, self.split.unknown
        return {
            f"mesh axes data, fsdp, tensor and sequence ({unknown} devices lie along others)": unknown > 1,
            f"a batch that divides over {rows} devices (this is {self.batch})": self.batch % rows != 0,
            f"heads that divide over {heads} devices (these are {self.heads})": self.heads % heads != 0,
        }


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
        "one document per row, in order, without padding": request.segments or not request.ordered,
    }
    return next((need for need, missing in reasons.items() if missing), None)


def _splash_lacks(request: Request) -> str | None:
    """Returns what keeps the TPU's splash attention from serving the request, or None."""
    place, length = positional(request.mask), request.split.length
    reasons: dict[str, Callable[[], bool]] = {
        f"a TPU (this is {request.backend})": lambda: request.backend != "tpu",
        f"whole sequences on a device (these lie over {length}; 'ring' serves such)": lambda: length > 1,
        **{need: functools.partial(bool, lacking) for need, lacking in request.undivided().items()},
        f"lengths that are multiples of {LANES} (these are {request.q_len} and {request.kv_len})": (
            lambda: request.q_len % LANES != 0 or request.kv_len % LANES != 0
        ),
        "no attention dropout": lambda: request.dropout,
        "no score bias": lambda: request.bias,
        f"a mask of positions and of SameSegment() or Present() (this is {request.mask})": lambda: (
            place is None
        ),
        "tokens in order (Tokens.in_order)": lambda: not request.ordered and place != Everything(),
        f"a mask by which every token sees itself (this is {request.mask})": lambda: (
            not admits_itself(place or Everything(), request.q_len)
        ),
    }
    return next((need for need, missing in reasons.items() if missing()), None)


def _ring_lacks(request: Request) -> str | None:
    """Returns what keeps ring attention from serving the request, or None."""
    length = request.split.length
    parts = length * pieces(request.mask)
    reasons = {
        f"a mesh whose axis sequence has several devices (here it has {length})": length == 1,
        **request.undivided(),
        f"lengths that divide into {parts} parts (these are {request.q_len} and {request.kv_len})": (
            request.q_len % parts != 0 or request.kv_len % parts != 0
        ),
        "no attention dropout": request.dropout,
        "no score bias": request.bias,
    }
    return next((need for need, missing in reasons.items() if missing), None)


def _serves_everything(request: Request) -> str | None:
    """Flash (reverse mode, once) and the reference serve every request."""
    del request
    return None


LACKS = {
    "ring": _ring_lacks,
    "cudnn": _cudnn_lacks,
    "splash": _splash_lacks,
    "flash": _serves_everything,
    "reference": _serves_everything,
}
"""The capability table, fastest first: what keeps each engine from serving a request."""
LARGE = 2**30
"""Bytes of scores from which on the reference engine's memory is worth saving."""


def flash_pays(request: Request) -> bool:
    """Returns whether "auto" takes flash rather than the reference engine, by measurement.

    On one CPU: above 256 x 256 pairs (experiments/benchmarks/attention.py; up to there recomputing the scores
    costs more than the skipped blocks save). On an accelerator, or over several devices: for memory
    only, a pure-JAX softmax by tiles being slower than the plain one there.
    """
    if request.backend == "cpu" and request.split.devices == 1:
        return request.q_len * request.kv_len > 2**16 and request.q_len > 1
    return 4 * request.batch * request.heads * request.q_len * request.kv_len > LARGE


def choose(engine: EngineName, request: Request) -> str:
    """Returns the engine that serves the request: the one asked for, or for "auto" the first that can.

    What "auto" took, and what the faster engines lacked, is logged once. It takes flash only where it pays.

    Raises:
      UserError: the engine asked for by name cannot serve it; the message names what it lacks.
    """
    if engine == "auto":
        needs = {name: lacks(request) for name, lacks in LACKS.items()}
        if not flash_pays(request):
            needs["flash"] = "more queries or more devices' memory to save"
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

    "reference" alone can be differentiated twice or in forward mode; the others once, in reverse mode.

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
    q_tokens, kv_tokens = _placed(mask, q_tokens, kv_tokens, q.shape[1], k.shape[1])
    backend, split = _where()
    request = Request(
        mask=mask,
        ordered=isinstance(q_tokens.positions, np.ndarray),
        segments=q_tokens.segments is not None or kv_tokens.segments is not None,
        soft_cap=soft_cap is not None,
        bias=bias is not None,
        sink=sink is not None,
        dropout=dropout > 0.0 and dropout_key is not None,
        dtype=str(q.dtype),
        batch=q.shape[0],
        heads=q.shape[2],
        q_len=q.shape[1],
        kv_len=k.shape[1],
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        backend=backend,
        split=split,
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose(engine, request)
    if chosen == "cudnn":
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=mask == Causal(), implementation="cudnn"
        )
    q, k, v = blank(q, q_tokens), blank(k, kv_tokens), blank(v, kv_tokens)
    if request.segments and not mask.within_documents:
        mask = mask & Present()
    if chosen == "splash":
        run = functools.partial(splash, mask=mask, scale=scale, soft_cap=soft_cap)
        return on_each_device(run, q, k, v, q_tokens, kv_tokens, sink)
    if chosen == "ring":
        run = functools.partial(
            ring, mask=mask, scale=scale, soft_cap=soft_cap, devices=split.length, cpu=backend == "cpu"
        )
        return on_each_device(run, q, k, v, q_tokens, kv_tokens, sink)
    if chosen == "flash":
        tiling = tiling_of(
            mask, q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2],
            cpu=backend == "cpu" and split.devices == 1,
        )  # fmt: skip
        return flash(
            q, k, v, mask=mask, q_tokens=q_tokens, kv_tokens=kv_tokens, tiling=tiling, scale=scale,
            soft_cap=soft_cap, bias=bias, sink=sink, dropout=dropout, dropout_key=dropout_key,
        )  # fmt: skip
    q_tokens, kv_tokens = _on_device(q_tokens), _on_device(kv_tokens)
    return reference(
        q, k, v, None if mask == Everything() else mask(q_tokens, kv_tokens), scale=scale,
        soft_cap=soft_cap, bias=None if bias is None else bias(q_tokens, kv_tokens), sink=sink,
        dropout=dropout, dropout_key=dropout_key,
    )  # fmt: skip


def _placed(
    mask: Mask, q_tokens: Tokens | None, kv_tokens: Tokens | None, q_len: int, kv_len: int
) -> tuple[Tokens, Tokens]:
    """Returns the tokens of both sides, positions as NumPy arrays 0, 1, 2 … where they are known to be so.

    Positions may be taken for indices too where documents stand in order and nothing but distances within a
    document counts.
    """
    if q_tokens is None:
        q_tokens = Tokens.arange(q_len)
    itself = kv_tokens is None or kv_tokens is q_tokens
    if kv_tokens is None:
        kv_tokens = q_tokens if q_len == kv_len else Tokens.arange(kv_len)
    in_order = q_tokens.in_order and kv_tokens.in_order
    single = q_tokens.segments is None and kv_tokens.segments is None
    if in_order and (single or (itself and q_len == kv_len and mask.relative and mask.within_documents)):
        places = (np.arange(length, dtype=np.int32)[None] for length in (q_len, kv_len))
        segments = (q_tokens.segments, kv_tokens.segments)
        return tuple(map(Tokens, places, segments))  # type: ignore[return-value]
    return q_tokens, kv_tokens


def _on_device(tokens: Tokens) -> Tokens:
    """Returns the tokens with JAX's arrays."""
    return dataclasses.replace(tokens, positions=jnp.asarray(tokens.positions))


def _where() -> tuple[str, Split]:
    """Returns the platform of the mesh in force, or the default one, and how its devices share the call."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend(), Split()
    platform = mesh.abstract_device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform), split_of(mesh)


def blank(
    x: Float[Array, "batch length heads dim"], tokens: Tokens
) -> Float[Array, "batch length heads dim"]:
    """Returns x with 0 at padding tokens: 0 * NaN would leak into every row and gradient."""
    if tokens.segments is None:
        return x
    return jnp.where((tokens.segments != 0)[:, :, None, None], x, jnp.zeros((), x.dtype))
