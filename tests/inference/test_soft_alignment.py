"""Attention that is told: against NumPy, against a token at a time, and as alignments of words."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Tokens
from research.attention.mechanisms import Geometry
from research.data.bitext import encode
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import Beam, beam_search
from research.inference.soft_alignment import SoftAligner, attention_of, likeliest_links, of_words
from research.models.seq2seq import Seq2Seq
from research.models.transformer import Transformer
from research.modules.attention import AttentionSpec, MultiHeadAttention

MODELS = {
    "lstm": Seq2Seq(vocabulary=260, context=24, layers=1, width=8, dropout=0.0),
    "transformer": Transformer(
        vocabulary=260, context=24, layers=2, width=8, heads=2, dropout=0.0, engine="reference"
    ),
}
RNG = np.random.default_rng(0)


@functools.cache
def tokenizer():
    return Tokenizer.train_bpe([" a b c"] * 9, 260)


@functools.cache
def parameters(name):
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(MODELS[name].build().init)(jax.random.key(0), tokens, tokens)["params"]
    return jax.tree.map(lambda x: x * 3.0, params)


def test_the_weights_of_cross_attention_are_those_of_the_paper():
    geometry = Geometry(width=6, heads=4, kv_heads=2, head_dim=3, context=8)
    spec = AttentionSpec(geometry, engine="reference", tells=True)
    x, memory = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((4, 3, 6), (2, 5, 6)))
    place = Tokens.of_lengths(jnp.array([5, 2], jnp.int32), 5)
    module = MultiHeadAttention(spec)
    params = jax.jit(module.init)(jax.random.key(1), x, memory=memory, memory_tokens=place)["params"]
    params = jax.tree.map(lambda leaf: leaf * 40.0, params)
    out, read = module.apply({"params": params}, x, memory=memory, memory_tokens=place)
    plain, _ = MultiHeadAttention(dataclasses.replace(spec, tells=False)).apply(
        {"params": params}, x, memory=memory, memory_tokens=place
    )
    np.testing.assert_array_equal(out, plain)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    wanted = np.zeros((4, 3, 5))
    for row in range(4):  # rows 0 and 1 read memory 0, rows 2 and 3 memory 1
        words = 5 if row < 2 else 2
        for head in range(4):
            q = np.asarray(x[row]) @ p["query"]["kernel"][:, head] + p["query"]["bias"][head]
            k = np.asarray(memory[row // 2, :words]) @ p["key"]["kernel"][:, head // 2]
            scores = np.exp(q @ (k + p["key"]["bias"][head // 2]).T / 3**0.5)
            wanted[row, :, :words] += scores / scores.sum(1, keepdims=True) / 4
    np.testing.assert_allclose(read.weights, wanted, atol=2e-6)


@pytest.mark.slow
def test_a_transformer_that_tells_says_the_same_and_every_layer_can_be_read():
    source = jnp.asarray(RNG.integers(0, 260, (2, 5)), jnp.int32)
    lengths = jnp.array([5, 3], jnp.int32)
    model, params = MODELS["transformer"], parameters("transformer")
    limits = jnp.array([6, 6], jnp.int32)
    plain, telling = (
        beam_search(model.decoder(layer), Beam(2), slots=6, end=0)(params, source, lengths, limits)
        for layer in (None, -2)
    )
    np.testing.assert_array_equal(plain.tokens, telling.tokens)
    targets = jnp.concatenate([jnp.zeros((2, 1), jnp.int32), plain.tokens[:, 0, :-1]], axis=1)
    layers = [
        np.asarray(attention_of(model.decoder(layer))(params, source, lengths, targets)) for layer in (0, 1)
    ]
    assert not np.allclose(*layers, atol=1e-3)
    for weights in layers:
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
        assert not weights[1, :, 3:].any()
    assert model.decoder(-2).layer == 0 and model.decoder(-9).layer == 0


def test_pieces_become_words_by_sums_of_sources_and_means_of_targets():
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.1], [0.0, 0.6, 0.2, 0.2], [9.0, 9, 9, 9]])
    found = of_words(weights, [2, 1], [1, 2])  # the last column and row are the end of text
    np.testing.assert_allclose(found, [[0.3, 0.3], [0.6, 0.25]])
    assert likeliest_links(np.array([[0.1, 0.3], [0.6, 0.25], [0.2, 0.7]])) == {(1, 0), (0, 1), (1, 2)}
    assert likeliest_links(of_words(np.ones((1, 1)), [], [])) == set()


def test_alignments_do_not_depend_on_the_batch_and_long_pairs_are_refused():
    aligner = SoftAligner(
        MODELS["lstm"].decoder(), parameters("lstm"), (tokenizer(), tokenizer()), context=24
    )
    pairs = [("ab c", "c a b"), ("b", "a"), ("a b c cc", "bb"), ("", "a")]
    sources, targets = ([side.split() for side in sides] for sides in zip(*pairs, strict=True))
    together = aligner.align(sources, targets)
    for n in (0, 2):
        alone = aligner.align(sources[n : n + 1], targets[n : n + 1])[0]
        np.testing.assert_allclose(alone, together[n], atol=1e-6)
        assert alone.shape == (len(targets[n]), len(sources[n]))
    assert together[3].shape == (1, 0) and aligner.align([], []) == []
    # By hand: the state's weights after each token, pieces put together.
    decoder, params = MODELS["lstm"].decoder(), parameters("lstm")
    pieces = [encode(tokenizer(), side) for side in (sources[0], targets[0])]
    flat = [[*(token for word in side for token in word), 0] for side in pieces]
    memory = decoder.encode(params, jnp.array([flat[0]], jnp.int32), Tokens.arange(len(flat[0])))
    cache, rows = None, []
    for i, token in enumerate([0, *flat[1][:-1]]):
        place = Tokens(jnp.full((1, 1), i, jnp.int32))
        _, cache = decoder.step(params, jnp.array([[token]], jnp.int32), memory, place, cache)
        rows.append(np.asarray(cache.weights)[0])
    wanted = of_words(np.stack(rows), *([len(word) for word in side] for side in pieces))
    np.testing.assert_allclose(together[0], wanted, atol=1e-5)
    with pytest.raises(UserError, match="sentence pair 2 has 41 tokens; the model takes 24"):
        aligner.align([["a"], ["a"] * 40], [["b"], ["b"]])
