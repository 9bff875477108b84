"""Training the aligner's models on a bitext, and what they say of other text; in between, tables of arrays.

The name of a table begins with what its first axis counts: "entries" (word pairs that co-occur), "source" or
"target" words, or "other". Tables move to another bitext by that: a row for each of its own entries and
words, of zeros where training has not seen them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float16

from research.statistical import directional, fertility, fertility_training, joint
from research.statistical.bitext import Bitext, blocks
from research.statistical.directional import Decision, Direction
from research.statistical.distortion import FLOOR, Classes
from research.statistical.em import device_mesh, make_step, run_blocks, zeros
from research.statistical.iterations import WAYS, Progress, iterate
from research.statistical.lexicon import Lexicon
from research.statistical.positions import Positions, Table, TableParameters

Tables = dict[str, np.ndarray]


def fit_joint(
    bitext: Bitext, prior: float | None, mesh: Mesh | None, progress: Progress
) -> tuple[Tables, Float16[np.ndarray, " cells"]]:
    """Trains the joint model; returns its tables, and the product of both posteriors of each cell."""
    state, memory = joint.train(bitext, _joint(prior), mesh, progress)
    counts = {name: np.asarray(values)[:-1] for name, values in state.counts._asdict().items()}
    tables = {_JOINT_TABLES[name]: values for name, values in counts.items()}
    return tables | {"other/positions": np.asarray(state.positions)}, memory.links


def apply_joint(
    tables: Tables, bitext: Bitext, prior: float | None, mesh: Mesh | None
) -> Float16[np.ndarray, " cells"]:
    """Returns the product of both posteriors of each cell of a bitext that the counts do not have in them."""
    mesh = mesh or device_mesh()
    model = _joint(prior)
    positions = joint.chain_of(model)
    counts = joint.Counts(
        *(jnp.asarray(np.append(tables[name], np.float32(0))) for name in _JOINT_TABLES.values())
    )
    parameters = jnp.asarray(tables["other/positions"])
    memory = joint.Memory.blank(bitext)
    state = jax.device_put(
        joint.State(counts, parameters, jnp.zeros(2, jnp.float32)), NamedSharding(mesh, P())
    )
    statistics = jax.vmap(positions.statistics, axis_size=2)(parameters)
    step = make_step(joint.expectations, mesh, model=model, positions=positions)
    totals = zeros(state._replace(positions=statistics), mesh)
    nothing_own = memory.read
    run_blocks(
        step, state, totals, bitext, blocks(bitext, multiple=mesh.size), mesh, nothing_own, memory.write
    )
    return memory.links


_JOINT_TABLES = {
    "pairs": "entries/links",
    "source": "source/links",
    "target": "target/links",
    "empty_target": "target/empty",
    "empty_source": "source/empty",
}


def _joint(prior: float | None) -> joint.Joint:
    return joint.Joint() if prior is None else joint.Joint(lexical_prior=prior)


def fit_directions(
    bitext: Bitext, model: str, prior: float | None, mesh: Mesh | None, progress: Progress
) -> tuple[Tables, list[Decision]]:
    """Trains each direction by itself; returns the tables of both, and what each says of the bitext."""
    tables: Tables = {}
    decisions = []
    with_fertility = fertility.SCHEDULES.get(model)
    schedule = directional.SCHEDULES["hmm" if with_fertility else model]
    for way in WAYS:
        direction = Direction(bitext, way == "backward")
        found = directional.train(direction, schedule, prior=prior or 0.0, mesh=mesh, progress=progress)
        decision = directional.decide(found, schedule[-1].positions, direction, mesh=mesh)
        pairs, empty = (np.asarray(part)[:-1] for part in found.lexicon)
        if with_fertility:
            _learn_classes(tables, bitext, progress)
            classes = _classes(tables, direction)
            lexical = (pairs.astype(np.float64), empty.astype(np.float64))
            trained, decision = fertility_training.train(
                direction, decision, lexical, with_fertility, classes, progress=progress
            )
            pairs, empty = trained.parameters.pairs, trained.parameters.empty
            given = _sides(way)[0]
            tables[f"{given}/{way}/fertility"] = trained.parameters.fertility
            tables[f"other/{way}/distortion"] = trained.parameters.distortion
            tables[f"other/{way}/longest"] = fertility_training.longest_sources(direction)
        tables[f"entries/{way}/pairs"], tables[f"{_sides(way)[1]}/{way}/empty"] = pairs, empty
        for number, leaf in enumerate(jax.tree.leaves(found.positions)):
            tables[f"other/{way}/positions/{number}"] = np.asarray(leaf)
        decisions.append(decision)
    return tables, decisions


def apply_directions(tables: Tables, bitext: Bitext, model: str, mesh: Mesh | None) -> list[Decision]:
    """Returns what each direction says of a bitext that its tables were moved to."""
    decisions = []
    with_fertility = fertility.SCHEDULES.get(model)
    positions = directional.SCHEDULES["hmm" if with_fertility else model][-1].positions
    for way in WAYS:
        direction = Direction(bitext, way == "backward")
        # What training has not seen is unlikely, not impossible: else some words would come from nowhere.
        pairs = np.maximum(tables[f"entries/{way}/pairs"], FLOOR)
        empty = np.maximum(tables[f"{_sides(way)[1]}/{way}/empty"], FLOOR)
        lexicon = Lexicon(*(jnp.asarray(np.append(part, 0.0).astype(np.float32)) for part in (pairs, empty)))
        parameters = directional.Parameters(lexicon, _positions(tables, way, positions, direction))
        decision = directional.decide(parameters, positions, direction, mesh=mesh)
        if with_fertility:
            trained = _fertility_model(tables, way, with_fertility[-1].distortion, direction, (pairs, empty))
            decision = fertility_training.decide(direction, trained, decision.chosen)
        decisions.append(decision)
    return decisions


def move(
    tables: Tables, entries: tuple[np.ndarray, np.ndarray], words: tuple[int, int], bitext: Bitext
) -> Tables:
    """Returns the tables for another bitext, whose words begin with those of the first, in the same order.

    Args:
      tables: of the bitext that was trained on.
      entries: source and target word of each of its entries.
      words: its numbers of source and target words.
      bitext: the other one.
    """
    base = len(bitext.target.words)
    known = entries[0].astype(np.int64) * base + entries[1]
    wanted = bitext.entry_source.astype(np.int64) * base + bitext.entry_target
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    seen = known[at] == wanted
    new = {"source": len(bitext.source.words) - words[0], "target": len(bitext.target.words) - words[1]}
    moved = {}
    for name, values in tables.items():
        axis = name.split("/")[0]
        if axis == "entries":
            values = np.where(seen, values[at], 0).astype(values.dtype)
        elif axis in new:
            values = np.pad(values, ((0, new[axis]), *([(0, 0)] * (values.ndim - 1))))
        moved[name] = values
    return moved


def _sides(way: str) -> tuple[str, str]:
    """Returns the side that is given and the side that is generated."""
    return ("source", "target") if way == "forward" else ("target", "source")


def _positions(tables: Tables, way: str, positions: Positions, direction: Direction) -> Any:
    """Returns the parameters of the positions for the lengths of a bitext."""
    like = direction.initial(positions).positions
    leaves = [jnp.asarray(tables[f"other/{way}/positions/{k}"]) for k in range(len(jax.tree.leaves(like)))]
    if isinstance(positions, Table):
        return positions.extended(TableParameters(*leaves), like)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _learn_classes(tables: Tables, bitext: Bitext, progress: Progress) -> None:
    """Adds word classes to the tables, if they are not there yet."""
    if "source/classes" in tables:
        return
    blank = tuple(np.zeros(len(side.words), np.int32) for side in (bitext.source, bitext.target))
    found = iterate("classes", 1, blank, lambda *_: (fertility_training.learn_classes(bitext), {}), progress)
    tables["source/classes"], tables["target/classes"] = found


def _classes(tables: Tables, direction: Direction) -> Classes:
    """Returns word classes as a direction reads them."""
    names = [f"{side}/classes" for side in _sides("backward" if direction.backward else "forward")]
    return Classes(*(np.append(tables[name], 0).astype(np.int32) for name in names))


def _fertility_model(
    tables: Tables, way: str, distortion: Any, direction: Direction, lexical: tuple[np.ndarray, np.ndarray]
) -> fertility.Model:
    """Returns a model with fertilities for a bitext; new words are like the average one."""
    counts = tables[f"{_sides(way)[0]}/{way}/fertility"].copy()
    unseen = counts.sum(axis=1) == 0
    counts[unseen] = counts[~unseen].mean(axis=0)
    layout = distortion.layout(tables[f"other/{way}/longest"], _classes(tables, direction))
    parameters = fertility.Parameters(*lexical, counts, tables[f"other/{way}/distortion"])
    return fertility_training.extended(
        fertility.Model(fertility.Fertility(), distortion, layout, parameters), direction
    )
