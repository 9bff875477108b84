"""Ablations: an experiment, the factors it is varied by, and the points of the grid that they span.

An ablation file is a Python file with a function ``ablation() -> Ablation``. Everything about its grid that
can be wrong is found here, before anything trains.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research.errors import UserError, nearest
from research.training.description import call, from_json, to_json
from research.training.experiment import Experiment
from research.training.overrides import leaves, override
from research.training.program import initial_parameters
from research.training.run_directory import higher_is_better
from research.training.validity import validate

TOLERANCE = 0.01
"""Largest relative difference of parameter counts that are said to match."""
_WIDTH = "model.feed_forward_width"
_RATE = "optimizer.learning_rate"
_MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
"""What a feed-forward width is rounded to a multiple of: the first that leaves the counts matched."""


@dataclasses.dataclass(frozen=True)
class Factor:
    """One thing that is varied: by name, the fields it sets, and what it sets them to."""

    name: str
    """Name of the factor, a column of the report."""
    varies: tuple[str, ...]
    """Dotted fields of the experiment that choices may set, with all that is below them."""
    choices: Mapping[str, Mapping[str, Any]]
    """By label: values by dotted field, as on the command line ({"model.attention": "big-bird"})."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A grid of runs: every combination of the factors' choices, with every learning rate and every seed.

    Runs of one seed see the same data in the same order, so that differences between them are paired.
    """

    name: str
    """Name of the ablation; the default directory is runs/NAME."""
    base: Experiment
    """What every run has in common."""
    factors: tuple[Factor, ...]
    """What is varied; the first combination is what the others are compared with (see ``apart``)."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates tried for every combination with the first seed; the rate with the best quality is
    kept for the other seeds. Empty: each combination's own."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs, in place of the base's own."""
    matched: tuple[str, ...] | None = None
    """Factors over whose choices parameter counts must agree (within 1 %), by adjusting the feed-forward
    width; None: all factors; empty: none."""
    quality: str = "valid/loss"
    """Metric that says how good a run is."""
    contexts: tuple[int, ...] = (256, 1024, 4096)
    """Tokens in the context at which the decoding state is counted and the step is timed."""

    @property
    def higher_is_better(self) -> bool:
        """Whether quality is a score, not a loss."""
        return higher_is_better(self.quality)

    @property
    def across(self) -> tuple[str, ...]:
        """Names of the factors over whose choices parameter counts agree."""
        return tuple(factor.name for factor in self.factors) if self.matched is None else self.matched

    @property
    def apart(self) -> tuple[str, ...]:
        """Names of the other factors, if any are matched: rows are compared within one choice of each."""
        across = self.across
        return tuple(factor.name for factor in self.factors if across and factor.name not in across)

    def rates(self, row: Row) -> tuple[float, ...]:
        """Returns the learning rates that are tried for a combination."""
        return self.learning_rates or (row.experiment.optimizer.learning_rate,)


@dataclasses.dataclass(frozen=True)
class Row:
    """One combination of the factors' choices."""

    labels: tuple[tuple[str, str], ...]
    """(factor, choice) pairs."""
    experiment: Experiment
    """The base with the choices, its feed-forward width adjusted."""
    parameters: int

    @property
    def title(self) -> str:
        """The choices, for a reader."""
        return ", ".join(label for _, label in self.labels)

    @property
    def slug(self) -> str:
        """The choices, for a file name."""
        return "--".join(_slug(label) for _, label in self.labels)


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a grid."""

    row: Row
    experiment: Experiment
    """The row's experiment with the point's learning rate and seed."""

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        return self.experiment.optimizer.learning_rate

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.experiment.seed

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.row.slug}--rate-{self.rate:g}--seed-{self.seed}"

    @property
    def title(self) -> str:
        """What it is, for a reader."""
        return f"{self.row.title}, learning rate {self.rate:g}, seed {self.seed}"


def load_ablation(path: str | Path) -> Ablation:
    """Returns the ablation that a file's function ``ablation()`` describes.

    Raises:
      UserError: no such file, no ``ablation()`` in it, one that raises, or one that returns something else.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        beside = [str(file) for file in path.parent.glob("*.py")]
        hint = nearest(str(path), beside) if beside else ""
        raise UserError(f"{path}: no such ablation file, a .py file with a function ablation(){hint}")
    found = call(path, "ablation", Ablation)
    try:
        return dataclasses.replace(found, base=from_json(to_json(found.base)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def with_overrides(ablation: Ablation, options: Mapping[str, str]) -> Ablation:
    """Returns the ablation with fields of its base replaced; ``UserError`` if the grid itself varies them."""
    for option in options:
        for factor in ablation.factors:
            if _within(option, factor.varies):
                raise UserError(f"--{option} is what the factor {factor.name!r} of {ablation.name} varies")
        if option == "seed" or (option == _RATE and ablation.learning_rates):
            other = "--seeds" if option == "seed" else "--learning-rates"
            raise UserError(f"--{option.replace('_', '-')} is set by the grid; use {other}")
    return dataclasses.replace(ablation, base=override(ablation.base, options))


def rows(ablation: Ablation, report: Callable[[str], None] = lambda message: None) -> tuple[Row, ...]:
    """Returns the combinations of a grid, the reference first, their parameter counts matched.

    Args:
      ablation: the grid.
      report: receives a line for each row.

    Raises:
      UserError: the grid is empty, names a field that is not there, has points that differ in more than its
        factors or not at all, a combination that cannot be built, or counts that cannot be made to match.
    """
    for problem in _problems(ablation):
        raise UserError(f"{ablation.name}: {problem}")
    found: list[Row] = []
    for choice in itertools.product(*(factor.choices.items() for factor in ablation.factors)):
        labels = tuple(
            (factor.name, label) for factor, (label, _) in zip(ablation.factors, choice, strict=True)
        )
        options = {field: _text(value) for _, values in choice for field, value in values.items()}
        try:
            experiment = override(ablation.base, options)
            validate(experiment)
        except UserError as error:
            title = ", ".join(label for _, label in labels)
            raise UserError(f"{ablation.name}, {title}: {error}") from None
        row = _matched(ablation, Row(labels, experiment, parameter_count(experiment)), found)
        report(_line(row, experiment))
        found.append(row)
    for one, other in itertools.combinations(found, 2):
        if one.experiment == other.experiment:
            raise UserError(f"{ablation.name}: {one.title!r} and {other.title!r} are the same experiment")
        if one.slug == other.slug:
            raise UserError(f"{ablation.name}: {one.title!r} and {other.title!r} would share a directory")
    return tuple(found)


def point(ablation: Ablation, row: Row, rate: float, seed: int) -> Point:
    """Returns a run of a row."""
    optimizer = dataclasses.replace(row.experiment.optimizer, learning_rate=rate)
    named = Point(row, dataclasses.replace(row.experiment, optimizer=optimizer, seed=seed))
    name = f"{ablation.name}/{named.name}"
    return Point(row, dataclasses.replace(named.experiment, name=name))


def parameter_count(experiment: Experiment) -> int:
    """Returns the number of parameters of an experiment's model; nothing is allocated."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(functools.partial(initial_parameters, experiment), key)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _problems(ablation: Ablation) -> Iterator[str]:
    """Yields what is wrong with a grid before its experiments are looked at."""
    names = [factor.name for factor in ablation.factors]
    if not names:
        yield "the grid is empty: it has no factors"
    for name, numbers, least in (("seeds", ablation.seeds, 0), ("contexts", ablation.contexts, 1)):
        if not numbers or min(numbers) < least:
            yield f"{name} is {numbers}; it must have a number, and none below {least}"
    listed = {
        "factor": names,
        "learning rate": [f"{rate:g}" for rate in ablation.learning_rates],
        "seed": [str(seed) for seed in ablation.seeds],
    }
    for what, given in listed.items():
        for name in sorted({name for name in given if given.count(name) > 1}):
            yield f"the {what} {name} is there twice"
    if ablation.learning_rates and min(ablation.learning_rates) <= 0:
        yield f"learning_rates is {ablation.learning_rates}; all must be above 0"
    for name in ablation.matched or ():
        if name not in names:
            yield f"matched names {name!r}, which is no factor{nearest(name, names)}"
    for factor in ablation.factors:
        if not factor.choices:
            yield f"the grid is empty: factor {factor.name!r} has no choices"
        for label, values in factor.choices.items():
            for field in values:
                if not _within(field, factor.varies):
                    yield (
                        f"{label!r} of factor {factor.name!r} sets {field}, so its points would differ in "
                        f"more than the factor declares ({', '.join(factor.varies)}): declare it, or set it "
                        "in the base"
                    )
        for field in dict.fromkeys((*factor.varies, *itertools.chain(*factor.choices.values()))):
            if field in ("name", "seed") or (field == _RATE and ablation.learning_rates):
                yield f"factor {factor.name!r} varies {field}, which the grid sets for every point"
            if field == _WIDTH and ablation.across:
                yield f"factor {factor.name!r} varies {field}, which matches parameter counts; set matched=()"
    for one, other in itertools.combinations(ablation.factors, 2):
        for field in one.varies:
            if _within(field, other.varies):
                yield f"the factors {one.name!r} and {other.name!r} both vary {field}"


def reference(ablation: Ablation, row: Row, rows: Sequence[Row]) -> Row:
    """Returns what a row is compared with: the first with the same choices of the factors set ``apart``."""
    own = [label for label in row.labels if label[0] in ablation.apart]
    return next(other for other in rows if all(label in other.labels for label in own))


def _matched(ablation: Ablation, row: Row, before: list[Row]) -> Row:
    """Returns the row with its feed-forward width such that it has as many parameters as its reference."""
    first = reference(ablation, row, [*before, row])
    target = first.parameters
    if not ablation.across or abs(row.parameters - target) <= TOLERANCE * target:
        return row
    advice = f"change the choice, or leave its factor out of matched={ablation.across}"
    counts = f"{row.parameters:,} parameters, {target:,} in {first.title!r}"
    refused = f"{ablation.name}, {row.title}: {counts}, and "
    if _WIDTH not in dict(leaves(row.experiment)):
        raise UserError(f"{refused}its model has no feed_forward_width to make them agree by; {advice}")
    width = _width(row.experiment)
    per_unit = (parameter_count(_widened(row.experiment, width + 64)) - row.parameters) / 64
    exact = width + (target - row.parameters) / per_unit
    for multiple in _MULTIPLES:
        rounded = max(round(exact / multiple) * multiple, multiple)
        count = round(row.parameters + (rounded - width) * per_unit)
        if abs(count - target) <= TOLERANCE * target:
            return Row(row.labels, _widened(row.experiment, rounded), count)
    raise UserError(
        f"{refused}no feed-forward width makes them agree within 1 % (nearest: {rounded}, with {count:,}); "
        f"{advice}"
    )


def _widened(experiment: Experiment, width: int) -> Experiment:
    model: Any = experiment.model
    return dataclasses.replace(experiment, model=dataclasses.replace(model, feed_forward_width=width))


def _width(experiment: Experiment) -> int:
    model: Any = experiment.model
    return model.hidden


def _line(row: Row, before: Experiment) -> str:
    adjusted = "" if row.experiment == before else f" (feed-forward width {_width(row.experiment)})"
    return f"{row.title}: {row.parameters:,} parameters{adjusted}"


def _within(field: str, fields: tuple[str, ...]) -> bool:
    """Returns whether a dotted field is one of these or below one of them."""
    return any(field == other or field.startswith(other + ".") for other in fields)


def _text(value: Any) -> str:
    """Returns a value as one writes it on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-") or "none"
