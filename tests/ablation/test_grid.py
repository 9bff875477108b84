"""Grids: their points, matched parameter counts, and what is refused before anything trains."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from research.ablation.grid import (
    Ablation,
    Factor,
    load_ablation,
    parameter_count,
    point,
    rows,
    with_overrides,
)
from research.data.associative_recall import AssociativeRecall
from research.errors import UserError
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.training.experiment import Experiment

BASE = Experiment(
    "base",
    GPT(vocabulary=32, context=16, layers=2, width=16, heads=4, depth="unroll"),
    AssociativeRecall(vocabulary=32, length=16, pairs=2, batch=4, valid_batches=1),
    Recall(),
    steps=2,
)
HEADS = Factor(
    "heads", ("model.kv_heads",), {"multi-head": {}, "multi-query": {"model.kv_heads": 1}}
)  # a quarter of the keys and values: fewer parameters
WINDOW = Factor(
    "attention",
    ("model.attention",),
    {"full": {}, "window 4": {"model.attention": "sliding-window", "model.attention.window": 4}},
)
GRID = Ablation("grid", BASE, (WINDOW, HEADS))


@pytest.fixture(scope="module")
def found():
    return rows(GRID)


def test_rows_are_the_combinations_of_choices_and_the_first_is_the_base(found):
    assert [row.title for row in found] == [
        "full, multi-head", "full, multi-query", "window 4, multi-head", "window 4, multi-query",
    ]  # fmt: skip
    assert found[0].experiment == BASE
    assert found[2].experiment.model.attention.window == 4
    assert found[3].slug == "window-4--multi-query"


def test_parameter_counts_agree_within_one_percent_by_the_feed_forward_width_alone():
    printed = []
    found = rows(dataclasses.replace(GRID, factors=(HEADS,)), printed.append)
    counts = [
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_parameters(row.experiment))) for row in found
    ]
    assert counts == [row.parameters for row in found]
    assert max(counts) / min(counts) < 1.01
    untouched = dataclasses.replace(BASE.model, kv_heads=1)
    assert parameter_count(dataclasses.replace(BASE, model=untouched)) < 0.95 * counts[0]
    assert dataclasses.replace(found[1].experiment.model, feed_forward_width=None) == untouched
    assert printed[0] == f"multi-head: {counts[0]:,} parameters"
    assert printed[1].endswith(f"(feed-forward width {found[1].experiment.model.hidden})")


def _parameters(experiment):
    module = experiment.model.build()
    tokens = jax.numpy.zeros((1, 4), int)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), tokens))["params"]


def test_counts_are_matched_only_over_the_factors_named():
    width = Factor("width", ("model.width",), {"16": {}, "32": {"model.width": 32}})
    found = rows(Ablation("grid", BASE, (width, HEADS), matched=("heads",)))
    narrow, wide = found[0].parameters, found[2].parameters
    assert wide > 2 * narrow
    assert [row.parameters for row in found] == pytest.approx([narrow, narrow, wide, wide], rel=0.01)


@pytest.mark.parametrize(
    ("quality", "higher"), [("valid/loss", False), ("valid/accuracy", True), ("test/length 64", True)]
)
def test_accuracies_are_scores_on_test_rows_too(quality, higher):
    assert dataclasses.replace(GRID, quality=quality).higher_is_better is higher


def test_a_point_is_its_row_with_a_rate_and_a_seed():
    grid = Ablation("grid", BASE, (WINDOW,), learning_rates=(1e-3, 3e-3), seeds=(0, 7))
    row = rows(grid)[1]
    found = point(grid, row, 3e-3, 7)
    assert (found.rate, found.seed) == (3e-3, 7)
    assert found.name == "window-4--rate-0.003--seed-7"
    assert found.experiment.name == "grid/window-4--rate-0.003--seed-7"
    back = dataclasses.replace(found.experiment, name="base", seed=0, optimizer=row.experiment.optimizer)
    assert back == row.experiment


def test_a_combination_keeps_the_learning_rate_of_its_own_optimizer():
    muon = {"optimizer": "muon", "optimizer.learning_rate": 0.05}
    grid = Ablation("grid", BASE, (Factor("optimizer", ("optimizer",), {"adamw": {}, "muon": muon}),))
    assert [grid.rates(row) for row in rows(grid)] == [(BASE.optimizer.learning_rate,), (0.05,)]


REFUSED = {
    "the grid is empty: it has no factors": Ablation("g", BASE, ()),
    "the grid is empty: factor 'attention' has no choices": Ablation(
        "g", BASE, (Factor("attention", ("model.attention",), {}),)
    ),
    "the learning rate 0.001 is there twice": Ablation(
        "g", BASE, (WINDOW,), learning_rates=(1e-3, 1e-2, 1e-3)
    ),
    "learning_rates is (0.0,); all must be above 0": Ablation("g", BASE, (WINDOW,), learning_rates=(0.0,)),
    "seeds is ()": Ablation("g", BASE, (WINDOW,), seeds=()),
    "'b' of factor 'steps' sets model.layers, so its points would differ in more than the factor declares": (
        Ablation("g", BASE, (Factor("steps", ("steps",), {"a": {}, "b": {"model.layers": 4}}),))
    ),
    "the factors 'attention' and 'window' both vary model.attention": Ablation(
        "g", BASE, (WINDOW, Factor("window", ("model.attention",), {"8": {"model.attention.window": 8}}))
    ),
    "'a' and 'b' are the same experiment": Ablation(
        "g", BASE, (Factor("steps", ("steps",), {"a": {}, "b": {"steps": 2}}),)
    ),
    "which matches parameter counts; set matched=()": Ablation(
        "g", BASE, (Factor("f", ("model.feed_forward_width",), {"8": {"model.feed_forward_width": 8}}),)
    ),
    "varies seed, which the grid sets": Ablation("g", BASE, (Factor("s", ("seed",), {"1": {"seed": 1}}),)),
    "varies optimizer.learning_rate, which the grid sets": Ablation(
        "g",
        BASE,
        (Factor("o", ("optimizer",), {"a": {}, "b": {"optimizer.learning_rate": 1}}),),
        learning_rates=(1e-3, 1e-2),
    ),
    "matched names 'atention', which is no factor; did you mean 'attention'?": Ablation(
        "g", BASE, (WINDOW,), matched=("atention",)
    ),
    "g, b: unknown option --model.attention.windw; did you mean --model.attention.window?": Ablation(
        "g",
        BASE,
        (Factor("f", ("model",), {"b": {"model.attention": "sliding-window", "model.attention.windw": 2}}),),
    ),
    "g, b: model.heads 3 does not divide model.width 16": Ablation(
        "g", BASE, (Factor("f", ("model.heads",), {"b": {"model.heads": 3}}),)
    ),
    "no feed-forward width makes them agree within 1 %": Ablation(
        "g", BASE, (Factor("f", ("model.width",), {"a": {}, "b": {"model.width": 64}}),)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_grid_that_cannot_be_meant_is_refused_in_one_line(message):
    with pytest.raises(UserError) as error:
        rows(REFUSED[message])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_change_the_base_but_not_what_the_grid_varies():
    assert with_overrides(GRID, {"steps": "5"}).base.steps == 5
    with pytest.raises(UserError, match=r"--model.attention.window is what the factor 'attention' of grid"):
        with_overrides(GRID, {"model.attention.window": "2"})
    with pytest.raises(
        UserError, match=r"--optimizer.learning-rate is set by the grid; use --learning-rates"
    ):
        with_overrides(dataclasses.replace(GRID, learning_rates=(2.0,)), {"optimizer.learning_rate": "1"})
    assert with_overrides(GRID, {"optimizer.learning_rate": "1"}).base.optimizer.learning_rate == 1.0


def test_an_ablation_comes_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from research.ablation.grid import *\n"
        "def ablation():\n"
        "    return Ablation('mine', Experiment('base'), (Factor('s', ('steps',), {'1': {'steps': 1}}),))\n"
    )
    assert load_ablation(file).name == "mine"
    file.write_text("def experiment(): ...\n")
    with pytest.raises(UserError, match=r"defines no function ablation\(\)"):
        load_ablation(file)
    with pytest.raises(UserError, match=r"no such ablation file.*did you mean '.*mine.py'"):
        load_ablation(tmp_path / "mne.py")
