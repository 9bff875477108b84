"""Tokenizers make the round trip and never parse text as special tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.tokenizer import END_OF_TEXT, Tokenizer, cut
from research.errors import UserError

CORPUS = [
    "def f(x):\n    return x + 1\n" * 20,
    "Ünïcödé and naïve café; 漢字かな 🤖\r\n\t",
    "the cat sat on the mat. " * 30,
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.sampled_from(
    [
        "",
        " ",
        "\n\n \t\r\n",
        END_OF_TEXT,
        f"a{END_OF_TEXT}b",
        "\x00\x01\x7f",
        "e\u0301",
        "\ufeffBOM",
        "👩\u200d🚀",
        "\U0010ffff",
    ]
)


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe(CORPUS, 300)


@given(text=TEXT)
def test_bpe_round_trip_of_any_text(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.end_of_text not in ids
    assert all(0 <= i < bpe.vocabulary for i in ids)


LINES = st.text(st.sampled_from("ab1.'_ \n\t\r\x1c\x85\u2028é漢s"), max_size=120)


@given(text=LINES, size=st.integers(1, 20))
def test_pieces_encode_as_the_whole(bpe, text, size):
    pieces = cut(text, size)
    assert "".join(pieces) == text
    assert [i for ids in bpe.encode_batch(pieces) for i in ids] == bpe.encode(text)


def test_visible_lines_are_cut_and_others_are_not():
    assert cut("ab\ncd\nef\ngh", 3) == ["ab\ncd\n", "ef\ngh"]
    assert cut("ab\n\ncd\n ef", 1) == ["ab\n\ncd\n ef"]


def test_bpe_learns_merges_and_stays_within_the_vocabulary(bpe):
    assert 257 < bpe.vocabulary <= 300
    assert len(bpe.encode(CORPUS[0])) < len(CORPUS[0].encode()) / 1.5
    assert Tokenizer.train_bpe([], 257).vocabulary == 257  # bytes and end of text, nothing more


def test_bpe_training_is_deterministic(bpe):
    assert Tokenizer.train_bpe(CORPUS, 300).to_json() == bpe.to_json()


def test_batches_agree_with_single_texts_and_special_ids_are_left_out(bpe):
    assert bpe.encode_batch(CORPUS) == [bpe.encode(text) for text in CORPUS]
    assert bpe.decode([bpe.end_of_text, *bpe.encode("a b"), bpe.end_of_text]) == "a b"


def test_too_small_a_vocabulary():
    with pytest.raises(UserError, match=r"256 bytes .*: 256 tokens are too few, 257 is the least"):
        Tokenizer.train_bpe(CORPUS, 256)


@given(text=st.text(st.sampled_from(sorted(set("".join(CORPUS))))))
def test_characters_one_token_each(text):
    tokenizer = Tokenizer.characters(CORPUS)
    assert tokenizer.vocabulary == len(set("".join(CORPUS))) + 1
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_characters_end_of_text_in_text_is_text():
    tokenizer = Tokenizer.characters([END_OF_TEXT])
    ids = tokenizer.encode(END_OF_TEXT)
    assert len(ids) == len(END_OF_TEXT)
    assert tokenizer.end_of_text not in ids


def test_unknown_character_is_named(tmp_path):
    tokenizer = Tokenizer.characters(["abc"])
    tokenizer.save(tmp_path / "tokenizer.json")
    for same in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        with pytest.raises(
            UserError, match=r"character 'é' \(number 3 of the text\) is not among the 3 char"
        ):
            same.encode("abé")


def test_lone_surrogate_is_the_users_error(bpe):
    with pytest.raises(UserError, match=r"not valid Unicode: '\\udc80' at character 1"):
        bpe.encode("a\udc80")


@pytest.mark.parametrize(
    "make", [lambda: Tokenizer.train_bpe(CORPUS, 300), lambda: Tokenizer.characters(CORPUS)]
)
def test_save_and_load(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.to_json() == tokenizer.to_json()
    assert (loaded.vocabulary, loaded.end_of_text) == (tokenizer.vocabulary, tokenizer.end_of_text)
    for text in CORPUS:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def test_load_errors(tmp_path):
    with pytest.raises(UserError, match="no tokenizer file at"):
        Tokenizer.load(tmp_path / "missing.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(UserError, match=r"bad\.json is not a tokenizer\.json"):
        Tokenizer.load(bad)
    tree = json.loads(Tokenizer.characters(["ab"]).to_json())
    tree["added_tokens"], tree["model"]["vocab"] = [], {"a": 0, "b": 1}
    bad.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="no end-of-text token"):
        Tokenizer.load(bad)
