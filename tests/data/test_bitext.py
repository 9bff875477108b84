"""Parallel text: files, Multi30k, TFDS records, cleaning, tokens, and what users get wrong."""

from __future__ import annotations

import gzip
import lzma
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from research.data.bitext import Bitext, decode, encode
from research.data.parallel import NamedTranslation, aligned, lines_of
from research.errors import UserError

PAIRS = [(f"the number {i} of {'many ' * (i % 4)}things", f"die Zahl {i} von Dingen") for i in range(60)]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "text.en", tmp_path / "text.de"]
    for path, lines in zip(paths, zip(*PAIRS, strict=True), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def bitext(files, **fields):
    source, target = map(str, files)
    return Bitext(source=source, target=target, **{"corpus": "files", "batch_tokens": 512, **fields})


def test_lines_end_at_line_feeds_alone(tmp_path):
    lines = ["one\u2028line", "", "two\x85lines", "end"]
    data = "\r\n".join(lines).encode()
    for name, opener in (("a.txt", open), ("a.txt.gz", gzip.open), ("a.txt.xz", lzma.open)):
        with opener(tmp_path / name, "wb") as stream:
            stream.write(data)
        assert list(lines_of(tmp_path / name)) == lines


@pytest.mark.parametrize(
    ("left", "right", "counts"), [("a\nb\nc\n", "x\n", (3, 1)), ("a\n", "x\ny\n", (1, 2))]
)
def test_different_line_counts_are_both_told(tmp_path, left, right, counts):
    (tmp_path / "l").write_text(left)
    (tmp_path / "r").write_text(right)
    with pytest.raises(UserError, match=rf"l has {counts[0]} lines and .*r {counts[1]}:"):
        list(aligned(tmp_path / "l", tmp_path / "r"))


def test_a_damaged_file_is_one_line(tmp_path):
    whole = gzip.compress(b"some text, long enough to be packed\n" * 9)
    refused = set()
    for place in range(10, len(whole)):  # what is damaged decides how the library says so
        (tmp_path / "a.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            list(lines_of(tmp_path / "a.gz"))
        except UserError as error:
            assert str(error).startswith(("cannot read", f"{tmp_path / 'a.gz'}, line"))
            refused.add(type(error.__cause__))
    assert zlib.error in refused and OSError in {kind.__base__ for kind in refused}


def test_invalid_utf8_names_file_and_line(tmp_path):
    (tmp_path / "l").write_bytes(b"fine\nM\xfcller\n")
    with pytest.raises(UserError, match=r"l, line 2 is not UTF-8 \(byte 1"):
        list(lines_of(tmp_path / "l"))


def test_a_file_becomes_pairs_and_back(files):
    prepared = bitext(files).prepare(vocabulary=300)
    assert len(prepared.train) == 59 and len(prepared.valid) == 1
    assert prepared.tokenizer.vocabulary <= 300
    tokens = encode(prepared.tokenizer, ["die Zahl 7", " die Zahl 7 "])
    assert tokens[0] == tokens[1]
    # A word has the same tokens at the beginning of a line and inside it.
    assert (
        encode(prepared.tokenizer, ["Zahl"])[0]
        == encode(prepared.tokenizer, ["die Zahl"])[0][len(encode(prepared.tokenizer, ["die"])[0]) :]
    )
    assert decode(prepared.tokenizer, tokens[0]) == "die Zahl 7"
    starts = prepared.train.target_starts
    assert decode(prepared.tokenizer, prepared.train.target[starts[3] : starts[4]]) == PAIRS[3][1]
    found = prepared.metrics({"loss": 10.0, "weight": 5.0})
    assert found["loss"] == 2.0
    assert found["bits_per_token"] == pytest.approx(2.0 / 0.6931471805599453)
    bits = found["bits_per_token"] * prepared.valid.target_tokens / len(PAIRS[-1][1])
    assert found["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sides_may_have_tokenizers_of_their_own(files, tmp_path, kind):
    data = bitext(files, tokenizer=kind, source_tokenizer=kind)
    said = []
    prepared = data.prepare(vocabulary=290, source_vocabulary=280, report=said.append)
    assert any(f"training a source {kind} tokenizer of 280" in line for line in said)
    target, source = prepared.tokenizer, prepared.source_tokenizer
    assert target.vocabulary <= 290 and source.vocabulary <= 280
    for i in (3, 9):
        ours, theirs = (
            array[starts[i] : starts[i + 1]]
            for array, starts in (
                (prepared.train.source, prepared.train.source_starts),
                (prepared.train.target, prepared.train.target_starts),
            )
        )
        assert (decode(source, ours), decode(target, theirs)) == PAIRS[i]
    if kind == "unigram":  # learned from one side, it knows nothing of the other
        assert target.unknown in encode(target, ["many"])[0]
        assert source.unknown not in encode(source, ["many"])[0]
    for name, text in prepared.files().items():
        (tmp_path / name).write_text(text)
    assert data.load_tokenizer(tmp_path).digest() == target.digest()
    assert data.load_source_tokenizer(tmp_path).digest() == source.digest() != target.digest()


def test_joint_unigrams_and_what_does_not_fit(files, tmp_path):
    prepared = bitext(files, tokenizer="unigram").prepare(vocabulary=100)
    assert prepared.source_tokenizer is prepared.tokenizer and list(prepared.files()) == [
        "tokenizer.json", "text.json",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"20 tokens are too few, [0-9]+ is the least"):
        bitext(files, tokenizer="unigram").prepare(vocabulary=20)
    prepared.tokenizer.save(tmp_path / "large.json")
    with pytest.raises(UserError, match=r"data.source_tokenizer has .* and model.source_vocabulary is 9; it"):
        bitext(files, source_tokenizer=str(tmp_path / "large.json")).prepare(
            vocabulary=300, source_vocabulary=9
        )


def test_cleaning_is_counted(files):
    more = [("", "leer"), ("leer", "  "), PAIRS[0], ("long " * 50, "lang " * 50), ("x" * 40, "y")]
    for path, side in zip(files, zip(*more, strict=True), strict=True):
        with open(path, "a") as stream:
            stream.write("".join(f"{line}\n" for line in side))
    valid = {"valid_source": str(files[0]), "valid_target": str(files[1])}
    said = []
    data = bitext(files, length=40, ratio=6.0, **valid)
    prepared = data.prepare(vocabulary=300, report=said.append)
    assert said[-2] == (
        "60 training pairs; left out: 2 empty, 1 duplicate, 1 long, 1 ratio; "
        "64 validation pairs; left out: 1 long"
    )
    # Validation is taken as it is, but for what the model never sees that long.
    kept = [target for _, target in (*PAIRS, *more) if not target.startswith("lang")]
    assert (len(prepared.train), len(prepared.valid)) == (60, 64)
    assert prepared.valid.widths().max() <= 40 and prepared.buckets[-1].width <= 40
    assert prepared.valid.target_bytes == sum(len(target.encode()) for target in kept)
    again = []
    data.prepare(vocabulary=300, report=again.append)
    assert again == said[-2:]  # all from the cache
    assert said[-1].startswith("batches of ") and said[-1].endswith("% of it is padding")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"corpus": "multi30"}, "unknown; did you mean 'multi30k'"),
        ({"corpus": "files"}, "needs --data.source FILE and --data.target FILE"),
        ({"corpus": "files", "source": "a", "target": "b", "valid_source": "c"}, "go together"),
        ({"corpus": "files", "source": "no-such-file", "target": "b"}, "no file 'no-such-file'"),
        ({"source_language": "en", "target_language": "en"}, "both 'en'"),
        ({"target_language": "nl"}, "Multi30k has no language 'nl'"),
        ({"tokenizer": "bpee"}, "did you mean 'bpe'"),
        ({"corpus": "multi30k", "directory": "/nowhere"}, "has no file train.en of Multi30k"),
    ],
)
def test_bad_descriptions_are_one_line(fields, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        Bitext(**fields).prepare(vocabulary=300)


def test_an_empty_text_or_side_is_one_line(tmp_path):
    for name, text in (("s", ""), ("t", ""), ("blank", "\n" * 3), ("full", "a\n" * 3)):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="the training text is empty"):
        bitext((tmp_path / "s", tmp_path / "t")).prepare(vocabulary=300)
    with pytest.raises(UserError, match=r"full has 3 lines and .*t 0:"):
        bitext((tmp_path / "full", tmp_path / "t")).prepare(vocabulary=300)
    (tmp_path / "long").write_text("a " * 99 + "\n")
    valid = {"valid_source": str(tmp_path / "long"), "valid_target": str(tmp_path / "long")}
    with pytest.raises(UserError, match=r"split 'valid': 1 .*; 0 validation pairs; left out: 1 long"):
        bitext((tmp_path / "full", tmp_path / "full"), length=9, **valid).prepare(vocabulary=260)
    with pytest.raises(UserError, match=r"no pairs are left for data split 'train': .* 2 empty"):
        bitext((tmp_path / "full", tmp_path / "blank")).prepare(vocabulary=300)


