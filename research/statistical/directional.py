"""One direction of alignment, t(f|e), by EM: Model 1, Model 2, its diagonal form, the HMM.

Every model has a lexical table and a model of positions; the table that one leaves, the next begins with.
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
from jaxtyping import Array, Float16, Float32, Int32

from research.statistical import lexicon
from research.statistical.bitext import (
    Batch,
    Bitext,
    Block,
    blocks,
    cell_mask,
    cell_range,
    reverse,
    token_mask,
    token_range,
)
from research.statistical.em import device_mesh, make_step, reduce_totals, run_blocks, zeros
from research.statistical.hmm import Chain
from research.statistical.iterations import SILENT, WAYS, Progress, iterate
from research.statistical.lexicon import Lexicon
from research.statistical.positions import Diagonal, Positions, Table, Uniform


class Stage(NamedTuple):
    """Iterations with one model of positions."""

    positions: Positions
    iterations: int


SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "model1": (Stage(Uniform(), 5),),
    "model2": (Stage(Uniform(), 5), Stage(Table(), 5)),
    "diagonal": (Stage(Uniform(), 5), Stage(Diagonal(), 5)),
    "hmm": (Stage(Uniform(), 5), Stage(Chain(), 5)),
}
"""The usual schedules, by the model they end with."""


class Parameters(NamedTuple):
    """A model of one direction: t(f|e), and the parameters of its positions."""

    lexicon: Lexicon
    positions: Any


class Counts(NamedTuple):
    """Expected counts: of words, of what the positions need, and log P(f | e) under the parameters before."""

    lexicon: Lexicon
    positions: Any
    log_likelihood: Float32[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A bitext read in one direction.

    Attributes:
      bitext: the sentence pairs.
      backward: whether the target side generates the source side: t(e|f).
    """

    bitext: Bitext
    backward: bool = False

    def initial(self, positions: Positions) -> Parameters:
        """Returns uniform tables."""
        bitext = self.bitext
        sides = (bitext.target, bitext.source) if self.backward else (bitext.source, bitext.target)
        lengths = (side.lengths for side in sides)
        return Parameters(lexicon.uniform(bitext, len(sides[1].words)), positions.initial(*lengths))

    def entry_word(self) -> tuple[np.ndarray, int]:
        """Returns the source word of each entry, and the number of source words."""
        if self.backward:
            return self.bitext.entry_target, len(self.bitext.target.words)
        return self.bitext.entry_source, len(self.bitext.source.words)

    def with_positions(self, table: Lexicon, positions: Positions) -> Parameters:
        """Returns parameters of another model with the same lexical table."""
        return Parameters(table, self.initial(positions).positions)


def expectations(
    parameters: Parameters,
    totals: Counts,
    own: tuple[()],
    batch: Batch,
    *,
    positions: Positions,
    backward: bool,
) -> tuple[Counts, tuple[()]]:
    """Returns ``totals`` with the expected counts of a batch added: an expectation step (see ``em``)."""
    batch = reverse(batch) if backward else batch
    emission, empty = lexicon.emissions(parameters.lexicon, batch)
    found = positions.posteriors(
        parameters.positions, emission, empty, batch.source_length, batch.target_length
    )
    counts = lexicon.add(totals.lexicon, batch, found.links, found.empty)
    statistics = jax.tree.map(jnp.add, totals.positions, found.statistics)
    return Counts(counts, statistics, totals.log_likelihood + found.log_likelihood), own


@functools.partial(jax.jit, static_argnames=("words", "positions", "prior"))
def maximise(
    parameters: Parameters,
    counts: Counts,
    entry_word: Int32[Array, " entries"],
    *,
    words: int,
    positions: Positions,
    prior: float,
) -> Parameters:
    """Returns the parameters that expected counts make likeliest.

    Args:
      parameters: those that the counts were expected under.
      counts: of the whole bitext.
      entry_word: the source word of each entry.
      words: number of source words.
      positions: model of positions.
      prior: of the lexical table, as in ``lexicon.maximise``.
    """
    return Parameters(
        lexicon.maximise(counts.lexicon, entry_word, words, prior),
        positions.maximise(parameters.positions, counts.positions),
    )


def train(
    direction: Direction,
    schedule: Sequence[Stage],
    *,
    prior: float = 0.0,
    mesh: Mesh | None = None,
    progress: Progress = SILENT,
) -> Parameters:
    """Trains one direction on a bitext and returns the parameters of the schedule's last model.

    Args:
      direction: what to learn from.
      schedule: models of positions, each with its iterations.
      prior: of the lexical table; 0 is maximum likelihood.
      mesh: devices to share the sentence pairs out to; default: all.
      progress: is told of every iteration.
    """
    mesh = mesh or device_mesh()
    found = blocks(direction.bitext, multiple=mesh.size)
    parameters = direction.initial(schedule[0].positions)
    for number, (positions, iterations) in enumerate(schedule):
        if number:
            parameters = direction.with_positions(parameters.lexicon, positions)
        once = functools.partial(
            _iteration, direction=direction, found=found, positions=positions, prior=prior, mesh=mesh
        )
        phase = f"{WAYS[direction.backward]} {type(positions).__name__.lower()}"
        parameters = iterate(phase, iterations, parameters, once, progress)
    return parameters


