"""Low-rank adapters: the sum, its gradient, what is trained, and what is kept."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.models.gpt import GPT
from research.training.adapters import adapters_only, merged, with_adapters
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Checkpointing, Experiment
from research.training.initial import LoRA, WarmStart
from research.training.program import functions, place_rows
from research.training.run_directory import claim
from research.training.trained import load
from research.training.warm_start import warm_start

MODEL = GPT(vocabulary=260, context=8, layers=2, width=8, heads=2, kv_heads=1, depth="unroll")
EXPERIMENT = Experiment(name="tuned", model=MODEL, data=TextData(length=8, batch=4))
ALL = LoRA(rank=3, alpha=6.0, targets="kernel$")


def random(seed, shapes):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random(0, functions(EXPERIMENT).abstract_state.params)


def test_the_sum_is_that_of_matrices_and_begins_with_the_model(params):
    adapted = jax.jit(lambda p: with_adapters(p, ALL, jax.random.key(0)))(params)
    jax.tree.map(np.testing.assert_array_equal, merged(adapted, ALL), params)
    adapted["adapters"] = random(1, adapted["adapters"])
    got = jax.jit(lambda p: merged(p, ALL))(adapted)["stack"]["blocks"]
    there, blocks = adapted["adapters"]["stack"]["blocks"], params["stack"]["blocks"]
    for path, shape in (
        (("attention", "query"), (8, 8)), (("attention", "key"), (8, 4)), (("attention", "output"), (8, 8)),
        (("feed_forward", "up"), (8, 32)),
    ):  # fmt: skip
        kernels = [tree[path[0]][path[1]]["kernel"] for tree in (got, blocks, there)]
        for layer in range(2):
            a, b = (np.asarray(kernels[2][name][layer], np.float64) for name in ("lora_a", "lora_b"))
            want = np.asarray(kernels[1][layer], np.float64).reshape(shape) + 2.0 * a @ b
            np.testing.assert_allclose(np.asarray(kernels[0][layer]).reshape(shape), want, atol=1e-5)
    assert merged(params, ALL) is params and merged(params, None) is params


def test_only_adapters_get_a_gradient_and_a_memory(params):
    lora = LoRA()
    adapted = jax.jit(lambda p: with_adapters(p, lora, jax.random.key(0)))(params)
    optimizer = adapters_only(optax.adamw(1e-2, weight_decay=1.0))

    def step(p):
        gradient = jax.grad(
            lambda p: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(merged(p, lora)))
        )(p)
        memory = optimizer.init(p)
        updates, _ = optimizer.update(gradient, memory, p)
        return gradient, memory, optax.apply_updates(p, updates)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with integer counts
        gradient, memory, after = jax.jit(step)(adapted)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["frozen"]))
    assert all(
        np.any(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if "lora_b" in str(path)
    )
    adapters = sum(leaf.size for leaf in jax.tree.leaves(adapted["adapters"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(memory)) <= 2 * adapters + 4
    jax.tree.map(np.testing.assert_array_equal, after["frozen"], adapted["frozen"])


def test_targets_that_match_nothing(params):
    with pytest.raises(UserError, match="'attentoin' matches no kernel of the blocks"):
        with_adapters(params, LoRA(targets="attentoin"), jax.random.key(0))


@pytest.mark.slow
def test_a_tuned_run_loads_as_the_sum(params, tmp_path):
    """Trains from a run, saves, loads: what was taken is as it was, and the model is changed."""

    def saved(path, experiment, state):
        with claim(path, to_json(experiment)) as run:
            run.keep({Tokenizer.FILE: Tokenizer.characters(["abc"]).to_json()})
            with Checkpoints(run, Checkpointing()) as checkpoints:
                checkpoints.save(0, state, None, {}, {})

    saved(tmp_path / "body", EXPERIMENT, {"params": params})
    initial = WarmStart(str(tmp_path / "body"), adapters=LoRA(rank=2))
    tuned = dataclasses.replace(EXPERIMENT, initial=initial, ema=0.5)
    parts = functions(tuned)
    state = warm_start(tuned, parts.init(), print)
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"], params)
    tokens = np.random.default_rng(0).integers(0, 260, (4, 8)).astype(np.int32)
    batch = {
        "tokens": tokens, "targets": tokens, "segments": np.ones_like(tokens),
        "positions": np.arange(8, dtype=np.int32)[None].repeat(4, 0), "weights": np.ones((4, 8), np.float32),
    }  # fmt: skip
    placed = place_rows(parts.mesh, batch)
    first = None
    for _ in range(3):
        state, metrics = parts.step(state, placed)
        first = first or float(metrics["train/loss"])
    assert float(metrics["train/loss"]) < first
    jax.tree.map(np.testing.assert_array_equal, state.params["frozen"], params)
    before = float(parts.sums(state.evaluated, placed)["loss"])
    saved(tmp_path / "tuned", tuned, {"average": state.average})
    loaded = load(tmp_path / "tuned")
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    assert float(loaded.functions.sums(loaded.params, placed)["loss"]) == pytest.approx(before, rel=1e-6)
    kernel = loaded.params["stack"]["blocks"]["attention"]["query"]["kernel"]
    assert not np.array_equal(kernel, params["stack"]["blocks"]["attention"]["query"]["kernel"])
