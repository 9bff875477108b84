"""A GPT's program end to end: its numbers, in bfloat16, twice, in micro-batches, and when one goes bad."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Tokens
from research.data.packing import valid_batches
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.paths import path_name
from research.training.program import build, functions, measure
from research.training.schedule import Cosine

TEXT = "".join(f"plus_{n} = lambda x: x + {n * n}\n" for n in range(300))
BASE = Experiment(
    name="program",
    model=GPT(vocabulary=64, context=16, layers=2, width=16, heads=2, dropout=0.1),
    data=TextData("files", tokenizer="characters", split="tail", length=16, batch=8),
    optimizer=AdamW(learning_rate=3e-3),
    schedule=Cosine(warmup=0),
    steps=6,
    ema=0.5,
)
STILL = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dropout=0.0))
MICRO = dataclasses.replace(STILL, accumulate=4)


def changed(experiment: Experiment, model: dict | None = None, **changes) -> Experiment:
    changes |= {"model": dataclasses.replace(experiment.model, **(model or {}))}
    return dataclasses.replace(experiment, **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return dataclasses.replace(BASE.data, path=str(path)).prepare(vocabulary=64)


@pytest.fixture(scope="module")
def programs(prepared):
    """The program of an experiment; one for all tests, for compiling takes all their time."""
    return functools.cache(lambda experiment: build(experiment, prepared))


def trained(program, steps=4):
    """The state after some steps, the losses, and the program."""
    state, batches, losses = program.init(), program.batches(), []
    for _ in range(steps):
        state, metrics = program.step(state, program.place(next(batches)))
        losses.append(float(metrics["train/loss"]))
    return state, losses, program


@pytest.fixture(scope="module")
def reference(programs):
    """A run without dropout, in float32, in whole batches."""
    return trained(programs(STILL))


def arrays(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_validation_is_a_numpy_recomputation_of_the_average_over_the_text(reference, prepared):
    state, _, program = reference
    found = program.evaluate(state)
    stream = prepared.valid
    apply = jax.jit(STILL.model.build().apply)
    nats, count = 0.0, 0
    for start in range(0, len(stream), 16):  # every pair of the stream once, in rows of 16
        row = np.asarray(stream.tokens[start : start + 17], np.int32)
        inputs, targets = row[:-1], row[1:]
        segments = np.searchsorted(stream.starts, start + np.arange(len(inputs)), side="right")
        positions = start + np.arange(len(inputs)) - np.maximum(stream.starts[segments - 1], start)
        place = Tokens(jnp.asarray(positions[None], jnp.int32), jnp.asarray(segments[None], jnp.int32))
        logits = np.asarray(apply({"params": state.average}, jnp.asarray(inputs[None]), place)[0], np.float64)
        log_partition = np.log(np.exp(logits[0]).sum(-1))
        nats += (log_partition - logits[0, np.arange(len(targets)), targets]).sum()
        count += len(targets)
    assert count == len(stream.tokens) - 1
    assert found["valid/loss"] == pytest.approx(nats / count, rel=1e-5)
    text = prepared.valid_path.read_bytes()
    assert found["valid/bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


def test_validation_of_some_batches_is_of_the_first_ones(reference, prepared):
    state, _, program = reference
    limited = dataclasses.replace(STILL, evaluation=Evaluation(batches=2))
    found = build(limited, prepared).evaluate(state)
    assert found != program.evaluate(state)
    two = [valid_batches(prepared.valid, length=16, batch=8)[i] for i in range(2)]
    expected = prepared.metrics(measure(functions(STILL), state.evaluated, two))
    assert found == {f"valid/{name}": value for name, value in expected.items()}


def test_training_learns_and_counts_its_tokens(programs):
    program = programs(STILL)
    _, losses, _ = trained(program, steps=6)
    assert losses == sorted(losses, reverse=True)
    assert program.tokens_per_step == 8 * 16
    assert program.flops_per_step_causal < program.flops_per_step


@pytest.mark.slow
def test_two_fresh_runs_agree_bit_for_bit(programs, prepared):
    (one, losses, _), (other, again, _) = (trained(p) for p in (programs(BASE), build(BASE, prepared)))
    assert losses == again
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_another_seed_is_another_initialisation_another_order_and_other_dropout(programs):
    pair = [programs(BASE), programs(changed(BASE, seed=1))]
    states = [program.init() for program in pair]
    first, second = (next(program.batches()) for program in pair)
    assert not np.array_equal(first["tokens"], second["tokens"])
    table = [state.params["token_embedding"]["table"] for state in states]
    assert not np.array_equal(*table)
    # The same state and the same batch: what is left is dropout.
    copy = jax.tree.map(jnp.copy, states[0])
    (_, one), (_, other) = (
        program.step(state, program.place(first))
        for program, state in zip(pair, (states[0], copy), strict=True)
    )
    assert one["train/loss"] != other["train/loss"]


@pytest.mark.slow
def test_dropout_differs_from_step_to_step(programs):
    program = programs(BASE)
    batch = program.place(next(program.batches()))
    losses = []
    for step in range(3):
        state = dataclasses.replace(program.init(), step=jnp.asarray(step, jnp.int32))
        losses.append(float(program.step(state, batch)[1]["train/loss"]))
    assert len(set(losses)) == 3


def test_micro_batches_are_one_batch(reference, programs):
    state, losses, _ = reference
    other, found, _ = trained(programs(MICRO))
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for path, leaf in arrays(state.params).items():
        np.testing.assert_allclose(arrays(other.params)[path], leaf, atol=2e-4, err_msg=path)


def test_bfloat16_keeps_parameters_and_statistics_in_float32_and_stays_close(reference, programs):
    state, losses, _ = reference
    low = changed(STILL, {"dtype": "bfloat16"})
    other, found, program = trained(programs(low))
    assert losses != found
    np.testing.assert_allclose(found, losses, rtol=2e-3)
    for kind in ("params", "average", "optimizer"):
        floating = [leaf for leaf in arrays(getattr(other, kind)).values() if leaf.dtype.kind not in "iu"]
        assert floating and all(leaf.dtype == np.float32 for leaf in floating)
    batch = program.place(next(program.batches()))
    sums = jax.eval_shape(functions(low).sums, other.params, batch)
    assert {leaf.dtype for leaf in sums.values()} == {np.dtype(np.float32)}
    assert program.evaluate(other)["valid/loss"] == pytest.approx(
        reference[2].evaluate(state)["valid/loss"], rel=1e-2
    )


def spoil(state, *, path: str):
    """The state with one NaN in the parameter at ``path``."""
    return dataclasses.replace(
        state,
        params=jax.tree.map_with_path(
            lambda p, leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan) if path_name(p) == path else leaf,
            state.params,
        ),
    )


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(BASE, id="dropout", marks=pytest.mark.slow), pytest.param(MICRO, id="accumulate")],
)
def test_a_parameter_that_is_not_finite_is_named_and_the_state_stays_as_it_was(programs, experiment):
    path = "stack/blocks/feed_forward/up/kernel"
    program = programs(experiment)
    state = spoil(program.init(), path=path)
    batch = program.place(next(program.batches()))
    before = arrays(state)
    for _ in range(2):
        state, metrics = program.step(state, batch)
        assert not metrics["ok"]
    after = arrays(state)
    assert not after.pop("ok") and before.pop("ok")
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)
    assert program.diagnose(state, batch) == f"parameter {path}"


def test_a_batch_that_is_not_finite_is_told_from_the_parameters(reference):
    state, _, program = reference
    batch = next(program.batches())
    batch["weights"] = np.where(np.arange(16) == 3, np.float32(np.inf), batch["weights"])
    assert program.diagnose(state, program.place(batch)).startswith("gradient of ")
    healthy = program.place(next(program.batches()))
    assert program.diagnose(state, healthy) == "the loss"  # what is left when all of these are finite