def _iteration(
    parameters: Parameters,
    number: int,
    *,
    direction: Direction,
    found: Sequence[Block],
    positions: Positions,
    prior: float,
    mesh: Mesh,
) -> tuple[Parameters, Mapping[str, float]]:
    """Returns the parameters after an iteration (see ``iterate``)."""
    del number
    bitext = direction.bitext
    entry_word, words = direction.entry_word()
    step = make_step(expectations, mesh, positions=positions, backward=direction.backward)
    empty = Counts(
        jax.tree.map(jnp.zeros_like, parameters.lexicon),
        positions.statistics(parameters.positions),
        jnp.float32(0),
    )
    everywhere = jax.device_put(parameters, NamedSharding(mesh, P()))
    counts = reduce_totals(run_blocks(step, everywhere, zeros(empty, mesh), bitext, found, mesh))
    each = float(counts.log_likelihood) / len(bitext)
    parameters = maximise(parameters, counts, entry_word, words=words, positions=positions, prior=prior)
    return parameters, {f"{WAYS[direction.backward]}/log_likelihood": each}


class Decision(NamedTuple):
    """What one direction says of a bitext.

    Attributes:
      chosen: source position that each generated word comes from, -1 for the empty word.
      posterior: P(a_j = i | f, e) of every cell, in the order of the bitext's cells.
    """

    chosen: Int32[np.ndarray, " tokens"]
    posterior: Float16[np.ndarray, " cells"]


def _decide(
    parameters: Parameters,
    totals: Any,
    own: Any,
    batch: Batch,
    *,
    positions: Positions,
    backward: bool,
) -> tuple[Any, tuple[Int32[Array, "batch J"], Float16[Array, "batch I J"]]]:
    """Returns ``totals``, and where each generated word comes from, with posteriors (see ``em``)."""
    batch = reverse(batch) if backward else batch
    emission, empty = lexicon.emissions(parameters.lexicon, batch)
    found = positions.posteriors(
        parameters.positions, emission, empty, batch.source_length, batch.target_length
    )
    chosen = jnp.where(found.links.max(axis=1) > found.empty, found.links.argmax(axis=1), -1)
    return totals, (chosen, found.links.astype(jnp.float16))


def decide(
    parameters: Parameters, positions: Positions, direction: Direction, *, mesh: Mesh | None = None
) -> Decision:
    """Returns what a trained direction says of a bitext.

    Each word that is generated comes from the position of the highest posterior probability, unless the
    empty word's is higher.
    """
    mesh = mesh or device_mesh()
    bitext = direction.bitext
    side = bitext.source if direction.backward else bitext.target
    chosen = np.zeros(len(side.tokens), np.int32)
    posterior = np.zeros(len(bitext.cells), np.float16)

    def keep(block: Block, found: tuple[Array, Array]) -> None:
        best, links = (np.asarray(part) for part in found)
        chosen[token_range(side, block)] = best[token_mask(side, block)]
        links = links.transpose(0, 2, 1) if direction.backward else links
        posterior[cell_range(bitext, block)] = links[cell_mask(bitext, block)]

    step = make_step(_decide, mesh, positions=positions, backward=direction.backward)
    parameters = jax.device_put(parameters, NamedSharding(mesh, P()))
    found = blocks(bitext, multiple=mesh.size)
    run_blocks(step, parameters, zeros(jnp.float32(0), mesh), bitext, found, mesh, keep=keep)
    return Decision(chosen, posterior)


def links_of(direction: Direction, chosen: Int32[np.ndarray, " tokens"]) -> list[set[tuple[int, int]]]:
    """Returns the links (i, j) of every sentence pair, in the order of the bitext."""
    side = direction.bitext.source if direction.backward else direction.bitext.target
    links = []
    for first, last in zip(side.starts[:-1], side.starts[1:], strict=True):
        made = ((i, j) for j, i in enumerate(chosen[first:last].tolist()) if i >= 0)
        links.append({(j, i) if direction.backward else (i, j) for i, j in made})
    return links


def best_links(
    parameters: Parameters, positions: Positions, direction: Direction, *, mesh: Mesh | None = None
) -> list[set[tuple[int, int]]]:
    """Returns the links (i, j) of every sentence pair, in the order of the bitext (see ``decide``)."""
    return links_of(direction, decide(parameters, positions, direction, mesh=mesh).chosen)
