"""Attention by its definition, one row at a time, in float64 NumPy: the oracle of every engine.

Masks are judged pair by pair in plain Python, from their descriptions. Masked pairs are never touched:
what they hold cannot matter.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from research.attention import (
    And,
    BlockMask,
    Causal,
    DilatedWindow,
    Everything,
    Fixed,
    Global,
    Mask,
    Not,
    Or,
    Present,
    RandomBlocks,
    SameSegment,
    Strided,
    Tokens,
    Window,
)


@dataclasses.dataclass(frozen=True)
class Token:
    """One token: its position and its segment (None: there are no segments)."""

    position: int
    segment: int | None


def admits(mask: Mask, query: Token, key: Token) -> bool:
    """Returns whether the mask's description admits the pair."""
    match mask:
        case Everything():
            return True
        case Causal():
            return key.position <= query.position
        case Window(before, after):
            return -before <= key.position - query.position <= after
        case DilatedWindow(before, after, dilation):
            return any(key.position == query.position + dilation * i for i in range(-before, after + 1))
        case Global(first, at):
            return any(token.position < first or token.position in at for token in (query, key))
        case Strided(stride):
            back = query.position - key.position
            return back >= 0 and (back < stride or back % stride == 0)
        case Fixed(stride, summary):
            own = query.position // stride == key.position // stride
            ends = key.position % stride in range(stride - summary, stride)
            return key.position <= query.position and (own or ends)
        case BlockMask(block, rows_of_blocks):
            row = query.position // block
            return row < len(rows_of_blocks) and key.position // block in rows_of_blocks[row]
        case RandomBlocks(block):
            row, column = query.position // block, key.position // block
            return row < len(mask.table) and column < len(mask.table) and bool(mask.table[row, column])
        case SameSegment():
            return query.segment is None or (query.segment == key.segment and query.segment != 0)
        case Present():
            return query.segment != 0 and key.segment != 0
        case And(left, right):
            return admits(left, query, key) and admits(right, query, key)
        case Or(left, right):
            return admits(left, query, key) or admits(right, query, key)
        case Not(inner):
            return not admits(inner, query, key)
    raise TypeError(mask)


def rows(tokens: Tokens, batch: int) -> list[list[Token]]:
    """Returns the tokens of every row of the batch."""
    positions = np.broadcast_to(np.asarray(tokens.positions), (batch, tokens.length))
    if tokens.segments is None:
        return [[Token(int(p), None) for p in row] for row in positions]
    segments = np.broadcast_to(np.asarray(tokens.segments), (batch, tokens.length))
    return [
        [Token(int(p), int(s)) for p, s in zip(*row, strict=True)]
        for row in zip(positions, segments, strict=True)
    ]


def dense(mask: Mask, q: Tokens, kv: Tokens, batch: int) -> np.ndarray:
    """Returns [batch, q_len, kv_len] booleans of the mask alone."""
    pairs = zip(rows(q, batch), rows(kv, batch), strict=True)
    return np.array(
        [[[admits(mask, query, key) for key in keys] for query in queries] for queries, keys in pairs]
    )


def softmax_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    allowed: np.ndarray,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: np.ndarray | None = None,
    sink: np.ndarray | None = None,
    cotangent: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Returns the output and, for its cotangent, the gradients of q, k, v, bias and sink (else 0).

    ``bias`` is [batch, heads, q_len, kv_len], ``sink`` [heads].
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    d_bias, d_sink = np.zeros((q.shape[0], q.shape[2], q.shape[1], k.shape[1])), np.zeros(q.shape[2])
    for b, i, h in np.ndindex(q.shape[:3]):
        keys, kv_head = np.flatnonzero(allowed[b, i]), h // group
        if keys.size == 0:
            continue
        these_k, these_v = k[b, keys, kv_head], v[b, keys, kv_head]
        scores = scale * these_k @ q[b, i, h]
        slope = np.ones_like(scores)
        if soft_cap is not None:
            slope = 1 - np.tanh(scores / soft_cap) ** 2
            scores = soft_cap * np.tanh(scores / soft_cap)
        if bias is not None:
            scores = scores + np.asarray(bias[b, h, i, keys], np.float64)
        away = -np.inf if sink is None else float(sink[h])
        top = max(scores.max(), away)
        weights, lost = np.exp(scores - top), np.exp(away - top)
        total = weights.sum() + lost
        weights, lost = weights / total, lost / total
        out[b, i, h] = weights @ these_v
        if cotangent is None:
            continue
        g = np.asarray(cotangent[b, i, h], np.float64)
        d_weights = these_v @ g
        d_bias[b, h, i, keys] = weights * (d_weights - weights @ d_weights)
        d_sink[h] -= lost * (weights @ d_weights)
        d_scores = scale * slope * d_bias[b, h, i, keys]
        dq[b, i, h] = d_scores @ these_k
        dk[b, keys, kv_head] += np.outer(d_scores, q[b, i, h])
        dv[b, keys, kv_head] += np.outer(weights, g)
    return out, (dq, dk, dv, d_bias, d_sink)
