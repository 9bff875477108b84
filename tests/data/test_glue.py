"""GLUE through TFDS itself, on files in GLUE's own format: nothing but the download is replaced."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download.download_manager import DownloadManager

from research.data.labelled_records import read_glue
from research.data.labelled_text import LabelledText
from research.errors import UserError
from research.evaluation.classification import label_metrics

SENTENCES = [("The dog barked.", 1), ("Dog the barked.", 0), ('It "rained".', 1), ("Rained it.", 0)]
PAIRS = [("A dog barks.", "It barks.", "entailment"), ("A dog barks.", "It rains.", "not_entailment")]
SHARE = {"process_index": 0, "process_count": 1}


def table(*rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """The folders that GLUE's archives unpack to; returns where they lie."""
    raw = tmp_path / "raw"
    for folder in ("CoLA", "RTE", "STS-B", "MNLI"):
        (raw / folder).mkdir(parents=True)
    for split in ("train", "dev"):
        # Only CoLA's files have no header; a sentence that linguists reject has an asterisk.
        rows = [("gj04", label, "" if label else "*", text) for text, label in SENTENCES]
        (raw / "CoLA" / f"{split}.tsv").write_text(table(*rows))
        header = ("index", "sentence1", "sentence2", "label")
        rows = [(i, *pair) for i, pair in enumerate(PAIRS)]
        (raw / "RTE" / f"{split}.tsv").write_text(table(header, *rows))
        header = ("index", "genre", "sentence1", "sentence2", "score")
        (raw / "STS-B" / f"{split}.tsv").write_text(table(header, (0, "news", "A man.", "One man.", "3.800")))
    hypotheses = {"train": "Is it is it.", "dev_matched": "Is it.", "dev_mismatched": "It is."}
    for split, hypothesis in hypotheses.items():
        header = ("index", "sentence1", "sentence2", "gold_label")
        (raw / "MNLI" / f"{split}.tsv").write_text(table(header, (0, "It is.", hypothesis, "neutral")))
    (raw / "CoLA" / "test.tsv").write_text(table(("index", "sentence"), (0, "It is.")))
    for folder in ("RTE", "STS-B"):
        (raw / folder / "test.tsv").write_text(table(("index", "sentence1", "sentence2"), (0, "It.", "Is.")))
    for split in ("matched", "mismatched"):
        header = ("index", "sentence1", "sentence2")
        (raw / "MNLI" / f"test_{split}.tsv").write_text(table(header, (0, "It.", "Is.")))
    # MRPC is not GLUE's to distribute: TFDS divides the files of its owners, by a list of GLUE's.
    header, texts = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), ("It is.", "It was.")
    rows = [(label, number, number, *texts) for number, label in enumerate([1, 0, 1, 1, 0, 1])]
    files = {"train": table(header, *rows), "test": table(header, (-1, 9, 9, *texts))}
    files["dev_ids"] = table(*((number, number) for number in (0, 1, 2, 3)))
    for name, text in files.items():
        (raw / f"{name}.txt").write_text(text, encoding="utf-8-sig" if name == "train" else "utf-8")
    downloaded = {name: epath.Path(raw / f"{name}.txt") for name in files}
    monkeypatch.setattr(DownloadManager, "download", lambda self, urls: downloaded)
    monkeypatch.setattr(DownloadManager, "download_and_extract", lambda self, url: epath.Path(raw))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    return raw


@pytest.mark.parametrize("split", ["train", "validation"])
def test_sentences_pairs_and_scores_are_read_as_tfds_prepares_them(glue, split, capsys):
    found = list(read_glue("cola", split))
    names = ("unacceptable", "acceptable")
    expected = {((text,), (names[label],)) for text, label in SENTENCES}
    assert len(found) == 4 and {(e.texts, e.labels) for e in found} == expected
    assert found[3].where == f"glue/cola {split}, example 3"
    found = list(read_glue("rte", split))
    assert {(e.texts, e.labels) for e in found} == {((a, b), (label,)) for a, b, label in PAIRS}
    (one,) = read_glue("stsb", split)
    assert one.texts == ("A man.", "One man.") and float(one.labels[0]) == pytest.approx(3.8)
    assert capsys.readouterr().out == "" and "tensorflow" not in sys.modules


def test_mnli_has_a_matched_validation_split_and_a_mismatched_one(glue):
    (one,) = read_glue("mnli", "validation")
    assert one.texts == ("It is.", "Is it.") and one.labels == ("neutral",)
    prepared = LabelledText(source="glue/mnli", classes=3, length=40, batch=1).prepare(vocabulary=80)
    assert list(prepared.others) == ["mismatched"]
    decode, others = prepared.tokenizer.decode, prepared.others
    assert decode(prepared.valid.tokens[0]) == "it is. is it."
    assert decode(others["mismatched"].tokens[0]) == "it is. it is."


def test_rows_of_a_task_by_name(glue):
    prepared = LabelledText(source="glue/cola", length=24, batch=2).prepare(vocabulary=80)
    assert (len(prepared.train), len(prepared.valid)) == (4, 4)
    batch, tokenizer = prepared.valid_batches(**SHARE)[0], prepared.tokenizer
    ids = {tuple(tokenizer.encode(text)): label for text, label in SENTENCES}
    for row, label in zip(batch["tokens"], batch["labels"], strict=True):
        real = row[: row.tolist().index(tokenizer.separator)][1:]
        name = ("unacceptable", "acceptable")[ids[tuple(real.tolist())]]
        assert prepared.names[label] == name


def test_the_f1_of_a_task_is_that_of_its_own_second_label(glue):
    data = LabelledText(source="glue/mrpc", length=24, batch=2)
    prepared = data.prepare(vocabulary=80)
    assert prepared.names == ("not_equivalent", "equivalent")
    labels = prepared.valid.labels
    assert sorted(labels.tolist()) == [0, 1, 1, 1]
    # Three of four pairs mean the same: by saying so of all four, precision is 3/4 and recall 1.
    same = np.full(4, prepared.names.index("equivalent"))
    assert label_metrics(labels, same, 2)["f1"] == pytest.approx(6 / 7)
    assert label_metrics(labels, 1 - same, 2)["f1"] == 0.0
    assert 'needs data.task "labels"' in next(dataclasses.replace(data, task="tags").problems())
    assert 'needs data.task "score"' in next(dataclasses.replace(data, source="glue/stsb").problems())


def test_a_download_that_fails_is_one_line(glue, monkeypatch):
    def fail(self, url):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(DownloadManager, "download_and_extract", fail)
    with pytest.raises(UserError, match=r"cannot prepare glue/cola \(.*no route to host.*\)") as error:
        list(read_glue("cola", "train"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="did you mean 'cola'"):
        list(read_glue("coal", "train"))
