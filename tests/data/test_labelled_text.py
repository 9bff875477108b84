"""Labelled text from files and in GLUE's own format: rows, labels, and what is wrong with a file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from research.data.labelled_text import LabelledText
from research.errors import UserError

ROWS = [
    ("card is lost", "lost"),
    ("where is my card", "late"),
    ('the "card"', "late"),
    ("lost, again", "lost"),
]
SHARE = {"process_index": 0, "process_count": 1}


def write(path, rows, header="text,label"):
    separator = "," if path.suffix == ".csv" else "\t"
    quoted = [
        [f'"{x.replace(chr(34), chr(34) * 2)}"' if separator == "," else x for x in row] for row in rows
    ]
    path.write_text("\n".join([header.replace(",", separator), *(separator.join(row) for row in quoted)]))
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_rows_are_texts_between_special_tokens_with_their_labels(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "label": label}) for t, label in ROWS))
    else:
        write(path, ROWS)
    data = LabelledText(path=str(path), valid_path=str(path), length=24, batch=3)
    prepared = data.prepare(vocabulary=120)
    assert prepared.names == ("late", "lost") and json.loads(prepared.files()["labels.json"]) == [
        "late",
        "lost",
    ]
    first, last = prepared.valid_batches(**SHARE)
    narrow = dataclasses.replace(data, length=8)  # a batch is as wide as its longest row needs
    assert {name: (a.shape, a.dtype.name) for name, a in first.items()} == narrow.shapes()
    assert first["labels"].tolist() == [1, 0, 0] and last["labels"].tolist() == [1, 0, 0]
    assert last["weights"].tolist() == [1.0, 0.0, 0.0] and not last["segments"][1:].any()
    tokenizer = prepared.tokenizer
    for row, (text, _) in enumerate(ROWS[:3]):
        real = first["tokens"][row][first["segments"][row] > 0].tolist()
        assert real == [tokenizer.first, *tokenizer.encode(text), tokenizer.separator]
    train = prepared.train_batches(seed=0, **SHARE)
    seen = [next(train)["tokens"] for _ in range(4)]  # three epochs of four rows
    rows, counts = np.unique(np.concatenate(seen), axis=0, return_counts=True)
    assert len(rows) == 4 and (counts == 3).all()


def test_rows_of_a_batch_are_about_as_long_and_an_epoch_has_each_once(tmp_path):
    rows = [(" ".join(f"w{i}" for i in range(1 + number % 37)), "ab"[number % 2]) for number in range(400)]
    path = write(tmp_path / "data.csv", rows)
    data = LabelledText(path=path, valid_path=path, length=120, batch=10)
    prepared = data.prepare(vocabulary=200)
    train = prepared.train_batches(seed=0, **SHARE)
    epoch = [next(train) for _ in range(40)]
    widths = [batch["tokens"].shape[1] for batch in epoch]
    assert set(widths) <= {32, 64, 120} and sum(widths) < 0.75 * 40 * max(widths)
    lengths = np.concatenate([batch["segments"].sum(1) for batch in epoch])
    assert sorted(lengths) == sorted(prepared.train.lengths)
    assert widths != sorted(widths) and widths != [next(train)["tokens"].shape[1] for _ in range(40)]
    halves = [prepared.train_batches(seed=0, process_index=i, process_count=2) for i in range(2)]
    for batch in epoch:
        joined = np.concatenate([next(half)["tokens"] for half in halves])
        np.testing.assert_array_equal(joined, batch["tokens"])


def test_rows_shorter_than_the_narrowest_width_are_no_wider_than_they_may_be(tmp_path):
    path = write(tmp_path / "data.csv", ROWS)
    data = LabelledText(path=path, valid_path=path, length=5, batch=2)
    batch = next(data.prepare(vocabulary=120).train_batches(seed=0, **SHARE))
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == data.shapes()


def test_pairs_have_types_and_the_longer_text_is_cut(tmp_path):
    rows = [("a b c d e f g h", "x y", "yes"), ("a", "b c", "no")]
    path = write(tmp_path / "pairs.tsv", rows, "one,two,label")
    data = LabelledText(path=path, valid_path=path, text="one", second="two", length=9, batch=2)
    said = []
    batch = data.prepare(vocabulary=100, report=said.append).valid_batches(**SHARE)[0]
    assert batch["types"].tolist() == [[0] * 6 + [1] * 3, [0] * 3 + [1] * 3 + [0] * 3]
    assert batch["segments"].sum(1).tolist() == [9, 6]
    assert said[-1] == "2 texts are longer than data.length 9 tokens, and cut"  # in both splits


def test_tags_stand_at_the_first_token_of_each_word(tmp_path):
    path = tmp_path / "tags.jsonl"
    records = [(["flights", "to", "Boston", "!"], ["O", "O", "CITY", "O"]), (["Boston"], ["CITY"])]
    path.write_text("\n".join(json.dumps({"words": w, "tags": t}) for w, t in records))
    data = LabelledText(
        path=str(path), valid_path=str(path), task="tags", text="words", label="tags", length=32, batch=2
    )
    prepared = data.prepare(vocabulary=80)
    batch, tokenizer = prepared.valid_batches(**SHARE)[0], prepared.tokenizer
    for row, (words, tags) in enumerate(records):
        starts = np.flatnonzero(batch["weights"][row])
        assert [prepared.names[i] for i in batch["labels"][row, starts]] == tags
        pieces = [len(tokenizer.encode(word)) for word in words]
        assert starts.tolist() == (1 + np.cumsum([0, *pieces[:-1]])).tolist()


def test_a_share_of_the_labels_keeps_every_label(tmp_path):
    rows = [(f"text {i}", "rare" if i % 20 == 0 else "common") for i in range(200)]
    path = write(tmp_path / "data.csv", rows)
    data = LabelledText(path=path, valid_path=path, train_fraction=0.1, batch=2)
    train = data.prepare(vocabulary=100).train
    assert np.bincount(train.labels).tolist() == [19, 1]
    np.testing.assert_array_equal(train.tokens, data.prepare(vocabulary=100).train.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "lable"}, r"data.csv, line 2: no field 'lable'; did you mean 'label'\?"),
        ({"classes": 3}, r"has 2 different labels, data.classes is 3; use --data.classes 2"),
        ({"task": "score", "classes": 1}, r"line 2: field 'label' is 'lost', not a number"),
        ({"task": "tags"}, r"are read from .jsonl, not from"),
        ({"path": "none.csv"}, r"no file 'none.csv'"),
        ({"path": None}, r"needs --data.path FILE"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, message):
    path = write(tmp_path / "data.csv", ROWS)
    data = dataclasses.replace(LabelledText(path=path, valid_path=path, batch=2), **change)
    with pytest.raises(UserError, match=message):
        data.prepare(vocabulary=120)


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("score", {"text": "a", "label": float("nan")}, "field 'label' is 'nan', not a number"),
        ("score", {"text": "a", "label": "inf"}, "field 'label' is 'inf', not a number"),
        ("labels", {"text": "a", "label": " "}, "field 'label' is blank"),
        ("labels", {"text": " \t", "label": "b"}, "field 'text' is blank"),
        ("tags", {"text": ["a"], "label": [""]}, "field 'label' has a blank tag"),
        ("tags", {"text": [], "label": []}, "field 'text' has no words"),
    ],
)
def test_what_says_nothing_is_no_text_and_no_label(tmp_path, task, record, message):
    fine = {"score": ("a", 0.5), "labels": ("a", "b"), "tags": (["a"], ["b"])}[task]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, [dict(zip(("text", "label"), fine, strict=True)), record])))
    data = LabelledText(path=str(path), valid_path=str(path), task=task, classes=1, batch=1)
    with pytest.raises(UserError, match=rf"data.jsonl, line 2: {message}"):
        data.prepare(vocabulary=80)


def test_a_spreadsheets_mark_is_no_part_of_the_first_field_and_an_endless_field_is_an_error(tmp_path):
    path = write(tmp_path / "data.csv", ROWS)
    plain = LabelledText(path=path, valid_path=path, batch=2).prepare(vocabulary=120)
    (tmp_path / "marked.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "data.csv").read_bytes())
    marked = LabelledText(path=str(tmp_path / "marked.csv"), valid_path=path, batch=2).prepare(vocabulary=120)
    np.testing.assert_array_equal(marked.train.tokens, plain.train.tokens)
    (tmp_path / "open.csv").write_text('text,label\n"' + "never closed " * 20_000)
    with pytest.raises(UserError, match=r"cannot read .*open.csv: field larger than field limit"):
        LabelledText(path=str(tmp_path / "open.csv"), batch=2).prepare(vocabulary=120)


def test_a_label_that_training_does_not_know_is_named_by_file_and_line(tmp_path):
    path = write(tmp_path / "train.csv", ROWS)
    other = write(tmp_path / "test.csv", [*ROWS[:2], ("what", "lots")])
    with pytest.raises(UserError, match=r"test.csv, line 4: field 'label' is 'lots', .* did you mean 'lost'"):
        LabelledText(path=path, valid_path=other, batch=2).prepare(vocabulary=120)
    assert "did you mean 'cola'" in next(LabelledText(source="glue/coal").problems())
    assert "add --data.source files" in next(LabelledText(source="glue/cola", path=path).problems())
