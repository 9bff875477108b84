"""BPE-dropout: without dropout the tokenizer's own tokens, with it other ways to write the same text."""

from __future__ import annotations

import itertools

import pytest

from research.data.bitext import Bitext
from research.data.tokenizer import Tokenizer
from research.errors import UserError

LINES = [f" the {n} cats sat on the mat , and {n * 7} naïve dogs were sitting on it ." for n in range(40)]


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe(LINES, 330)


def test_without_dropout_every_way_is_the_tokenizers_own(bpe):
    segmenter = bpe.segmenter(0.0)
    for line, own in zip(LINES, bpe.encode_batch(LINES), strict=True):
        assert segmenter.ways(line, 3) == [own] * 3


def test_every_way_is_the_same_text_and_few_are_alike(bpe):
    ways = bpe.segmenter(0.3).ways(LINES[3], 16)
    assert {bpe.decode(ids) for ids in ways} == {LINES[3]}
    assert len({tuple(ids) for ids in ways}) > 10


def test_where_every_merge_is_left_out_there_are_bytes(bpe):
    (ids,) = bpe.segmenter(1.0).ways(LINES[0], 1)
    assert len(ids) == len(LINES[0].encode())


def test_merges_of_one_pair_are_left_out_at_the_rate():
    """A vocabulary of one merge: its two letters are one token unless the merge is passed over."""
    bpe = Tokenizer.train_bpe(["ab"] * 9, 258)
    segmenter = bpe.segmenter(0.1)
    # A word's ways are drawn once: a thousand words, each with the pair once.
    words = [f"{n:b}".translate({48: "x", 49: "y"}) + "ab" for n in range(1000)]
    merged = [len(word) > len(ids) for word in words for ids in segmenter.ways(word, 8)]
    assert sum(merged) / len(merged) == pytest.approx(0.9, abs=0.01)


def test_what_is_drawn_can_be_drawn_again(bpe):
    assert bpe.segmenter(0.2).ways(LINES[1], 8) == bpe.segmenter(0.2).ways(LINES[1], 8)


def test_other_tokenizers_are_refused():
    for other in (Tokenizer.train_unigram(LINES, 60), Tokenizer.characters(LINES)):
        with pytest.raises(UserError, match="needs a byte-level BPE tokenizer"):
            other.segmenter(0.1)


def test_a_bitext_has_each_training_pair_in_many_ways_and_validation_in_one(tmp_path):
    names = {side: tmp_path / side for side in ("source", "target")}
    for path in names.values():
        path.write_text("\n".join(line.strip() for line in LINES) + "\n", encoding="utf-8")
    files = {side: str(path) for side, path in names.items()}
    plain = Bitext(corpus="files", **files)
    once, often = (
        text.prepare(vocabulary=330) for text in (plain, Bitext(corpus="files", **files, bpe_dropout=0.2))
    )
    assert len(often.train) == 16 * len(once.train) and len(often.valid) == len(once.valid)
    assert (often.valid.target == once.valid.target).all()
    starts = often.train.target_starts
    texts = [often.tokenizer.decode(often.train.target[a:b]) for a, b in itertools.pairwise(starts)]
    assert len(set(texts)) == len(once.train)  # the same sentences, cut in other ways
