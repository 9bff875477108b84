"""GPT: every choice does what it says, has the parameters counted by hand, and decodes as it reads."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import Tokens
from research.attention.masks import ABSENT
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Rotary, Sinusoidal
from research.models.gpt import GPT
from research.modules import head
from research.training.paths import path_name

TINY = GPT(vocabulary=17, context=16, layers=2, width=16, heads=4, depth="scan")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 17, size=(2, 10)), jnp.int32)
MODERN = dataclasses.replace(
    TINY, positions=Rotary(), norm="rms", feed_forward="swiglu", feed_forward_width=24, bias=False,
    attention=SlidingWindow(qk_norm=True, soft_cap=5.0, window=4), kv_heads=2, tied_head=False,
    logit_soft_cap=3.0,
)  # fmt: skip


def shapes(gpt):
    """Returns {path: shape} of the model's parameters."""
    tree = jax.eval_shape(gpt.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def count(gpt):
    return sum(int(np.prod(shape)) for shape in shapes(gpt).values())


@functools.cache
def variables(gpt):
    """Returns parameters large enough that every part of the model matters."""
    tree = jax.eval_shape(gpt.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), tree)


def logits(gpt, tokens=TOKENS, place=None, **options):
    run = jax.jit(functools.partial(gpt.build().apply, **options))
    return np.asarray(run(variables(gpt), tokens, place)[0])


def test_defaults_are_gpt2_124m():
    assert count(GPT(vocabulary=50257)) == 124_439_808
    sizes = {"layers": 24, "width": 1024, "heads": 16}, {"layers": 36, "width": 1280, "heads": 20}
    assert count(GPT(vocabulary=50257, **sizes[0])) == 354_823_168
    assert count(GPT(vocabulary=50257, **sizes[1])) == 774_030_080
    assert count(GPT(vocabulary=50257, layers=48, width=1600, heads=25)) == 1_557_611_200


def test_parameters_of_a_plain_model():
    assert shapes(TINY) == {
        "token_embedding/table": (17, 16),
        "position_embedding/table": (16, 16),
        "stack/blocks/attention_norm/scale": (2, 16),
        "stack/blocks/attention_norm/bias": (2, 16),
        "stack/blocks/attention/query/kernel": (2, 16, 4, 4),
        "stack/blocks/attention/query/bias": (2, 4, 4),
        "stack/blocks/attention/key/kernel": (2, 16, 4, 4),
        "stack/blocks/attention/key/bias": (2, 4, 4),
        "stack/blocks/attention/value/kernel": (2, 16, 4, 4),
        "stack/blocks/attention/value/bias": (2, 4, 4),
        "stack/blocks/attention/output/kernel": (2, 4, 4, 16),
        "stack/blocks/attention/output/bias": (2, 16),
        "stack/blocks/feed_forward_norm/scale": (2, 16),
        "stack/blocks/feed_forward_norm/bias": (2, 16),
        "stack/blocks/feed_forward/up/kernel": (2, 16, 64),
        "stack/blocks/feed_forward/up/bias": (2, 64),
        "stack/blocks/feed_forward/down/kernel": (2, 64, 16),
        "stack/blocks/feed_forward/down/bias": (2, 16),
        "final_norm/scale": (16,),
        "final_norm/bias": (16,),
    }


def test_parameters_of_a_modern_model():
    assert shapes(MODERN) == {
        "token_embedding/table": (17, 16),
        "stack/blocks/attention_norm/scale": (2, 16),
        "stack/blocks/attention/query/kernel": (2, 16, 4, 4),
        "stack/blocks/attention/key/kernel": (2, 16, 2, 4),
        "stack/blocks/attention/value/kernel": (2, 16, 2, 4),
        "stack/blocks/attention/query_scale": (2, 4),
        "stack/blocks/attention/key_scale": (2, 4),
        "stack/blocks/attention/output/kernel": (2, 4, 4, 16),
        "stack/blocks/feed_forward_norm/scale": (2, 16),
        "stack/blocks/feed_forward/up/kernel": (2, 16, 24),
        "stack/blocks/feed_forward/gate/kernel": (2, 16, 24),
        "stack/blocks/feed_forward/down/kernel": (2, 24, 16),
        "final_norm/scale": (16,),
        "head/kernel": (16, 17),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": Rotary()}, {"positions": Sinusoidal()}, {"positions": None}, {"norm": "rms"},
        {"feed_forward": "relu"}, {"feed_forward": "relu2"},
        {"attention": Softmax(soft_cap=0.5)}, {"attention": SlidingWindow(window=3)},
    ],
)  # fmt: skip
def test_every_choice_changes_the_logits(changes):
    gpt = dataclasses.replace(TINY, **changes)
    plain = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(variables(TINY)["params"])}
    shared = jax.tree.map_with_path(lambda path, _: plain[path_name(path)], variables(gpt)["params"])
    changed, _ = jax.jit(gpt.build().apply)({"params": shared}, TOKENS)
    assert np.abs(np.asarray(changed) - logits(TINY)).max() > 1e-2


def test_logits_are_capped():
    capped = logits(dataclasses.replace(TINY, logit_soft_cap=0.7))
    np.testing.assert_allclose(capped, 0.7 * np.tanh(logits(TINY) / 0.7), atol=1e-5)


def test_a_rotary_base_turns_at_its_own_speed():
    a, b = (dataclasses.replace(TINY, positions=Rotary(base)) for base in (10000.0, 100.0))
    assert np.abs(logits(a) - logits(b)).max() > 1e-3


