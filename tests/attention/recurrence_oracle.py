"""The recurrence of linear attention, a token at a time in float64 NumPy: the oracle of the chunked engine.

Reads its own notion of documents and padding; what padding holds is never touched.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
    """Outputs, last state, and gradients by name (as the arguments)."""

    out: np.ndarray
    state: np.ndarray
    gradients: dict[str, np.ndarray]


def recurrence(
    q, k, v, log_decay=None, strength=None, removed=None, erased=None, segments=None, state=None,
    cotangents=None,
):  # fmt: skip
    """Runs q, k, v [batch, length, heads, dim]; log_decay [heads], [b, l, h] or [b, l, h, key_dim].

    A token writes w v^T and takes away e (S^T r)^T of the decayed state S: r and e are ``removed`` and
    ``erased`` and w is k; or r is k, and e and w are strength * k (the delta rule); or nothing is removed.
    ``cotangents``: those of the output and of the last state, for gradients (else 0).
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, heads, key_dim = q.shape
    given = None if log_decay is None else np.asarray(log_decay, np.float64)
    g = np.zeros((batch, length, heads, key_dim))
    if given is not None:
        g = g + (given[:, None] if given.ndim == 1 else given[..., None] if given.ndim == 3 else given)
    beta = np.ones((batch, length, heads)) if strength is None else np.asarray(strength, np.float64)
    written = beta[..., None] * k
    if strength is not None:
        reads, takes = k, written
    elif removed is not None:
        reads, takes = (np.asarray(x, np.float64) for x in (removed, erased))
    else:
        reads, takes = np.zeros_like(k), np.zeros_like(k)
    segments = np.ones((batch, length), int) if segments is None else np.asarray(segments)
    out = np.zeros((batch, length, heads, v.shape[-1]))
    first = np.zeros((batch, heads, key_dim, v.shape[-1]))
    first = first if state is None else np.asarray(state, np.float64)
    last = np.zeros_like(first)
    names = ("q", "written", "v", "log_decay", "removed", "erased")
    grads = {name: np.zeros_like(v if name == "v" else q) for name in names} | {"state": np.zeros_like(first)}
    for b, h in np.ndindex(batch, heads):
        S, document, tape = first[b, h], None, []
        for t in np.flatnonzero(segments[b]):
            fresh = document is not None and segments[b, t] != document
            document = segments[b, t]
            before = np.zeros_like(S) if fresh else S
            decayed = np.exp(g[b, t, h])[:, None] * before
            found = decayed.T @ reads[b, t, h]
            S = decayed + np.outer(written[b, t, h], v[b, t, h]) - np.outer(takes[b, t, h], found)
            out[b, t, h] = S.T @ q[b, t, h]
            tape.append((t, fresh, before, decayed, found, S))
        last[b, h] = S
        if cotangents is None:
            continue
        dS = np.asarray(cotangents[1][b, h], np.float64)
        for t, fresh, before, decayed, found, S in reversed(tape):
            do = np.asarray(cotangents[0][b, t, h], np.float64)
            grads["q"][b, t, h] = S @ do
            dS = dS + np.outer(q[b, t, h], do)
            grads["written"][b, t, h] = dS @ v[b, t, h]
            grads["v"][b, t, h] = dS.T @ written[b, t, h]
            grads["erased"][b, t, h] = -dS @ found
            d_found = -dS.T @ takes[b, t, h]
            grads["removed"][b, t, h] = decayed @ d_found
            d_decayed = dS + np.outer(reads[b, t, h], d_found)
            decay = np.exp(g[b, t, h])
            grads["log_decay"][b, t, h] = 0.0 if fresh else (d_decayed * before).sum(-1) * decay
            dS = np.zeros_like(dS) if fresh else decay[:, None] * d_decayed
        grads["state"][b, h] = dS
    if given is not None and given.ndim < 4:
        axes = (0, 1, 3) if given.ndim == 1 else (3,)
        grads["log_decay"] = grads["log_decay"].sum(axes)
    grads["k"] = grads["written"]
    if strength is not None:
        by_both = grads["written"] + grads["erased"]
        grads["k"] = beta[..., None] * by_both + grads["removed"]
        grads["strength"] = (k * by_both).sum(-1)
    return Result(out, last, grads)
