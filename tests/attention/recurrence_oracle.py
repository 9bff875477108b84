"""The recurrence of linear attention, a token at a time in float64 NumPy: the oracle of the chunked engine.

Reads its own notion of documents and padding; what padding holds is never touched.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
    """Outputs, last state, and gradients by name (of q, k, v, log_decay, strength, state)."""

    out: np.ndarray
    state: np.ndarray
    gradients: dict[str, np.ndarray]


def recurrence(q, k, v, log_decay=None, strength=None, segments=None, state=None, cotangents=None):
    """Runs q, k, v [batch, length, heads, dim]; log_decay [heads], [b, l, h] or [b, l, h, key_dim].

    ``cotangents``: those of the output and of the last state, for gradients (else 0).
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, heads, key_dim = q.shape
    given = None if log_decay is None else np.asarray(log_decay, np.float64)
    g = np.zeros((batch, length, heads, key_dim))
    if given is not None:
        g = g + (given[:, None] if given.ndim == 1 else given[..., None] if given.ndim == 3 else given)
    beta = None if strength is None else np.asarray(strength, np.float64)
    segments = np.ones((batch, length), int) if segments is None else np.asarray(segments)
    out = np.zeros((batch, length, heads, v.shape[-1]))
    first = np.zeros((batch, heads, key_dim, v.shape[-1]))
    first = first if state is None else np.asarray(state, np.float64)
    last = np.zeros_like(first)
    grads = {name: np.zeros_like(x) for name, x in (("q", q), ("k", k), ("v", v), ("log_decay", g))}
    grads["strength"], grads["state"] = np.zeros((batch, length, heads)), np.zeros_like(first)
    for b, h in np.ndindex(batch, heads):
        S, document, tape = first[b, h], None, []
        for t in np.flatnonzero(segments[b]):
            fresh = document is not None and segments[b, t] != document
            document = segments[b, t]
            before = np.zeros_like(S) if fresh else S
            decayed = np.exp(g[b, t, h])[:, None] * before
            error = v[b, t, h] - (0.0 if beta is None else decayed.T @ k[b, t, h])
            rate = 1.0 if beta is None else beta[b, t, h]
            S = decayed + rate * np.outer(k[b, t, h], error)
            out[b, t, h] = S.T @ q[b, t, h]
            tape.append((t, fresh, before, decayed, error, rate, S))
        last[b, h] = S
        if cotangents is None:
            continue
        dS = np.asarray(cotangents[1][b, h], np.float64)
        for t, fresh, before, decayed, error, rate, S in reversed(tape):
            do = np.asarray(cotangents[0][b, t, h], np.float64)
            grads["q"][b, t, h] = S @ do
            dS = dS + np.outer(q[b, t, h], do)
            d_written = dS.T @ k[b, t, h]
            grads["k"][b, t, h] = dS @ (rate * error)
            grads["v"][b, t, h] = rate * d_written
            d_decayed = dS
            if beta is not None:
                grads["strength"][b, t, h] = d_written @ error
                grads["k"][b, t, h] -= decayed @ (rate * d_written)
                d_decayed = dS - np.outer(k[b, t, h], rate * d_written)
            decay = np.exp(g[b, t, h])
            grads["log_decay"][b, t, h] = 0.0 if fresh else (d_decayed * before).sum(-1) * decay
            dS = np.zeros_like(dS) if fresh else decay[:, None] * d_decayed
        grads["state"][b, h] = dS
    if given is not None and given.ndim < 4:
        axes = (0, 1, 3) if given.ndim == 1 else (3,)
        grads["log_decay"] = grads["log_decay"].sum(axes)
    return Result(out, last, grads)
