"""WordPiece: BERT's normalisation, special tokens, and what goes on with a word."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import models

from research.data.tokenizer import Tokenizer
from research.data.wordpiece import SPECIALS, MaskingTokenizer
from research.errors import UserError

TEXT = ["The quick brown fox jumps over the lazy dog. It jumped, jumping quickly; the Café was déjà-vu! " * 5]


@pytest.fixture(scope="module")
def trained():
    return MaskingTokenizer.train(TEXT, 120)


def test_special_tokens_come_first_and_are_known_as_such(trained):
    ids = (trained.padding, trained.unknown, trained.first, trained.separator, trained.mask)
    assert ids == (0, 1, 2, 3, 4)
    assert trained.special.sum() == 5 and trained.special[:5].all()
    assert trained.vocabulary <= 120


def test_text_is_normalised_as_berts(trained):
    assert trained.encode("CAFÉ,the") == trained.encode("cafe , the")
    assert trained.unknown in trained.encode("中")  # not in the training text


def test_special_tokens_in_text_are_ordinary_text(trained):
    assert not trained.special[[i for i in trained.encode("the [SEP] dog") if i != trained.unknown]].any()


def test_what_goes_on_with_a_word_is_marked_as_such(trained):
    ids = trained.encode("quickly jumped")
    words = "".join(f"{'' if trained.continues[i] else ' '}{trained.name_of(i).lstrip('#')}" for i in ids)
    assert words.split() == ["quickly", "jumped"]


def test_agrees_with_an_independent_implementation(trained):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._backend, unk_token="[UNK]", mask_token="[MASK]"
    )
    text = "The foxes' café jumped quickly!"
    assert theirs.encode(text, add_special_tokens=False) == trained.encode(text)
    greedy = []
    for word in ["the", "foxes", "'", "cafe", "jumped", "quickly", "!"]:
        start, pieces = 0, []
        names = {trained.name_of(i) for i in range(trained.vocabulary)}
        while start < len(word):
            prefix = "##" if start else ""
            ends = [e for e in range(len(word), start, -1) if prefix + word[start:e] in names]
            if not ends:
                pieces = ["[UNK]"]
                break
            pieces.append(prefix + word[start : ends[0]])
            start = ends[0]
        greedy += pieces
    assert [trained.name_of(i) for i in trained.encode(text)] == greedy


def test_the_round_trip_through_its_file(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    again = MaskingTokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == trained.to_json() and again.encode(TEXT[0]) == trained.encode(TEXT[0])


def test_training_is_the_same_each_time():
    """Characters as frequent as the last that is kept are chosen by the alphabet, not by a hash table."""
    assert len({MaskingTokenizer.train(TEXT, 120).to_json() for _ in range(50)}) == 1


def test_robertas_names_are_known():
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġa"]
    backend = tokenizers.Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = MaskingTokenizer(backend)
    assert (found.first, found.separator, found.mask, found.mask_name) == (0, 2, 4, "<mask>")
    assert found.continues[5] and not found.continues[6] and not found.continues[:5].any()


def test_a_tokenizer_without_a_mask_is_refused():
    backend = Tokenizer.characters(["abc"]).to_json()
    with pytest.raises(UserError, match=r"no \[PAD\]: masking needs"):
        MaskingTokenizer.from_json(backend)
    with pytest.raises(UserError, match="64 is the least"):
        MaskingTokenizer.train(TEXT, 20)
    assert len(SPECIALS) == 5
