"""The stack decoder against the enumeration of all derivations, and what holds for any sentence."""

import dataclasses
import functools
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from derivations import ENGLISH, MODEL, random_table, random_weights, ranked
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.statistical.decoding import PhraseDecoder
from research.statistical.n_best import derivations
from research.statistical.stack_decoder import Search, search
from research.statistical.translation_options import DEFAULT_WEIGHTS, FEATURES, collect, weight_vector

EVERYTHING = Search(stack=None, candidates=None, options=1000, distortion_limit=None)
table_of = functools.cache(random_table)


@given(
    seed=st.integers(0, 5),
    sentence=st.lists(st.sampled_from([*ENGLISH, "zebra"]), min_size=1, max_size=4),
    limit=st.sampled_from([None, 0, 1, 2, 3]),
)
def test_infinite_beams_find_what_enumeration_finds(seed, sentence, limit):
    table, weights = table_of(seed), random_weights(seed)
    expected = ranked(sentence, table, weights, len(sentence) if limit is None else limit)
    how = dataclasses.replace(EVERYTHING, distortion_limit=limit)
    decoder = PhraseDecoder(table, MODEL, weights, how)
    (found,) = decoder.translate([sentence], n_best=12)
    assert len(found) == min(12, len(expected))
    for one, (score, words, features) in zip(found, expected, strict=False):
        assert one.score == pytest.approx(score, abs=1e-4)
        if one.words == words:  # else a tie
            np.testing.assert_allclose(one.features, features, atol=1e-4)
    assert found[0].words == expected[0][1]


def test_longer_sentences_are_enumerated_too():
    table, weights = table_of(11, longest=2, options=1, share=0.4), random_weights(11)
    sentence = ["the", "house", "is", "small", "he", "goes"]
    for limit in (2, 4, 6):
        expected = ranked(sentence, table, weights, limit)[0]
        how = dataclasses.replace(EVERYTHING, distortion_limit=limit)
        (found,) = PhraseDecoder(table, MODEL, weights, how).translate([sentence])[0]
        assert found.score == pytest.approx(expected[0], abs=1e-4)
        assert found.words == expected[1]


@pytest.mark.parametrize("length", [1, 13, 64, 65, 90])
@pytest.mark.parametrize("limit", [None, 0, 6])
def test_every_word_is_translated_once_within_the_limit(length, limit):
    table, weights = table_of(3), random_weights(3)
    sentence = np.random.default_rng(length).choice([*ENGLISH, "zebra"], length).tolist()
    how = Search(stack=5, candidates=30, distortion_limit=limit)
    (found,) = PhraseDecoder(table, MODEL, weights, how).translate([sentence])[0]
    covered = sorted(word for start, end, _ in found.phrases for word in range(start, end))
    assert covered == list(range(length))
    starts, ends = [start for start, _, _ in found.phrases], [0, *(end for _, end, _ in found.phrases)]
    jumps = [abs(start - end) for start, end in zip(starts, ends, strict=False)]
    assert limit is None or max(jumps) <= limit
    assert found.features[FEATURES.index("distortion")] == -sum(jumps)
    assert found.features[0] == pytest.approx(MODEL.score(found.words), rel=1e-6)
    assert found.score == pytest.approx(found.features @ weight_vector(weights))


def test_derivations_of_a_lattice_are_all_there_the_best_first():
    table, weights = table_of(4), weight_vector(random_weights(4))
    sentence = ["he", "goes", "the", "house"]
    options = collect([sentence], table, MODEL).best(weights, 3)
    lattice = search(options.of(sentence), MODEL, weights, Search(stack=6, candidates=20))

    def paths(node):
        if node == 0:
            return [[]]
        arcs = range(lattice.starts[node], lattice.starts[node + 1])
        return [[*path, arc] for arc in arcs for path in paths(lattice.previous[arc])]

    def score(path):
        node_best = lattice.score[lattice.starts[:-1].clip(max=len(lattice.score) - 1)]
        node_best[0] = 0
        return sum(lattice.score[arc] - node_best[lattice.previous[arc]] for arc in path)

    found = list(derivations(lattice))
    assert sorted(found) == sorted(paths(len(lattice.starts) - 2))
    scores = [score(path) for path in found]
    np.testing.assert_allclose(scores, sorted(scores, reverse=True), atol=1e-9)


