"""KenLM as the decoder's language model, against our own reader of the same file."""

import pickle

import numpy as np
import pytest
from derivations import ENGLISH, GERMAN, MODEL, TEXT, random_table, random_weights

from research.errors import UserError
from research.statistical.arpa import read_arpa, write_arpa
from research.statistical.decoding import PhraseDecoder
from research.statistical.kenlm_model import KenlmModel
from research.statistical.language_model import LanguageModel
from research.statistical.ngram_model import estimate
from research.statistical.stack_decoder import Search

pytest.importorskip("kenlm")
WORDS = [*GERMAN, "unheard"]


@pytest.fixture(scope="module", params=[2, 3, 5])
def both(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("kenlm") / "lm.arpa"
    write_arpa(estimate([line.split() for line in TEXT], request.param), path)
    return read_arpa(path), KenlmModel(path)


def walk(model, sentences):
    """Returns the log-probability of each word, and the state after it, of sentences side by side."""
    states, scores, after = np.full(len(sentences), model.begin, np.int32), [], []
    for column in zip(*sentences, strict=True):
        found, states = model.advance(states, model.ids(column))
        scores.append(found)
        after.append(states)
    ends, _ = model.advance(states, np.full(len(states), model.end, np.int32))
    return np.array([*scores, ends]), np.array(after)


def test_scores_are_those_of_our_reader_and_states_are_the_same_contexts(both):
    _, theirs = both
    assert isinstance(theirs, LanguageModel)
    rng = np.random.default_rng(0)
    sentences = [rng.choice(WORDS, 9).tolist() for _ in range(40)]
    sentences += [(line.split() * 3)[:9] for line in TEXT]
    (expected, one), (found, two) = (walk(model, sentences) for model in both)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)  # KenLM adds up in single precision
    states = np.unique(np.stack([one.ravel(), two.ravel()]), axis=1).shape[1]
    assert states == len(np.unique(one)) == len(np.unique(two))
    ids = theirs.ids(["das", "<s>", "</s>", "<unk>", "unheard", "das"])
    assert ids[0] == ids[5] != ids[1] and len(set(ids[1:5].tolist())) == 1


def test_another_process_goes_on_with_the_numbers_of_the_first(both):
    _, model = both
    states = walk(model, [["das", "haus", "geht"], ["er", "unheard", "haus"]])[1].ravel()
    copy = pickle.loads(pickle.dumps(model))
    assert len(states) and copy.begin == model.begin
    words = model.ids(GERMAN)
    np.testing.assert_array_equal(copy.ids(GERMAN), words)
    for state in {0, model.begin, *states.tolist()}:
        queries = (np.full(len(words), state, np.int32), words)
        for mine, other in zip(model.advance(*queries), copy.advance(*queries), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_numbers_of_a_sentence_are_forgotten_and_those_before_it_stay(tmp_path):
    write_arpa(MODEL, tmp_path / "lm.arpa")
    model = KenlmModel(tmp_path / "lm.arpa")
    das, haus = model.ids(["das", "haus"])
    _, (kept,) = model.advance(np.array([model.begin]), np.array([das]))
    with model.temporary():
        _, (first,) = model.advance(np.array([kept]), np.array([haus]))
    with model.temporary():
        _, (again,) = model.advance(np.array([0]), np.array([haus]))
        _, (same,) = model.advance(np.array([model.begin]), np.array([das]))
    assert first == again and same == kept
    assert model.advance(np.zeros(0, np.int32), np.zeros(0, np.int32))[0].shape == (0,)


def test_translations_are_those_of_our_reader_in_any_number_of_processes(tmp_path):
    write_arpa(MODEL, tmp_path / "lm.arpa")
    table, weights, how = random_table(1), random_weights(1), Search(stack=5, candidates=20)
    rng = np.random.default_rng(1)
    sentences = [rng.choice([*ENGLISH, "zebra"], n).tolist() for n in rng.integers(0, 7, 70)]
    models = read_arpa(tmp_path / "lm.arpa"), KenlmModel(tmp_path / "lm.arpa")
    ours, theirs = (PhraseDecoder(table, model, weights, how) for model in models)
    expected = ours.translate(sentences, processes=1, n_best=2)
    for processes in (1, 2):
        found = theirs.translate(sentences, processes=processes, n_best=2)
        assert [[one.words for one in row] for row in found] == [[t.words for t in row] for row in expected]
        for row, same in zip(found, expected, strict=True):
            assert [one.score for one in row] == pytest.approx([one.score for one in same], abs=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("hello\n", 'first non-empty line was "hello" not \\data\\.'),
        ("mmap lm http://kheafield.com/code format version 5\n\0" + "\0" * 100, "Try rebuilding the binary"),
    ],
)
def test_a_file_that_kenlm_cannot_read_is_one_line(tmp_path, content, words):
    path = tmp_path / "lm.binary"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        KenlmModel(path)
    assert str(error.value).startswith(f"KenLM cannot read {path}: ") and words in str(error.value)
    assert "\n" not in str(error.value) and "threw" not in str(error.value)