def test_test_files_are_nothing_to_train_on(files):
    with pytest.raises(UserError, match=r'data\.corpus "test" has nothing to train on'):
        bitext(files, corpus="test").prepare(vocabulary=300)


def test_problems_are_told():
    assert not list(Bitext().problems())
    assert not list(Bitext(corpus="files", source="a", target="b").problems())
    assert "add --data.corpus files" in next(Bitext(source="a", target="b").problems())
    assert "the least that has is 1024" in next(Bitext(batch_tokens=1000, length=128).problems())


def test_multi30k_from_a_directory(tmp_path):
    splits = {"train": 5, "val": 2, "test_2016_flickr": 2, "test_2017_flickr": 2, "test_2017_mscoco": 1}
    for stem, count in splits.items():
        for language in ("de", "fr"):
            with gzip.open(tmp_path / f"{stem}.{language}.gz", "wt", encoding="utf-8") as stream:
                stream.write("".join(f"{language} {stem} {i}\n" for i in range(count)))
    data = Bitext(source_language="fr", target_language="de", directory=str(tmp_path))
    text = data.open()
    assert text.splits() == ["train", "valid", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"]
    assert list(text.pairs("valid")) == [(f"fr val {i}", f"de val {i}") for i in range(2)]
    assert len(list(text.pairs("train"))) == 5
    with gzip.open(tmp_path / "val.fr.gz", "wt", encoding="utf-8") as stream:
        stream.write("un autre\ntexte\n")
    assert list(data.open().pairs("valid")) == [("un autre", "de val 0"), ("texte", "de val 1")]


def test_multi30k_whose_files_differ_in_length_is_refused(tmp_path):
    for stem in ("train", "val", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"):
        for language in ("en", "de"):
            (tmp_path / f"{stem}.{language}").write_text("a line\n" * (3 if language == "en" else 2))
    with pytest.raises(UserError, match=r"train.en has 3 lines and .*train.de 2: line n of one must be"):
        list(Bitext(directory=str(tmp_path)).open().pairs("train"))


@pytest.mark.skipif("HEADWAY_DATA" not in os.environ, reason="HEADWAY_DATA names no data")
def test_multi30k_itself():
    directory = Path(os.environ["HEADWAY_DATA"]) / "multi30k"
    text = Bitext(directory=str(directory), tokenised=True).open()
    pairs = list(text.pairs("test_2016_flickr"))
    assert len(pairs) == 1000
    assert pairs[0][0] == "a man in an orange hat starring at something ."
    assert sum(len(target.split()) for _, target in pairs) == 12103  # counted by its owners' words
    czech = Bitext(directory=str(directory), target_language="cs").open()
    assert czech.splits() == ["train", "valid", "test_2016_flickr"]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_published_sets_are_found_by_name_without_tensorflow_or_a_package_of_another_set():
    # In a process of its own: what another test imported would be found in any case.
    program = """
import socket, sys
socket.socket.connect = socket.getaddrinfo = None  # the network is not used
sys.modules["h5py"] = None
from research.data.bitext import Bitext
from research.data.builder import NamedDataset
from research.errors import UserError
for name, languages in (
    ("wmt14_translate/de-en", ("en", "de")),
    ("ted_hrlr_translate/pt_to_en", ("pt", "en")),
    ("ted_multi_translate", ("en", "fr")),
):
    text = Bitext(corpus=f"tfds:{name}", source_language=languages[0], target_language=languages[1]).open()
    text._pair(text._builder())  # checks features and languages
    print(text.fingerprint()[0])
print(NamedDataset("lm1b", "text").fingerprint()[0])
try:
    Bitext(corpus="tfds:wmt14_translat/de-en").open().fingerprint()
except UserError as error:
    print(error)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *names, error = done.stdout.splitlines()
    wanted = ("wmt14_translate/de-en", "ted_hrlr_translate/pt_to_en", "ted_multi_translate", "lm1b")
    assert [name.rpartition("/")[0] for name in names] == list(wanted)
    assert error == "TFDS has no data set 'wmt14_translat'; did you mean 'wmt14_translate'?"


class HeadwayPairs(tfds.core.GeneratorBasedBuilder):
    """A published set of pairs, as far as the loading code can tell."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.Translation(("de", "en"))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "validation": self._generate_examples(2)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"de": f"Zahl {i} ü", "en": f"number {i}"}


class HeadwayTalks(tfds.core.GeneratorBasedBuilder):
    """A published set of several languages, one of which the second record lacks."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        several = tfds.features.TranslationVariableLanguages(languages=("de", "en", "fr"))
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "translations": several})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"name": "a", "translations": {"en": "one", "de": "eins", "fr": "un"}}
        yield 1, {"name": "b", "translations": {"fr": "deux", "de": "zwei"}}
        yield 2, {"name": "c", "translations": {"en": "three", "de": "drei"}}


def test_records_of_published_sets_become_pairs(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    pairs = [(f"number {i}", f"Zahl {i} ü") for i in range(3)]
    text = NamedTranslation("headway_pairs", "en", "de")
    assert text.splits() == ["train", "valid"]
    assert list(text.pairs("train")) == pairs and list(text.pairs("valid")) == pairs[:2]
    text = NamedTranslation("headway_talks", "en", "de")
    assert text.splits() == ["train"]
    assert list(text.pairs("train")) == [("one", "eins"), ("three", "drei")]
    for name in ("headway_pairs", "headway_talks"):
        with pytest.raises(UserError, match=f"tfds:{name} has no language 'it'; choose from"):
            NamedTranslation(name, "it", "de").pairs("train")