def test_the_future_and_what_left_the_window_change_nothing():
    gpt = dataclasses.replace(TINY, layers=1, attention=SlidingWindow(window=4), positions=None)
    before = logits(gpt)
    changed = logits(gpt, TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % 17))
    np.testing.assert_array_equal(changed[:, :5], before[:, :5])
    np.testing.assert_array_equal(changed[:, 9:], before[:, 9:])
    assert (changed[:, 5:9] != before[:, 5:9]).any(axis=(0, 2)).all()


@pytest.mark.parametrize("gpt", [TINY, MODERN], ids=["gpt2", "modern"])
def test_packed_documents_equal_separate_ones(gpt):
    lengths = [4, 1, 3]
    positions = np.concatenate([np.arange(n) for n in lengths] + [[0, 0]])
    place = Tokens(
        jnp.asarray(positions, jnp.int32)[None],
        jnp.asarray(np.repeat([1, 2, 3, 0], [*lengths, 2]), jnp.int32)[None],
    )
    packed, start = logits(gpt, TOKENS[:1], place), 0
    for n in lengths:
        alone = logits(gpt, TOKENS[:1, start : start + n])
        np.testing.assert_allclose(packed[:, start : start + n], alone, atol=2e-5)
        start += n


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"positions": Sinusoidal(), "depth": "unroll"}, {"positions": Rotary(), "kv_heads": 1},
        {"positions": None}, {"attention": SlidingWindow(window=3), "kv_heads": 2},
    ],
)  # fmt: skip
def test_cached_logits_equal_those_of_the_full_forward_pass(changes):
    check_cached(dataclasses.replace(TINY, **changes))


def test_cached_logits_of_a_modern_model():
    check_cached(MODERN)


def check_cached(gpt):
    """Prompts of 2 and 5 tokens in rows of 6, then one token at a time to the end."""
    want, lengths = logits(gpt), np.array([2, 5])
    index = np.arange(6)
    place = Tokens(jnp.asarray(np.where(index < lengths[:, None], index, ABSENT), jnp.int32))
    run = jax.jit(gpt.build().apply)
    got, cache = run(variables(gpt), TOKENS[:, :6], place, cache=gpt.empty_cache(2, 6 + 5))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=2e-5, rtol=2e-5)
    for step in range(5):
        here = lengths + step
        token, place = TOKENS[np.arange(2), here][:, None], Tokens(jnp.asarray(here, jnp.int32)[:, None])
        got, cache = run(variables(gpt), token, place, cache=cache)
        np.testing.assert_allclose(got[:, 0], want[np.arange(2), here], atol=2e-5, rtol=2e-5)
    assert int(cache[1].used) == 11


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits():
    gpt = dataclasses.replace(TINY, dtype="bfloat16")
    got, want = logits(gpt), logits(TINY)
    assert got.dtype == np.float32
    assert 1e-4 < np.abs(got - want).max() < 0.05 * np.abs(want).max()
    (keys,), _ = gpt.empty_cache(1, 4)
    assert keys.keys.dtype == jnp.bfloat16 and keys.keys.shape == (2, 1, 4, 4, 4)


def test_dropout_needs_a_key():
    gpt = dataclasses.replace(TINY, dropout=0.2)
    np.testing.assert_array_equal(logits(gpt), logits(TINY))
    assert np.abs(logits(gpt, key=jax.random.key(0)) - logits(TINY)).max() > 1e-2


def test_initialisation_is_gpt2s():
    params = jax.jit(dataclasses.replace(TINY, width=64).build().init)(jax.random.key(0), TOKENS)["params"]
    blocks = params["stack"]["blocks"]
    assert abs(blocks["feed_forward"]["up"]["kernel"].std() - 0.02) < 0.001
    for part in (blocks["attention"]["output"], blocks["feed_forward"]["down"]):
        assert abs(part["kernel"].std() - 0.02 / np.sqrt(2 * 2)) < 0.0005
    assert not blocks["attention"]["query"]["bias"].any() and (blocks["attention_norm"]["scale"] == 1).all()


@pytest.mark.parametrize("changes", [{}, {"tied_head": False, "logit_soft_cap": 2.0}])
def test_scores_in_parts_are_those_of_the_logits(changes, monkeypatch):
    gpt = dataclasses.replace(TINY, **changes)
    targets = jnp.roll(TOKENS, -1, 1)

    def total(params, targets):
        (nats, log_partition), _ = gpt.build().apply({"params": params}, TOKENS, targets=targets)
        return (nats + 0.1 * log_partition).sum(), nats

    params, run = variables(gpt)["params"], jax.grad(total, has_aux=True)
    want = jax.nn.log_softmax(logits(gpt))
    want = -np.take_along_axis(np.asarray(want), np.asarray(targets)[..., None], -1)[..., 0]
    whole, nats = jax.jit(run)(params, targets)
    np.testing.assert_allclose(nats, want, atol=1e-5)
    monkeypatch.setattr(head, "LOGITS", 4 * 2 * 10 * 17 // 5)  # a fifth of them
    parts, nats = jax.jit(lambda *inputs: run(*inputs))(params, targets)
    np.testing.assert_allclose(nats, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), whole, parts)


@pytest.mark.parametrize("engine", ["ring", "cudnn", "splash"])
def test_parameters_are_drawn_whatever_engine_is_to_train_them(engine):
    model = GPT(vocabulary=32, context=16, layers=2, width=16, heads=2)
    other = dataclasses.replace(model, engine=engine)  # none of them serves one row on a CPU
    draw = [m.build().init(jax.random.key(0), jnp.zeros((1, 16), jnp.int32)) for m in (model, other)]
    jax.tree.map(np.testing.assert_array_equal, *draw)
