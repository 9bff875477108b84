"""Long lines in parts: nothing lost, nothing too long, cut where sentences or clauses end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from research.inference.splitting import split_words

TEXT = "A dog barks . It is &quot; loud . &quot; Then , when it is night , it sleeps ; and many more words"


def parts(limit):
    words = TEXT.split()
    return [" ".join(piece) for piece in split_words(words, [1] * len(words), limit)]


def test_parts_end_with_sentences_else_with_clauses_else_anywhere():
    assert parts(100) == [TEXT]
    assert parts(11) == [
        "A dog barks . It is &quot; loud . &quot;",
        "Then , when it is night , it sleeps ;",
        "and many more words",
    ]
    assert parts(5)[0] == "A dog barks ."
    assert parts(3)[:2] == ["A dog", "barks ."]  # the full stop stays with its word
    assert split_words(["word", "x" * 9, "word"], [1, 9, 1], 3) == [["word"], ["x" * 9], ["word"]]
    assert split_words([], [], 3) == []


WORDS = st.lists(st.sampled_from(["a", "b.", ",", '"', "!", "word", "&quot;"]), max_size=30)


@given(WORDS, st.integers(1, 9))
def test_nothing_is_lost_and_nothing_is_longer_than_allowed(words, limit):
    sizes = [len(word) for word in words]
    found = split_words(words, sizes, limit)
    assert [word for piece in found for word in piece] == words
    for piece in found:
        assert piece and (len(piece) == 1 or sum(map(len, piece)) <= limit)
