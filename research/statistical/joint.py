"""Both directions of an HMM trained jointly, with Dirichlet priors integrated out: the default aligner.

Two ideas together. *Agreement* (Liang, Taskar & Klein, 2006): the link posteriors of t(f|e) and t(e|f), each
from its own chain, are multiplied, and both models learn from the product, so that a link counts as far as
both believe in it. *Collapsed variational inference* (Teh, Newman & Welling, 2007) in its zeroth-order form,
CVB0 (Asuncion et al., 2009): t(.|e) has a symmetric Dirichlet(a) prior and is integrated out, which leaves

    t(f_j | e_i) = (c(e_i, f_j) - g_ij + a) / (c(e_i) - g_ij + a V)

with c the expected counts of the whole bitext and g_ij what this very cell added to them. It is what a
collapsed Gibbs sampler draws from (Ostling & Tiedemann, 2016), with expected counts in the place of sampled
ones: a rare word finds no evidence in its own count, which is what plain EM overfits to, and there is no
sampling noise.

One table of counts serves both directions, because the product is the same seen from either.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float16, Float32

from research.statistical.bitext import (
    Batch,
    Bitext,
    Block,
    blocks,
    cell_mask,
    cell_range,
    token_mask,
    token_range,
)
from research.statistical.em import device_mesh, make_step, reduce_totals, run_blocks, zeros
from research.statistical.hmm import Chain
from research.statistical.iterations import SILENT, WAYS, Progress, iterate
from research.statistical.positions import Positions, Uniform


@dataclasses.dataclass(frozen=True)
class Joint:
    """How to train; the values are those that did best on the shared task's English and French.

    Attributes:
      independent_iterations: iterations in which every position is as likely (Model 1).
      chain_iterations: iterations with the HMM's chain.
      lexical_prior: a, of t(f|e) and t(e|f).
      empty_prior: the same for the words that come from the empty word.
      empty: p0, the probability of the empty word.
    """

    independent_iterations: int = 5
    chain_iterations: int = 5
    lexical_prior: float = 0.003
    empty_prior: float = 0.001
    empty: float = 0.1


class Counts(NamedTuple):
    """Expected counts of a bitext; the last element of each axis is for padding.

    Attributes:
      pairs: links of each entry.
      source: links of each source word.
      target: links of each target word.
      empty_target: target words from the empty source word.
      empty_source: source words from the empty target word.
    """

    pairs: Float32[Array, " entries_and_padding"]
    source: Float32[Array, " source_words_and_padding"]
    target: Float32[Array, " target_words_and_padding"]
    empty_target: Float32[Array, " target_words_and_padding"]
    empty_source: Float32[Array, " source_words_and_padding"]


class State(NamedTuple):
    """What one iteration leaves to the next.

    Attributes:
      counts: expected counts of words.
      positions: parameters of the positions, or their statistics, of both directions (forward first).
      log_likelihood: log P(f|e) and log P(e|f) as CVB0 has it, which need not increase.
    """

    counts: Counts
    positions: Any
    log_likelihood: Float32[Array, " 2"]


class Beliefs(NamedTuple):
    """What a batch added to the counts, rounded, so that taking it away again is exact.

    Attributes:
      links: product of both directions' posteriors.
      empty_target: P(f_j is from the empty word).
      empty_source: P(e_i is from the empty word).
    """

    links: Float16[Any, "batch I J"]
    empty_target: Float16[Any, "batch J"]
    empty_source: Float16[Any, "batch I"]


def chain_of(model: Joint) -> Chain:
    """Returns the HMM that training ends with."""
    return Chain(model.empty, uniform=0.0, smoothing=0.01)


def initial_counts(bitext: Bitext) -> Counts:
    """Returns no counts: the priors make every t(f|e) and t(e|f) uniform."""
    sources, targets = len(bitext.source.words), len(bitext.target.words)
    sizes = (bitext.entries, sources, targets, targets, sources)
    return Counts(*(jnp.zeros(size + 1, jnp.float32) for size in sizes))


def lexical(
    counts: Counts, own: Beliefs, batch: Batch, prior: float
) -> tuple[Float32[Array, "batch I J"], Float32[Array, "batch J I"]]:
    """Returns t(f_j | e_i) and t(e_i | f_j) without the cell's own count; 0 past the ends."""
    links = own.links.astype(jnp.float32)
    sources, targets = len(counts.source) - 1, len(counts.target) - 1
    pairs = jnp.maximum(counts.pairs[batch.cells] - links, 0.0) + prior
    pairs = jnp.where(batch.cells < len(counts.pairs) - 1, pairs, 0.0)
    of_source = jnp.maximum(counts.source[batch.source][:, :, None] - links, 0.0) + prior * targets
    of_target = jnp.maximum(counts.target[batch.target][:, None, :] - links, 0.0) + prior * sources
    return pairs / of_source, (pairs / of_target).transpose(0, 2, 1)


