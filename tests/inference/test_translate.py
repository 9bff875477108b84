"""Translating lines: order, empty and over-long lines, n-best and forced scores, a task learned whole."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.data.bitext import encode
from research.data.buckets import PairBatches, TokenPairs, plan
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import Beam
from research.inference.draws import Draws
from research.inference.sampling import Decoding
from research.inference.translate import Translator
from research.models.seq2seq import Seq2Seq
from research.models.transformer import Transformer
from research.objectives.translation import Translation

LINES = ["b a c", "", "a", "c c b a a b", "   ", "b", "abc " * 40, "c a"]


@functools.cache
def tokenizer():
    return Tokenizer.train_bpe([" a b c"] * 9, 260)


MODELS = {
    "lstm": Seq2Seq(vocabulary=260, context=24, layers=1, width=8, dropout=0.0),
    "transformer": Transformer(
        vocabulary=260, context=24, layers=1, width=8, heads=2, dropout=0.0, engine="reference"
    ),
}


@functools.cache
def translator(name, width=3):
    model, tokens = MODELS[name], jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(model.build().init)(jax.random.key(0), tokens, tokens)["params"]
    params = jax.tree.map(lambda x: x * 2.0, params)
    return Translator(model.decoder(), params, tokenizer(), context=24, search=Beam(width)), params


def fresh(search):
    """A translator of the LSTM that has not read a line."""
    _, params = translator("lstm")
    return Translator(MODELS["lstm"].decoder(), params, tokenizer(), context=24, search=search)


def test_lines_come_back_in_order_whatever_their_lengths():
    model, _ = translator("lstm")
    together = [candidates[0] for candidates in model.translate(iter(LINES))]
    assert len(together) == len(LINES)
    assert together[1].text == together[4].text == ""
    for i in (0, 3, 7):
        alone = next(model.translate([LINES[i]]))[0]
        assert alone.text == together[i].text
        np.testing.assert_allclose(alone.score, together[i].score, rtol=1e-4)
    assert (model.counts.split, model.counts.truncated) == (1, 0)
    assert not any("\n" in candidate.text for candidate in together)


def test_draws_are_those_of_the_seed_and_the_number_of_the_line():
    lines = ["b a c"] * 4
    one, two, more = (
        [found[0].text for found in fresh(Draws(Decoding(), seed)).translate(given)]
        for seed, given in ((0, lines), (1, lines), (0, [*lines, "a", "c"]))
    )
    assert len({*one, *two}) > 4  # a model that has learned nothing says anything
    assert more[:4] == one
    drawn, found = (next(fresh(how).translate(lines))[0] for how in (Draws(Decoding(0.0)), Beam(1, 0.0)))
    assert drawn.text == found.text
    np.testing.assert_allclose(drawn.log_probability, found.log_probability, rtol=1e-4)


@pytest.mark.parametrize("search", [Beam(3), Draws(Decoding(), 5)], ids=["beam", "draws"])
def test_chunks_change_nothing_and_grow(search):
    read, done = [], []
    long = "a b c a b c a b c a b c . b b b a c , c a b c a b ."
    lines = ["b a c", "a", "", long, "b", "c a", "c"]
    one, several = fresh(search), fresh(search)
    found = several.translate((read.append(line) or line for line in lines), first=1, progress=done.append)
    together = list(one.translate(lines))
    for number, (apart, whole) in enumerate(zip(found, together, strict=True)):
        assert len(read) == (1 if number < 1 else 3 if number < 3 else 7)
        assert several.counts.lines == len(read)
        assert [candidate.text for candidate in apart] == [candidate.text for candidate in whole]
    assert one.counts == several.counts and one.counts.split == 1
    # One batch for each chunk, and one for the two parts of the line that is cut; the empty line has none.
    assert len(done) == 4 and done == sorted(done) and done[-1] == 7


def test_what_was_read_before_an_error_is_translated():
    def lines():
        yield from LINES[2:5]
        raise UserError("line 4 is not UTF-8")

    model, found = fresh(Beam(1)), []
    with pytest.raises(UserError, match="line 4"):
        found.extend(candidates[0].text for candidates in model.translate(lines(), first=2))
    assert found == [candidates[0].text for candidates in fresh(Beam(1)).translate(LINES[2:5])]


@pytest.mark.slow
def test_a_long_line_is_its_parts_and_a_long_word_its_beginning():
    model, _ = translator("lstm")
    model.counts.split = model.counts.truncated = 0
    parts = ["a b c a b c a b c a b c .", "b b b a c , c a b c a b ."]
    line, *alone = (found[0] for found in model.translate([" ".join(parts), *parts]))
    assert model.counts.split == 1
    assert line.text == " ".join(one.text for one in alone if one.text)
    np.testing.assert_allclose(line.score, sum(one.score for one in alone), rtol=1e-4)
    cut, whole = (found[0] for found in model.translate(["y" * 40, "y" * 22]))
    assert model.counts.truncated == 1 and cut.text == whole.text


def test_unknown_words_are_those_of_the_source_that_are_attended_to():
    # Every word of the target is unknown, and attention goes to the same place in the source, a character.
    class Copies:
        def encode(self, params, source, place):
            return source, place.segments.sum(1)

        def empty_cache(self, batch, slots):
            return None

        def step(self, params, tokens, memory, place, cache):
            source, lengths = (jnp.repeat(x, len(tokens) // len(x), axis=0) for x in memory)
            at = jnp.minimum(place.positions[:, 0], source.shape[1] - 1)
            begins = jnp.take_along_axis(source, at[:, None], axis=1)[:, 0] == words.encode(" ")[0]
            said = jnp.where(begins, unigram.encode(" ")[0], unigram.unknown)
            said = jnp.where(at < lengths - 1, said, unigram.end_of_text)
            logits = 9.0 * jax.nn.one_hot(said, unigram.vocabulary)
            return logits, jax.nn.one_hot(at, source.shape[1])

        def apart(self, params, cache):
            return params, cache

        def take_rows(self, cache, rows):
            return cache[rows]

        def attention(self, cache):
            return cache

    unigram = Tokenizer.train_unigram([" a b c"] * 9, 12)
    given = ["Oslo a b Rom", "Paris", ""]
    words = Tokenizer.characters("OslabRomPir \t")  # as many pieces as characters
    model = Translator(
        Copies(), {}, unigram, context=64, search=Beam(1), source_tokenizer=words, replace_unknown=True
    )
    assert [found[0].text for found in model.translate(given)] == given
    apart = next(model.translate(["Oslo  a\tb  Rom Paris"]))  # spaces that are no part of a word
    assert apart[0].text == "Oslo a b Rom Paris"
    plain = Translator(Copies(), {}, unigram, context=64, search=Beam(1), source_tokenizer=words)
    assert next(plain.translate(["Paris"]))[0].text == ""


@pytest.mark.parametrize("name", ["lstm", pytest.param("transformer", marks=pytest.mark.slow)])
def test_n_best_scores_are_those_of_forced_decoding(name):
    model, params = translator(name)
    source = encode(tokenizer(), ["b a c"])[0]
    found = model._search(58)(
        params, jnp.array([[*source, 0]], jnp.int32), jnp.array([len(source) + 1], jnp.int32),
        jnp.array([6], jnp.int32),
    )  # fmt: skip
    run = jax.jit(MODELS[name].build().apply)
    for tokens, total in zip(
        np.asarray(found.tokens)[0], np.asarray(found.log_probabilities)[0], strict=True
    ):
        length = tokens.tolist().index(0) + 1
        inputs = jnp.asarray(np.concatenate([[0], tokens[:5]])[None], jnp.int32)
        logs = jax.nn.log_softmax(run({"params": params}, jnp.array([[*source, 0]], jnp.int32), inputs)[0])
        wanted = sum(float(logs[i, tokens[i]]) for i in range(length))
        np.testing.assert_allclose(total, wanted, rtol=1e-4)


@pytest.mark.parametrize("name", ["lstm", pytest.param("transformer", marks=pytest.mark.slow)])
def test_scoring_pairs_is_the_teacher_forced_probability(name, monkeypatch):
    model, params = translator(name)
    pairs = [("b a", "a b c a"), ("c", ""), ("a b a b", "b")]
    run = jax.jit(MODELS[name].build().apply)
    for (left, right), got in zip(pairs, model.score(pairs), strict=True):
        source, target = encode(tokenizer(), [left, right])
        target = [*target, 0]
        source = jnp.array([[*source, 0]], jnp.int32)
        padded = jnp.array([[0, *target, 0, 0, 0, 0, 0][:6]], jnp.int32)
        logs = jax.nn.log_softmax(run({"params": params}, source, padded)[0])
        np.testing.assert_allclose(got, sum(float(logs[i, t]) for i, t in enumerate(target)), rtol=1e-4)
    monkeypatch.setattr("research.inference.translate._ROWS", 2)
    for long, side in ((("a", "a " * 40), "target"), (("a " * 40, "a"), "source")):
        with pytest.raises(UserError, match=rf"line 4 of the {side} has 41 tokens .*; the model takes 24"):
            list(model.score([*pairs, long, ("b " * 50, "b " * 50)]))


def learned(model, texts, wanted, steps):
    """Returns the translator that a model becomes, trained on the pairs."""
    pairs = TokenPairs.of(encode(tokenizer(), texts), encode(tokenizer(), wanted), 0)
    batches = PairBatches(pairs, plan(pairs.widths(), count=1, tokens=384, multiple=8), seed=0)
    objective, module = Translation(0.0), model.build()
    inputs, named = objective.inputs({k: jnp.asarray(v) for k, v in batches[0].items()})
    params = jax.jit(module.init)(jax.random.key(0), *inputs, **named)["params"]
    optimizer = optax.adam(optax.linear_schedule(6e-3, 0.0, steps))
    loss = objective.loss(module.apply)

    @jax.jit
    def step(params, memory, batch):
        gradient, sums = jax.grad(loss, has_aux=True)(params, batch, None)
        gradient = jax.tree.map(lambda g: g / sums["weight"], gradient)
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    memory = optimizer.init(params)
    for i in range(steps):
        params, memory = step(params, memory, batches[i])
    return Translator(model.decoder(), params, tokenizer(), context=32, search=Beam(2))


def right(model, texts, wanted):
    """Returns the share of texts that a translator gets wholly right."""
    found = [candidates[0].text for candidates in model.translate(texts)]
    return np.mean([text == reference for text, reference in zip(found, wanted, strict=True)])


def sentences(count, shortest, longest):
    """Returns random sentences of three words."""
    rng = np.random.default_rng(0)
    words = np.array(["a", "b", "c"])
    return [" ".join(words[rng.integers(0, 3, rng.integers(shortest, longest + 1))]) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_reversing_a_sequence_is_learned_whole(name):
    # Training and decoding have to agree for that, masks, positions and caches included.
    model = (
        Seq2Seq(vocabulary=260, layers=1, dropout=0.0, width=32)
        if name == "lstm"
        else Transformer(vocabulary=260, layers=2, heads=4, dropout=0.0, engine="reference", width=32)
    )
    texts = sentences(600, 2, 5)
    backwards = [" ".join(reversed(text.split())) for text in texts]
    unseen = [i for i in range(536, 600) if texts[i] not in texts[:536]]
    trained = learned(model, texts[:536], backwards[:536], 350)
    assert len(unseen) > 9
    assert right(trained, [texts[i] for i in unseen], [backwards[i] for i in unseen]) == 1.0


@pytest.mark.slow
def test_copying_is_learned_whole_with_attention_and_a_thought_vector_forgets_long_ones():
    texts = sentences(900, 2, 10)
    attentive = Seq2Seq(vocabulary=260, layers=1, dropout=0.0, width=32)
    alone = dataclasses.replace(attentive, attention=None)
    held_out = texts[-64:]
    # Of three words there are few short texts: most of these were among those learned from. No long one was.
    short, long = ([t for t in held_out if len(t.split()) in sizes] for sizes in (range(2, 5), range(9, 11)))
    assert min(len(short), len(long)) > 9 and not {*long} & {*texts[:-64]}
    one, two = (learned(model, texts[:-64], texts[:-64], 350) for model in (attentive, alone))
    assert right(one, held_out, held_out) == 1.0
    assert right(two, short, short) > right(two, long, long) + 0.3
