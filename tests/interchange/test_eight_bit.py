"""8-bit weights: the error of each matrix, logits, the run on disk, and what is refused."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.cli.main import main
from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.inference.sampling import Decoding, sample, sampler
from research.interchange.runs import make_run
from research.models.gpt import GPT
from research.modules.eight_bit import EightBit
from research.training.eight_bit import quantized
from research.training.experiment import Experiment
from research.training.trained import load

SMALL = GPT(vocabulary=300, context=16, layers=2, width=64, heads=4, kv_heads=2, head_dim=24)


def made(model, path):
    shapes = jax.eval_shape(model.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32), shapes)
    tokenizer = Tokenizer.train_bpe(["Some text."], 260).to_json()
    experiment = Experiment(name="small", model=model, data=TextData(length=16, batch=8))
    make_run(path, experiment, {Tokenizer.FILE: tokenizer}, params, 3)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    made(SMALL, path / "run")
    assert main(["export", str(path / "run"), str(path / "eight"), "--dtype", "int8"]) == 0
    return path / "run", path / "eight"


def test_no_weight_is_off_by_more_than_half_a_step():
    matrix = np.random.default_rng(0).normal(size=(3, 40, 30)).astype(np.float32)
    matrix[:, :, 4] = 0.0  # an output that is 0 throughout
    matrix[:, 0, 5] = 1e4
    found = EightBit.of(jnp.asarray(matrix))
    codes, scale = np.asarray(found.codes), np.asarray(found.scale, np.float64)
    assert codes.dtype == np.int8 and codes.shape == (3, 30, 40) and np.abs(codes).max() == 127
    np.testing.assert_allclose(scale, np.abs(matrix.astype(np.float64)).max(1) / 127, rtol=1e-6)
    error = np.abs(np.asarray(found.kernel(), np.float64) - matrix)
    assert (error <= scale[:, None] / 2 * (1 + 1e-5)).all()
    assert (np.asarray(found.kernel())[:, :, 4] == 0).all()


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_products_are_those_of_the_matrix_that_the_codes_stand_for(rows):
    rng = np.random.default_rng(1)
    one = EightBit.of(jnp.asarray(rng.normal(size=(50, 30)), jnp.float32))
    x = rng.normal(size=(rows, 50)).astype(np.float32)
    want = x.astype(np.float64) @ (np.asarray(one.codes, np.float64) * np.asarray(one.scale)[:, None]).T
    np.testing.assert_allclose(one.apply(jnp.asarray(x)), want, rtol=1e-5, atol=1e-5)


def test_a_run_of_codes_loads_as_floats_near_the_original(runs):
    before, after = (load(path) for path in runs)
    assert jax.tree.structure(before.params) == jax.tree.structure(after.params)
    want = quantized(before.params)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(before.params), jax.tree.leaves(after.params), strict=True
    ):
        exact = "kernel" not in jax.tree_util.keystr(path)
        assert one.dtype == other.dtype and (np.array_equal(one, other) == exact)
    stored = load(runs[1], codes=True).params
    for one, other in zip(jax.tree.leaves(want), jax.tree.leaves(stored), strict=True):
        np.testing.assert_array_equal(one, other)
    tokens = np.random.default_rng(2).integers(0, 300, size=(2, 16)).astype(np.int32)
    logits = [np.asarray(run(tokens)[0]) for run in (before, after)]
    of_codes, _ = jax.jit(SMALL.build().apply)({"params": stored}, tokens)
    np.testing.assert_allclose(of_codes, logits[1], rtol=1e-4, atol=1e-4)
    error = np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max()
    assert 0 < error < 0.03


def test_sampling_reads_the_codes(runs, capsys):
    stored, whole = (load(runs[1], codes=codes).params for codes in (True, False))
    how = Decoding(temperature=0.0)
    prompts = [[5, 6, 7], [8]]
    one, other = (sample(SMALL, params, prompts, tokens=6, how=how) for params in (stored, whole))
    assert one == other and all(len(row) == 6 for row in one)
    assert sample(SMALL, stored, prompts[:1], tokens=6, how=how) == one[:1]
    assert main(["sample", str(runs[1]), "--prompt", "Some", "--tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3


def test_int8_is_refused_where_nothing_is_sampled(runs, tmp_path, capsys):
    assert main(["export", str(runs[0]), str(runs[1]), "--dtype", "int8"]) == 2
    assert "is a run already" in capsys.readouterr().err
    assert main(["export", str(runs[0]), str(tmp_path / "x"), "--dtype", "int4"]) == 2
    assert "--dtype int4: float32, bfloat16, float16 or int8" in capsys.readouterr().err


def test_the_loop_over_tokens_reads_codes_not_what_they_were_widened_to():
    generate = sampler(SMALL.build().apply, SMALL.empty_cache, tokens=4, how=Decoding(0.0), stop=())
    shapes = jax.eval_shape(SMALL.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    blocks = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes["stack"]))
    bytes_ = []
    for params in (shapes, jax.eval_shape(quantized, shapes)):
        prompt, length = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        compiled = generate.lower(params, prompt, length, key).compile()
        bytes_.append(compiled.memory_analysis().temp_size_in_bytes)
    assert bytes_[0] - bytes_[1] > 0.5 * blocks  # temporaries: the layers apart, in their own dtype
