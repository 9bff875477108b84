"""Differences and averages of runs, against hand-made ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interchange.averages import average_run
from research.interchange.differences import differences, text
from research.interchange.runs import ORIGIN
from research.models.gpt import GPT
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Checkpointing, Experiment
from research.training.program import functions
from research.training.run_directory import claim
from research.training.trained import load

BASE = Experiment(
    name="a", model=GPT(vocabulary=260, context=8, layers=1, width=8, heads=2), data=TextData(length=8)
)
TABLE = "token_embedding/table"


def made(path, experiment, trees):
    """A run with a checkpoint for each tree of parameters."""
    with claim(path, to_json(experiment)) as run:
        run.keep({Tokenizer.FILE: Tokenizer.characters(["abc"]).to_json()})
        with Checkpoints(run, Checkpointing(keep_last=9)) as checkpoints:
            for step, params in enumerate(trees):
                checkpoints.save(step, {"params": params}, None, {}, {})
    return str(path)


def random(experiment, seed):
    rng = np.random.default_rng(seed)
    shapes = functions(experiment).abstract_state.params
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_an_average_is_the_mean_of_the_last_checkpoints(tmp_path):
    trees = [random(BASE, seed) for seed in range(3)]
    source = made(tmp_path / "a", BASE, trees)
    found = average_run(source, tmp_path / "mean", 2)
    assert found["steps"] == [1, 2]
    got = load(tmp_path / "mean")
    assert got.step == 2 and got.tokenizer.encode("ab") == load(source).tokenizer.encode("ab")
    jax.tree.map(
        lambda mean, one, two: np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-6),
        got.params,
        *trees[1:],
    )
    with pytest.raises(UserError, match=r"has 3 checkpoints, 4 are to be averaged; .* or use --last 3"):
        average_run(source, tmp_path / "more", 4)
    for run in (source, tmp_path / "mean"):
        with pytest.raises(UserError, match="is a run already; choose another --out"):
            average_run(source, Path(run), 2)
    assert load(source).step == 2 and not (tmp_path / "a" / ORIGIN).exists()


def test_differences_of_description_shapes_and_weights(tmp_path):
    wide = dataclasses.replace(BASE, seed=3, model=dataclasses.replace(BASE.model, feed_forward_width=5))
    first, second = random(BASE, 0), random(wide, 1)
    second |= {
        "token_embedding": {"table": first["token_embedding"]["table"] * 1.5},
        "final_norm": first["final_norm"],
    }
    runs = made(tmp_path / "a", BASE, [first]), made(tmp_path / "b", wide, [second])
    found = differences(*map(load, runs))
    assert found["description"] == {"model.feed_forward_width": [None, 5], "seed": [0, 3]}
    assert found["weights"][TABLE] == pytest.approx(0.5, rel=1e-6)
    assert found["shapes"]["stack/blocks/feed_forward/up/kernel"] == [[1, 8, 32], [1, 8, 5]]
    assert found["same"] == 2 and "final_norm/scale" not in found["weights"]
    assert f"{TABLE}: relative difference 0.5" in text(found)
    same = differences(load(runs[0]), load(runs[0]))
    assert not same["description"] and not same["weights"] and not same["shapes"]
