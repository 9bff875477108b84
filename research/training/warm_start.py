"""Starting from what another run has learned: its model, its tokenizer, and the parameters that fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data.bitext import SOURCE_TOKENIZER, Bitext
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.models.transformer import Transformer
from research.training.description import kind, load_experiment
from research.training.experiment import Experiment
from research.training.initial import Rule, WarmStart
from research.training.paths import path_name
from research.training.run_directory import open_run
from research.training.state import State
from research.training.trained import load

RENAMED: dict[tuple[type, type], tuple[tuple[str, str], ...]] = {
    (BERT, Classifier): ((r"^", "bert/"),),
    (GPT, Transformer): ((r"^stack/", "decoder/"), (r"^final_norm/", "decoder_norm/")),
    (BERT, Transformer): ((r"^stack/", "encoder/"), (r"^final_norm/", "encoder_norm/")),
}
"""Where the parameters of one kind of model lie in another, by (the run's, the new one)."""
_VOCABULARY = re.compile(r"(^|/)((token|source)_embedding/table|token_head/bias|head/kernel|head_bias)$")
_POSITIONS = re.compile(r"(^|/)position_embedding/table$")


def started_from(experiment: Experiment, run: str) -> Experiment:
    """Returns the experiment with the tokenizer of a run from whose parameters it starts, and its model.

    A model of the same kind becomes the run's, and the encoder of a classifier the run's encoder, whatever
    head that was trained with. A model of another kind stays as it is, and takes what fits (`RENAMED`).

    Raises:
      UserError: no such run, or its model is of a kind that nothing can be taken from.
    """
    directory = open_run(run)
    own, there = experiment.model, load_experiment(directory.experiment).model
    if isinstance(own, Classifier) and isinstance(there, (BERT, Classifier)):
        model: Any = dataclasses.replace(own, bert=there if isinstance(there, BERT) else there.bert)
    elif type(own) is type(there):
        model = there
    elif (type(there), type(own)) in RENAMED:
        model = own
    else:
        raise UserError(
            f"--from {run}: its model is {kind(type(there))!r}, this experiment's {kind(type(own))!r}"
        )
    data = experiment.data
    if any(field.name == "tokenizer" for field in dataclasses.fields(data)):
        changed: Any = {"tokenizer": str(directory.place / "tokenizer.json")}
        if (directory.path / SOURCE_TOKENIZER).exists() and isinstance(data, Bitext):
            changed["source_tokenizer"] = str(directory.place / SOURCE_TOKENIZER)
        data = dataclasses.replace(data, **changed)
    initial = dataclasses.replace(experiment.initial or WarmStart(), run=str(run))
    return dataclasses.replace(experiment, model=model, data=data, initial=initial)


def warm_start(
    experiment: Experiment,
    state: State,
    report: Callable[[str], None],
    tokenizer: Tokenizer | None = None,
) -> State:
    """Returns a fresh state with the parameters that its experiment takes from a run's best checkpoint.

    Tables of tokens keep their own rows where they have more than the run's; more learned positions are
    interpolated between the run's, fewer are the first of them.

    Args:
      experiment: whose ``initial`` says which run, and by what rules.
      state: the fresh state; the optimizer's memory, and adapters, stay as they are.
      report: is told which parameters were taken, resized, are new, and which of the run's are not used.
      tokenizer: of the experiment's text; None: nothing is known of its tokens.

    Raises:
      UserError: no such run, a parameter of another shape, nothing in common, or tables of tokens where the
        experiment's tokenizer gives the run's numbers to other tokens.
    """
    initial = experiment.initial
    assert initial is not None
    trained = load(initial.run)
    rules = initial.parsed()
    renamed = RENAMED.get((type(trained.experiment.model), type(experiment.model)), ())
    there, skipped = _offered(trained.params, renamed, rules)
    taken: list[str] = []
    fresh: list[str] = []
    resized: list[str] = []

    def choose(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        found = there.get(name)
        if found is None or any(rule.verb == "fresh" and rule.pattern.search(name) for rule in rules):
            fresh.append(name)
            return leaf
        value = jax.device_get(found)
        if value.shape != leaf.shape:
            value = _resized(name, value, jax.device_get(leaf), initial.run)
            resized.append(f"{name} from {_by(found.shape)} to {_by(leaf.shape)}")
        taken.append(name)
        return jax.device_put(value, leaf.sharding)

    adapted = initial.adapters is not None
    model = jax.tree.map_with_path(choose, state.params["frozen"] if adapted else state.params)
    if not taken:
        raise UserError(f"{initial.run} has no parameter in common with this model")
    tables = [n for n in taken if _VOCABULARY.search(n) and not n.startswith("source_")]
    if tables and tokenizer is not None and trained.tokenizer is not None:
        _check_tokens(tokenizer, trained.tokenizer, initial.run, tables)
    size = sum(there[name].size for name in taken)
    unused = sorted([*skipped, *(there.keys() - set(taken))])
    report(f"from {initial.run} at step {trained.step}: {len(taken)} arrays, {size:,} parameters")
    if resized:
        report(f"resized: {', '.join(resized)}")
    report(f"new: {', '.join(fresh) or 'none'}")
    report(f"of the run's, not used: {', '.join(unused) or 'none'}")
    params = {**state.params, "frozen": model} if adapted else model
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, average=average)


def _check_tokens(own: Tokenizer, there: Tokenizer, run: str, tables: list[str]) -> None:
    """Raises UserError if a row of the tables of tokens is for another token here than in the run."""
    if own.digest() == there.digest():
        return
    for row in range(min(own.vocabulary, there.vocabulary)):
        if (here := own.name_of(row)) != (before := there.name_of(row)):
            raise UserError(
                f"token {row} is {before!r} in {run}, and {here!r} to data.tokenizer: use the run's, "
                f"or none of its tables of tokens, --initial.rules {','.join(f'fresh {n}' for n in tables)!r}"
            )


def _offered(
    params: Any, renamed: tuple[tuple[str, str], ...], rules: tuple[Rule, ...]
) -> tuple[dict[str, jax.Array], list[str]]:
    """Returns the run's parameters by the names that the rules give them, and those that they skip."""
    offered: dict[str, jax.Array] = {}
    skipped = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        taken = True
        for rule in rules:
            if rule.verb == "rename":
                name = rule.pattern.sub(rule.replacement, name)
            elif rule.verb in ("take", "skip") and rule.pattern.search(name):
                taken = rule.verb == "take"
                break
        if not taken:
            skipped.append(name)
            continue
        for old, new in renamed:
            name = re.sub(old, new, name)
        if name in offered:
            raise UserError(f"initial.rules: two parameters of the run are called {name}; skip one of them")
        offered[name] = leaf
    return offered, skipped


def _resized(name: str, value: np.ndarray, fresh: np.ndarray, run: str) -> np.ndarray:
    """Returns a table of tokens or positions in the shape of ``fresh``; UserError for anything else."""
    axis = value.ndim - 1 if name.endswith("kernel") else 0
    others = (np.delete(shape, axis).tolist() for shape in (value.shape, fresh.shape))
    if value.ndim == fresh.ndim and len({tuple(other) for other in others}) == 1:
        if _VOCABULARY.search(name):
            common = min(value.shape[axis], fresh.shape[axis])
            resized = np.moveaxis(fresh.copy(), axis, 0)
            resized[:common] = np.moveaxis(value, axis, 0)[:common]
            return np.moveaxis(resized, 0, axis)
        if _POSITIONS.search(name):
            return _interpolated(value, len(fresh))
    raise UserError(
        f"{name} is {_by(fresh.shape)} here and {_by(value.shape)} in {run}: the model must be the run's "
        "(--from RUN takes it over), but for vocabulary and context"
    )


def _interpolated(table: np.ndarray, rows: int) -> np.ndarray:
    """Returns a table of positions with more rows, linearly between its own, or with its first rows."""
    if rows <= len(table):
        return table[:rows]
    place = np.linspace(0.0, len(table) - 1, rows)
    low = np.minimum(place.astype(int), len(table) - 2) if len(table) > 1 else np.zeros(rows, int)
    high = np.minimum(low + 1, len(table) - 1)
    share = (place - low)[:, None]
    return ((1 - share) * table[low] + share * table[high]).astype(table.dtype)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
