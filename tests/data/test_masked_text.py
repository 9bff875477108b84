"""Text as packed rows and as pairs: every token once, whole documents where they fit, batches by number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from research.data.masked_rows import MaskedBatches, PackedRows, PairRows, train_batches
from research.data.masked_text import MaskedText
from research.data.masking import Kinds, Masking
from research.data.sentences import Sentences, pack, split_sentences
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError

LENGTH = 24


@pytest.fixture(scope="module")
def documents():
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdef"), 4)) for _ in range(60)]

    def sentence():
        return " ".join(random.choice(words, random.integers(3, 9))).capitalize() + "."

    return [" ".join(sentence() for _ in range(random.integers(1, 12))) for _ in range(80)]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return MaskingTokenizer.train(documents, 150)


@pytest.fixture(scope="module")
def text(documents, tokenizer):
    return Sentences.of(documents, tokenizer)


@pytest.fixture(scope="module")
def packed(text, tokenizer):
    return PackedRows.of(text, tokenizer, LENGTH)


def kinds(tokenizer):
    return Kinds(tokenizer.mask, tokenizer.special, tokenizer.continues)


def test_white_space_alone_makes_no_rows(tokenizer):
    with pytest.raises(UserError, match="nothing but white space"):
        PackedRows.of(Sentences.of([" \n\n "], tokenizer), tokenizer, LENGTH)


def test_sentences_end_where_a_reader_says():
    text = 'Mr. Smith left. "Why?" he asked (twice!) Then: nothing.\n\nA title\n\nIt cost 3.50. Yes'
    expected = ["Mr. Smith left.", '"Why?" he asked (twice!)', "Then: nothing.", "A title", "It cost 3.50."]
    assert split_sentences(text) == [*expected, "Yes"]


def test_every_token_is_in_the_rows_once_and_documents_are_not_mixed(documents, tokenizer, packed):
    pieces = []
    for tokens, segments in zip(packed.tokens, packed.segments, strict=True):
        assert (np.diff(segments[segments > 0].astype(int)) >= 0).all()  # padding, if any, is at the end
        assert (tokens[segments == 0] == tokenizer.padding).all()
        for segment in range(1, segments.max() + 1):
            piece = tokens[segments == segment].tolist()
            assert (piece[0], piece[-1]) == (tokenizer.first, tokenizer.separator)
            pieces.append(tuple(piece[1:-1]))
    whole = [tuple(tokenizer.encode(document)) for document in documents]
    assert sum(map(len, pieces)) == sum(map(len, whole))
    for document in whole:
        if len(document) <= LENGTH - 2:
            assert document in pieces
        else:  # its first piece begins it
            assert any(document[: len(piece)] == piece for piece in pieces if len(piece) > LENGTH // 2)


def test_without_packing_a_row_is_one_piece_and_padding(documents, tokenizer, text, packed):
    rows = PackedRows.of(text, tokenizer, LENGTH, packed=False)
    sizes = (rows.segments > 0).sum(1)
    assert rows.segments.max() == 1 and len(rows) == sum(map(int, packed.segments.max(1)))
    for row, size in zip(rows.tokens, sizes, strict=True):
        assert row[0] == tokenizer.first and row[size - 1] == tokenizer.separator
        assert (row[size:] == tokenizer.padding).all()
    whole = [tokenizer.encode(document) for document in documents]
    assert sizes.sum() - 2 * len(rows) == sum(map(len, whole))
    assert rows.fill == pytest.approx(sizes.sum() / rows.tokens.size) and rows.fill < packed.fill
    assert list(MaskedText(packed=False, pairs="order").problems()) == [
        'data.pairs "order" has rows of its own: leave out data.packed false'
    ]


def test_sentences_can_be_read_alone(documents, tokenizer, text):
    rows = PackedRows.of(text.alone(), tokenizer, LENGTH)
    found = [
        row[segments == i].tolist()[1:-1]
        for row, segments in zip(rows.tokens, rows.segments, strict=True)
        for i in range(1, segments.max() + 1)
    ]
    sentences = [tokenizer.encode(s) for document in documents for s in split_sentences(document)]
    short = [ids for ids in sentences if len(ids) <= LENGTH - 2]
    assert len(short) > 100 and all(ids in found for ids in short)
    assert len(found) == len(short) + sum(
        -(-len(ids) // (LENGTH - 2)) for ids in sentences if ids not in short
    )


def test_long_documents_are_cut_between_words(text, tokenizer):
    borders = list(text.pieces(LENGTH - 2, tokenizer.continues))
    assert all(0 < end - begin <= LENGTH - 2 for begin, end in borders)
    assert not any(tokenizer.continues[text.tokens[begin]] for begin, _ in borders)
    assert [begin for begin, _ in borders[1:]] == [end for _, end in borders[:-1]]


def test_packing_is_best_fit():
    assert pack(np.array([5, 3, 6, 4, 2]), 8) == [[2, 4], [0, 1], [3]]
    random = np.random.default_rng(1)
    sizes = random.integers(2, 30, 500)
    rows = pack(sizes, 32)
    assert sorted(piece for row in rows for piece in row) == list(range(500))
    assert max(sizes[row].sum() for row in rows) <= 32
    room: list[int] = []  # best fit, longest first, as it is defined
    for size in sorted(sizes.tolist(), reverse=True):
        fitting = [(left, row) for row, left in enumerate(room) if left >= size]
        if not fitting:
            room.append(32)
        row = min(fitting)[1] if fitting else -1
        room[row] -= size
    assert sorted(32 - left for left in room) == sorted(sizes[row].sum() for row in rows)


def test_batches_depend_on_seed_and_number_alone(packed, tokenizer):
    def batches(**keywords):
        return train_batches(packed, Masking(), kinds(tokenizer), batch=8, seed=3, **keywords)

    straight = batches()
    seen = [next(straight) for _ in range(3 * len(packed) // 8)]
    resumed = batches()
    next(resumed)
    state = resumed.get_state()
    again = batches()
    again.set_state(state)
    halves = [batches(process_index=i, process_count=2) for i in range(2)]
    for expected in seen[1:4]:
        for name, array in next(again).items():
            np.testing.assert_array_equal(array, expected[name])
    for expected in seen[:4]:
        parts = [next(half) for half in halves]
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected[name])
    again.set_state(halves[1].get_state())  # which counts whole batches
    np.testing.assert_array_equal(next(again)["tokens"], seen[4]["tokens"])
    # Masks are drawn anew each epoch: the row that comes first has other gaps when it comes again.
    restored = [row for batch in seen for row in zip(original(batch), batch["tokens"], strict=True)]
    first = [gaps for row, gaps in restored if (row == restored[0][0]).all()]
    assert len(first) == 3 and len({gaps.tobytes() for gaps in first}) > 1


def original(batch):
    tokens = batch["tokens"].copy()
    row, column = np.nonzero(batch["weights"])
    tokens[row, batch["selected"][row, column]] = batch["targets"][row, column]
    return tokens


def test_validation_has_every_row_once_with_the_same_gaps(packed, tokenizer):
    def batches():
        return MaskedBatches(packed, Masking(), kinds(tokenizer), batch=16)

    first, second = list(batches()), list(batches())
    for one, other in zip(first, second, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    rows = np.concatenate([original(batch) for batch in first])
    np.testing.assert_array_equal(rows[: len(packed)], packed.tokens)
    assert not np.concatenate([batch["segments"] for batch in first])[len(packed) :].any()
    assert not np.concatenate([batch["weights"] for batch in first])[len(packed) :].any()


@pytest.mark.parametrize("other", [True, False], ids=["next", "order"])
def test_half_of_the_pairs_are_true(text, tokenizer, other):
    rows = PairRows(text, tokenizer, LENGTH, other=other)
    numbers = np.resize(np.arange(len(rows)), 2000)
    batch = rows.rows(numbers, np.random.default_rng(0).random((2000, 4)))
    assert np.mean(batch["pair"]) == pytest.approx(0.5, abs=0.05)
    stream = {}  # where each sequence of tokens stands
    documents = [
        text.tokens[text.sentences[a] : text.sentences[b]].tolist()
        for a, b in zip(text.documents[:-1], text.documents[1:], strict=True)
    ]

    def homes(part):
        key = tuple(part)
        if key not in stream:
            at = [
                (d, i)
                for d, doc in enumerate(documents)
                for i in range(len(doc))
                if doc[i : i + len(part)] == part
            ]
            stream[key] = at
        return stream[key]

    for row in range(300):
        tokens, types = batch["tokens"][row], batch["types"][row]
        size = int(batch["segments"][row].sum())
        a, b = (
            tokens[1:size][types[1:size] == 0][:-1].tolist(),
            tokens[:size][types[:size] == 1][:-1].tolist(),
        )
        assert tokens[0] == tokenizer.first and tokens[size - 1] == tokens[len(a) + 1] == tokenizer.separator
        assert a and b and not types[size:].any()
        follows = any((d, i + len(a)) in homes(b) for d, i in homes(a))
        if not batch["pair"][row]:
            assert follows
        elif other:
            assert any(d != e for d, _ in homes(a) for e, _ in homes(b))
        else:
            assert any((d, i + len(b)) in homes(a) for d, i in homes(b))


@pytest.mark.slow
def test_the_prose_of_python_fills_rows_to_97_percent():
    data = MaskedText(source="python-prose", length=128, batch=4)
    said = []
    prepared = data.prepare(vocabulary=2048, report=said.append)
    assert prepared.train.fill >= 0.97
    assert f"{100 * prepared.train.fill:.1f} % of them real tokens" in said[-1]
    share = {"process_index": 0, "process_count": 1}
    batch = next(prepared.train_batches(seed=0, **share))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == data.shapes()
    assert len(prepared.train) > 2000 and len(prepared.valid) > 100


def test_text_of_which_nothing_can_be_hidden_is_one_line(tmp_path, tokenizer):
    # Of one word the vocabulary has nothing: every token is [UNK], which is never hidden.
    path = tmp_path / "text.txt"
    path.write_text("0 1 2 3 4 5 6 7 8 9 " * 30)
    tokenizer.save(tmp_path / "tokenizer.json")
    data = MaskedText(
        source="files", path=str(path), split="tail", tokenizer=str(tmp_path / "tokenizer.json"), length=8,
        batch=2,
    )  # fmt: skip
    prepared = data.prepare(vocabulary=150)
    batches = prepared.valid_batches(process_index=0, process_count=1)
    weight = sum(float(batches[i]["weights"].sum()) for i in range(len(batches)))
    with pytest.raises(UserError, match=r"no token that can be hidden: all are special, such as \[UNK\]"):
        prepared.metrics({"weight": weight, "loss": 0.0, "accuracy": 0.0})


def test_one_document_cannot_make_pairs_of_two(tmp_path, documents):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(documents))
    data = MaskedText(source="files", path=str(path), split="tail", length=LENGTH, batch=2, pairs="next")
    with pytest.raises(UserError, match="at least two documents"):
        data.prepare(vocabulary=150)
    order = dataclasses.replace(data, pairs="order").prepare(vocabulary=150)
    assert order.valid_batches(process_index=0, process_count=1)[0]["pair"].shape == (2,)


def test_what_is_too_small_or_does_not_fit_is_said(packed, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"it makes \d+ rows of length 24, fewer than one batch of 9999"):
        train_batches(packed, Masking(), kinds(tokenizer), batch=9999, seed=0)
    tokenizer.save(tmp_path / "tokenizer.json")
    data = MaskedText(source="python-prose", tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"use --model\.vocabulary 1"):
        data.prepare(vocabulary=100)
    with pytest.raises(UserError, match=r"data.tokenizer 'wordpeice' is no file .* did you mean 'wordpiece'"):
        MaskedText(source="python-prose", tokenizer="wordpeice").prepare(vocabulary=100)
    assert list(MaskedText(masked=0.8, random=0.4).problems())
