"""The hidden Markov model of alignment (Vogel et al., 1996), with the empty word of Och & Ney (2003).

    P(f, a | e) = prod_j p(a_j | a_{j-1}, I) t(f_j | e_{a_j})

A state is a position i of the source sentence, 1..I, or 0 before the first one. A target word comes from a
source word, to which the chain jumps, or, with probability p0, from the empty word, when the chain stays at
the position it remembers; a share u of the jumps goes anywhere:

    p(i | i', I) = (1 - p0) ((1 - u) s(i - i') / sum_{1 <= k <= I} s(k - i') + u / I)
    p(empty at i | i') = p0 [i = i']

(equations 15-17 and the smoothing of Och & Ney, 2003; their 2 I states are the I positions here, each reached
either way, because nothing else of the past matters). Probabilities are linear and rescaled at each word.
Sentences of a batch have common padded lengths, so the sum over jumps is one matrix product with s(i - i')
for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Int64

from research.statistical.bitext import LONGEST
from research.statistical.positions import Posteriors

_RAREST = 1e-6
"""A jump counts as possible at least this share of the times that the one most often possible was."""


class Jumps(NamedTuple):
    """Statistics of the chain.

    Those that go anywhere are not counted.

    Attributes:
      widths: expected number of jumps by width, -reach..reach.
      departures: expected number of jumps from position i' of sentences of I source words.
    """

    widths: Float32[Array, " widths"]
    departures: Float32[Array, "longest_I longest_from"]


@dataclasses.dataclass(frozen=True)
class Chain:
    """The HMM; its parameters are the weights s(d).

    Attributes:
      empty: p0, the probability of the empty word.
      reach: widest jump with a weight of its own; wider ones have that weight.
      uniform: u, the share of jumps that go to any position alike.
      smoothing: jumps that are spread evenly over all widths, as a share of those expected; with any, the
        likelihood may decrease.
      longest: longest source sentence.
    """

    empty: float = 0.15
    reach: int = 32
    uniform: float = 0.7
    smoothing: float = 0.0
    longest: int = LONGEST

    def initial(
        self, lengths: Int64[np.ndarray, " pairs"], observed: Int64[np.ndarray, " pairs"]
    ) -> Float32[Array, " widths"]:
        """Returns weights that prefer short jumps ahead."""
        width = np.arange(-self.reach, self.reach + 1)
        return jnp.asarray(np.exp(-np.abs(width - 1) / 3) + 0.01, jnp.float32)

    def statistics(self, parameters: Float32[Array, " widths"]) -> Jumps:
        """Returns empty statistics."""
        table = jnp.zeros((self.longest + 1, self.longest + 1), jnp.float32)
        return Jumps(jnp.zeros_like(parameters), table)

    def maximise(self, parameters: Float32[Array, " widths"], statistics: Jumps) -> Float32[Array, " widths"]:
        """Returns the weights that make the expected jumps likelier.

        Their likelihood, sum_d c(d) log s(d) - sum_{i', I} n(i', I) log Z(i', I), is that of choices from
        sets that differ, so c(d) alone does not maximise it. The step of Hunter (2004) cannot decrease it:

            s(d) <- c(d) / sum_{i', I: d is possible} n(i', I) / Z(i', I)
        """
        widths = statistics.widths + self.smoothing * statistics.widths.mean()
        weights = parameters
        matrix = jump_matrix(jnp.arange(len(weights), dtype=jnp.float32), self.longest).astype(jnp.int32)
        for _ in range(4):
            totals = jnp.cumsum(jump_matrix(weights, self.longest), axis=1).T
            rate = jnp.where(totals > 0, statistics.departures / jnp.where(totals > 0, totals, 1.0), 0.0)
            # How often each jump i' -> i was possible: in all sentences of at least i words.
            possible = jnp.cumsum(rate[::-1], axis=0)[::-1].T
            possible = possible.at[:, 0].set(0.0)
            exposure = jnp.zeros_like(weights).at[matrix].add(possible)
            # A width that was hardly ever possible, but is smoothed, would leave nothing to all the others.
            exposure = jnp.where(exposure > 0, jnp.maximum(exposure, _RAREST * exposure.max()), 0.0)
            weights = jnp.where(exposure > 0, widths / jnp.where(exposure > 0, exposure, 1.0), weights)
            weights = weights / weights.max()
        return weights

    def posteriors(
        self,
        parameters: Float32[Array, " widths"],
        emission: Float32[Array, "batch I J"],
        empty: Float32[Array, "batch J"],
        lengths: Int32[Array, " batch"],
        observed: Int32[Array, " batch"],
    ) -> Posteriors:
        """See ``Positions.posteriors``: the forward and backward recursions."""
        size, steps = emission.shape[1], emission.shape[2]
        matrix = jump_matrix(parameters, size)
        totals = jnp.cumsum(matrix, axis=1).T[lengths]
        by_width = (1 - self.empty) * (1 - self.uniform)
        rescale = jnp.where(totals > 0, by_width / jnp.where(totals > 0, totals, 1.0), 0.0)
        places = jnp.maximum(lengths, 1).astype(jnp.float32)
        anywhere = ((1 - self.empty) * self.uniform / places)[:, None]
        emission = jnp.pad(emission, ((0, 0), (1, 0), (0, 0))).transpose(2, 0, 1)
        nothing = (self.empty * empty).T[:, :, None]
        active = (jnp.arange(steps)[:, None] < observed[None, :])[:, :, None]

        def forward(state: Array, step: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
            emit, none, on = step
            word = ((state * rescale) @ matrix + state.sum(axis=1, keepdims=True) * anywhere) * emit
            both = word + state * none
            scale = jnp.where(on, jnp.maximum(both.sum(axis=1, keepdims=True), 1e-37), 1.0)
            return jnp.where(on, both / scale, state), (state, word / scale, scale)

        def backward(
            carry: tuple[Array, Array, Array], step: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array, Array], Array]:
            future, jumped, departed = carry
            emit, none, on, state, word, scale = step
            link = jnp.where(on, word * future, 0.0)
            ahead = jnp.where(on, emit * future / scale, 0.0)
            source = state * rescale
            from_here = ahead @ matrix.T
            before = from_here * rescale + ahead.sum(axis=1, keepdims=True) * anywhere
            before = before + none * future / scale
            carry = (jnp.where(on, before, future), jumped + source.T @ ahead, departed + source * from_here)
            return carry, link

        start = jnp.zeros((emission.shape[1], size + 1), jnp.float32).at[:, 0].set(1.0)
        _, (states, words, scales) = jax.lax.scan(forward, start, (emission, nothing, active))
        end = (jnp.ones_like(start), jnp.zeros((size + 1, size + 1), jnp.float32), jnp.zeros_like(start))
        trace = (emission, nothing, active, states, words, scales)
        (_, jumped, departed), links = jax.lax.scan(backward, end, trace, reverse=True)
        links = links.transpose(1, 2, 0)[:, 1:, :]
        on = active[:, :, 0].T
        return Posteriors(
            links=links,
            empty=jnp.where(on, jnp.maximum(1 - links.sum(axis=1), 0.0), 0.0),
            statistics=self._jumps(parameters, jumped * matrix, departed, lengths),
            log_likelihood=jnp.log(scales).sum(),
        )

    def _jumps(self, weights: Array, moves: Array, departed: Array, lengths: Array) -> Jumps:
        """Sorts expected moves i' -> i by width, and departures by length of sentence."""
        place = jnp.arange(len(moves))
        width = jnp.clip(place[None, :] - place[:, None], -self.reach, self.reach) + self.reach
        none = self.statistics(weights)
        kept = min(departed.shape[1], self.longest + 1)  # past the longest there is only padding
        table = none.departures.at[:, :kept].set(
            jnp.zeros((self.longest + 1, kept), jnp.float32).at[lengths].add(departed[:, :kept])
        )
        return Jumps(none.widths.at[width].add(moves), table)


def jump_matrix(weights: Float32[Array, " widths"], size: int) -> Float32[Array, "from to"]:
    """Returns s(i - i') for i', i = 0..size; nothing jumps to 0, which precedes the first word."""
    reach = len(weights) // 2
    place = jnp.arange(size + 1)
    width = jnp.clip(place[None, :] - place[:, None], -reach, reach)
    return jnp.where(place[None, :] > 0, weights[width + reach], 0.0)