def from_empty_word(
    table: Float32[Array, " words_and_padding"], words: Array, own: Array, prior: float
) -> Float32[Array, "batch J"]:
    """Returns t(f_j | empty word) without the word's own count; 0 past the end."""
    mine = own.astype(jnp.float32)
    vocabulary = len(table) - 1
    numerator = jnp.maximum(table[words] - mine, 0.0) + prior
    denominator = jnp.maximum(table.sum() - mine, 0.0) + prior * vocabulary
    return jnp.where(words < vocabulary, numerator / denominator, 0.0)


def expectations(
    state: State, totals: State, own: Beliefs, batch: Batch, *, model: Joint, positions: Positions
) -> tuple[State, Beliefs]:
    """Returns ``totals`` with the expected counts of a batch added, and the batch's new beliefs.

    Args:
      state: of the last iteration.
      totals: those of this iteration, so far.
      own: what this batch added to the counts in ``state``.
      batch: sentence pairs.
      model: priors.
      positions: model of positions, whose parameters are in ``state``.
    """
    counts = state.counts
    nothing = (
        from_empty_word(counts.empty_target, batch.target, own.empty_target, model.empty_prior),
        from_empty_word(counts.empty_source, batch.source, own.empty_source, model.empty_prior),
    )
    # Both directions have the same padded shape: one program computes them.
    both = jax.vmap(positions.posteriors, axis_size=2)(
        state.positions,
        jnp.stack(lexical(counts, own, batch, model.lexical_prior)),
        jnp.stack(nothing),
        jnp.stack([batch.source_length, batch.target_length]),
        jnp.stack([batch.target_length, batch.source_length]),
    )
    agreed = both.links[0] * both.links[1].transpose(0, 2, 1)
    new = Beliefs(*(part.astype(jnp.float16) for part in (agreed, both.empty[0], both.empty[1])))
    links, empty_target, empty_source = (part.astype(jnp.float32) for part in new)
    added = totals.counts
    counts = Counts(
        pairs=added.pairs.at[batch.cells].add(links),
        source=added.source.at[batch.source].add(links.sum(axis=2)),
        target=added.target.at[batch.target].add(links.sum(axis=1)),
        empty_target=added.empty_target.at[batch.target].add(empty_target),
        empty_source=added.empty_source.at[batch.source].add(empty_source),
    )
    statistics = jax.tree.map(jnp.add, totals.positions, both.statistics)
    return State(counts, statistics, totals.log_likelihood + both.log_likelihood), new