def test_a_wider_search_finds_better_translations():
    table, weights = table_of(5), random_weights(5)
    rng = np.random.default_rng(0)
    sentences = [rng.choice(ENGLISH, 7).tolist() for _ in range(6)]

    def total(how):
        return sum(row[0].score for row in PhraseDecoder(table, MODEL, weights, how).translate(sentences))

    exhaustive = total(dataclasses.replace(EVERYTHING, distortion_limit=6, options=20))
    scores = [total(Search(stack=n, candidates=10 * n)) for n in (1, 10, 1000)]
    assert scores == sorted(scores) and scores[0] < exhaustive
    assert scores[-1] == pytest.approx(exhaustive)
    assert total(Search(threshold=1e-9)) <= scores[-1]


def test_order_is_kept_and_processes_change_nothing():
    table, weights = table_of(1), random_weights(1)
    rng = np.random.default_rng(1)
    sentences = [rng.choice([*ENGLISH, "zebra"], n).tolist() for n in rng.integers(0, 7, 80)]
    decoder = PhraseDecoder(table, MODEL, weights, Search(stack=5, candidates=20))
    told = []
    one = decoder.translate(sentences, processes=1, n_best=2)
    two = decoder.translate(sentences, processes=2, n_best=2, progress=told.append)
    assert [[(t.phrases, t.score) for t in row] for row in one] == [
        [(t.phrases, t.score) for t in row] for row in two
    ]
    assert told == sorted(told) and told[-1] == sum(map(bool, sentences))
    for sentence, row in zip(sentences, one, strict=True):
        assert bool(row[0].words) == bool(sentence)
        alone = decoder.translate([sentence])[0][0]
        assert alone.phrases == row[0].phrases


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_stack_decoder import MODEL, PhraseDecoder, Search, random_weights, table_of

def kill(done):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    import multiprocessing
    decoder = PhraseDecoder(table_of(1), MODEL, random_weights(1), Search(stack=5, candidates=20))
    decoder.translate([["the", "house"]] * 200, processes=2, progress=kill)
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    waiting = [int(number) for number in done.stdout.split()]
    assert waiting
    deadline = time.monotonic() + 30
    while waiting and time.monotonic() < deadline:  # no children of this process: nothing tells of their end
        waiting = [number for number in waiting if Path(f"/proc/{number}").exists()]
        time.sleep(0.1)
    assert not waiting


def test_unknown_words_are_copied():
    table = dataclasses.replace(table_of(1), sources={})
    (found,) = PhraseDecoder(table, MODEL, DEFAULT_WEIGHTS).translate([["zebra", "haus"]])[0]
    assert found.words == ("zebra", "haus")
    assert found.features[FEATURES.index("unknown")] == 2


def test_nothing_becomes_nothing():
    decoder = PhraseDecoder(table_of(1), MODEL, DEFAULT_WEIGHTS)
    assert decoder.translate([]) == []
    assert [row[0].words for row in decoder.translate([[], []], n_best=3)] == [(), ()]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (DEFAULT_WEIGHTS | {"word": 1.0}, "unknown feature 'word'; did you mean 'words'"),
        ({"words": 1.0}, "no weight for language_model, distortion"),
        (DEFAULT_WEIGHTS | {"words": float("nan")}, "weight words is nan"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(UserError, match=message):
        PhraseDecoder(table_of(1), MODEL, weights).translate([["the"]])


@pytest.mark.parametrize(
    "setting", [{"stack": 0}, {"options": 0}, {"distortion_limit": -1}, {"threshold": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting)).replace("_", " ")):
        PhraseDecoder(table_of(1), MODEL, DEFAULT_WEIGHTS, Search(**setting)).translate([["the"]])
