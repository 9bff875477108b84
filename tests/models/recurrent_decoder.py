"""The decoder of Luong et al. (2015) in NumPy, float64: one sentence, one token at a time."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, hidden, memory, cell):
    i, f, g, o = np.split(x @ cell["kernel"] + hidden @ cell["recurrent"] + cell["bias"], 4)
    memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(memory), memory


def score(how, p, hidden, value, received):
    """How well a decoder state goes with an encoder state (section 3.1; additive: Bahdanau et al., 2015)."""
    if how.score == "dot":
        return hidden @ value
    if how.score == "general":
        return hidden @ p["state_projection"]["kernel"] @ value
    if how.score == "concat":
        both = np.concatenate([p["state_projection"]["kernel"], p["source_projection"]["kernel"]])
        return p["score_vector"] @ np.tanh(np.concatenate([hidden, value]) @ both)
    inside = hidden @ p["state_projection"]["kernel"] + p["state_projection"]["bias"]
    inside = inside + value @ p["source_projection"]["kernel"]
    if how.coverage:
        inside = inside + received * p["coverage_vector"]
    return p["score_vector"] @ np.tanh(inside)


def align(how, p, hidden, values, received, step):
    """Weights of the source's tokens: of all, of those near the target's place, or near a predicted one."""
    scores = [score(how, p, hidden, *pair) for pair in zip(values, received, strict=True)]
    places, centre = np.arange(len(values)), min(step, len(values) - 1)
    if how.locality == "predictive":
        inside = np.tanh(hidden @ p["position_projection"]["kernel"])
        centre = len(values) * sigmoid(p["position_vector"] @ inside)
    seen = np.ones(len(values), bool) if how.locality == "global" else abs(places - centre) <= how.window
    weights = np.exp(scores) * seen / max((np.exp(scores) * seen).sum(), 1e-300)
    if how.locality == "predictive":
        weights = weights * np.exp(-((places - centre) ** 2) / (2 * (how.window / 2) ** 2))
    return weights


def decode(model, p, values, hidden, memory, tokens):
    """Returns logits and attention weights of every token.

    ``values`` are the encoder's states of the real source tokens, ``hidden`` and ``memory`` its last states
    [layers, width], ``p`` the decoder's parameters.
    """
    table = p["token_embedding"]["table"]
    head = table.T if model.tied_head else p["head"]["kernel"]
    hidden, memory, fed = list(hidden), list(memory), np.zeros(model.width)
    received, logits, told = np.zeros(len(values)), [], []
    for step, token in enumerate(tokens):
        x = np.sqrt(model.width) * table[token]
        if model.input_feeding:
            x = np.concatenate([x, fed])
        for layer in range(model.layers):
            hidden[layer], memory[layer] = lstm(x, hidden[layer], memory[layer], p[f"cells_{layer}"])
            x = hidden[layer]
        if model.attention is not None:
            weights = align(model.attention, p, x, values, received, step)
            received = received + weights
            told.append(weights)
            x = np.tanh(np.concatenate([weights @ values, x]) @ p["attentional"]["kernel"])
        fed = x
        logits.append(x @ head)
    return np.array(logits), np.array(told)