@functools.partial(jax.jit, static_argnums=2)
def maximise(parameters: Any, statistics: Any, positions: Positions) -> Any:
    """Returns the parameters of the positions of both directions."""
    return jax.vmap(positions.maximise, axis_size=2)(parameters, statistics)


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """Beliefs in all of a bitext, on the host, in the order of its cells and tokens."""

    bitext: Bitext
    links: Float16[np.ndarray, " cells"]
    empty_target: Float16[np.ndarray, " target_tokens"]
    empty_source: Float16[np.ndarray, " source_tokens"]

    @classmethod
    def blank(cls, bitext: Bitext) -> Memory:
        """Returns beliefs of a bitext that has added nothing to any counts."""
        sizes = (len(bitext.cells), len(bitext.target.tokens), len(bitext.source.tokens))
        return cls(bitext, *(np.zeros(size, np.float16) for size in sizes))

    def _parts(self, block: Block) -> list[tuple[np.ndarray, np.ndarray]]:
        bitext = self.bitext
        return [
            (self.links[cell_range(bitext, block)], cell_mask(bitext, block)),
            (self.empty_target[token_range(bitext.target, block)], token_mask(bitext.target, block)),
            (self.empty_source[token_range(bitext.source, block)], token_mask(bitext.source, block)),
        ]

    def read(self, block: Block) -> Beliefs:
        """Returns the beliefs of a batch, padded."""
        padded = []
        for values, mask in self._parts(block):
            padded.append(np.zeros(mask.shape, np.float16))
            padded[-1][mask] = values
        return Beliefs(*padded)

    def write(self, block: Block, beliefs: Beliefs) -> None:
        """Replaces the beliefs of a batch."""
        for (values, mask), new in zip(self._parts(block), beliefs, strict=True):
            values[:] = np.asarray(new)[mask]


def train(
    bitext: Bitext,
    model: Joint,
    mesh: Mesh | None = None,
    progress: Progress = SILENT,
) -> tuple[State, Memory]:
    """Trains on a bitext, and returns its counts and what it believes of its own links.

    Args:
      bitext: what to align, which is also what is learnt from.
      model: iterations and priors.
      mesh: devices to share the sentence pairs out to; default: all.
      progress: is told of every iteration.
    """
    mesh = mesh or device_mesh()
    found = blocks(bitext, multiple=mesh.size)
    blank = Memory.blank(bitext)
    beliefs = (blank.links, blank.empty_target, blank.empty_source)
    counts = initial_counts(bitext)
    lengths = (bitext.source.lengths, bitext.target.lengths)
    stages = (
        (Uniform(model.empty), model.independent_iterations),
        (chain_of(model), model.chain_iterations),
    )
    for positions, iterations in stages:
        parameters = jax.tree.map(
            lambda f, b: jnp.stack([f, b]), positions.initial(*lengths), positions.initial(*lengths[::-1])
        )
        state = State(counts, parameters, jnp.zeros(2, jnp.float32))
        once = functools.partial(
            _iteration, bitext=bitext, found=found, model=model, positions=positions, mesh=mesh
        )
        phase = f"joint {type(positions).__name__.lower()}"
        state, beliefs = iterate(phase, iterations, (state, beliefs), once, progress)
        counts = state.counts
    return state, Memory(bitext, *beliefs)


_Beliefs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The arrays of a ``Memory``."""


def _iteration(
    before: tuple[State, _Beliefs],
    number: int,
    *,
    bitext: Bitext,
    found: Sequence[Block],
    model: Joint,
    positions: Positions,
    mesh: Mesh,
) -> tuple[tuple[State, _Beliefs], Mapping[str, float]]:
    """Returns the state after an iteration, and the beliefs, which it changes (see ``iterate``)."""
    del number
    state, beliefs = before
    memory = Memory(bitext, *beliefs)
    step = make_step(expectations, mesh, model=model, positions=positions)
    statistics = jax.vmap(positions.statistics, axis_size=2)(state.positions)
    everywhere = State(state.counts, state.positions, jnp.zeros(2, jnp.float32))
    totals = zeros(everywhere._replace(positions=statistics), mesh)
    everywhere = jax.device_put(everywhere, NamedSharding(mesh, P()))
    totals = run_blocks(step, everywhere, totals, bitext, found, mesh, memory.read, memory.write)
    sums = reduce_totals(totals)
    each = np.asarray(sums.log_likelihood) / len(bitext)
    metrics = {f"{way}/log_likelihood": float(value) for way, value in zip(WAYS, each, strict=True)}
    parameters = maximise(state.positions, sums.positions, positions)
    return (State(sums.counts, parameters, sums.log_likelihood), beliefs), metrics
