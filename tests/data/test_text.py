"""TextData.prepare: splits, cache, tokens that decode to the text; offline; errors in one line."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from research.data import builder, text
from research.data.cache import build_once
from research.data.text import TextData
from research.data.tokenizer import Tokenizer, cut
from research.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    directory.mkdir()
    for i in range(60):
        (directory / f"{i:02}.txt").write_text(f"document {i}: " + "naïve café 漢字 " * (i % 7 + 1))
    (directory / "empty.txt").write_text("")
    return directory


def documents(prepared, stream):
    bounds = [*stream.starts, len(stream.tokens) - 1]
    assert all(stream.tokens[b] == prepared.tokenizer.end_of_text for b in bounds)
    return [prepared.tokenizer.decode(stream.tokens[a + 1 : b]) for a, b in itertools.pairwise(bounds)]


def test_documents_are_split_whole_and_all_are_kept(corpus, offline):
    prepared = TextData(source="files", path=str(corpus), valid_fraction=0.2).prepare(vocabulary=300)
    train, valid = documents(prepared, prepared.train), documents(prepared, prepared.valid)
    texts = {p.read_text() for p in corpus.iterdir()} - {""}
    assert set(train) | set(valid) == texts
    assert not set(train) & set(valid)
    assert len(train) + len(valid) == len(texts) == 60
    assert 3 <= len(valid) <= 25
    for stream, parts in ((prepared.train, train), (prepared.valid, valid)):
        assert stream.bytes == sum(len(t.encode()) for t in parts)
        assert len(stream) == len(stream.tokens) - 1
        assert stream.tokens.dtype == np.uint16
        assert stream.targets_per_byte == len(stream) / stream.bytes
    assert prepared.valid_path.read_text() == "".join(valid)


def test_a_document_keeps_its_split_when_others_come_and_the_corpus_moves(corpus, tmp_path):
    def held_out(path):
        prepared = TextData(source="files", path=str(path)).prepare(vocabulary=300)
        return set(documents(prepared, prepared.valid))

    before = held_out(corpus)
    (corpus / "new.txt").write_text("new")
    assert held_out(corpus.rename(tmp_path / "moved")) - {"new"} == before


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_tail_holds_out_the_end_without_breaking_characters(tmp_path, kind):
    content = "äöü漢字🤖" * 100
    (tmp_path / "t.txt").write_text(content)
    data = TextData(source="files", path=str(tmp_path / "t.txt"), tokenizer=kind, split="tail")
    prepared = data.prepare(vocabulary=300)
    assert documents(prepared, prepared.train) == [content[:540]]
    assert documents(prepared, prepared.valid) == [content[540:]]
    assert prepared.valid.bytes == len(content[540:].encode())


def test_characters_cover_the_validation_text(tmp_path):
    (tmp_path / "t.txt").write_text("a" * 95 + "z" * 5)
    data = TextData(source="files", path=str(tmp_path / "t.txt"), tokenizer="characters", split="tail")
    assert data.prepare(vocabulary=3).tokenizer.vocabulary == 3


def test_end_of_text_written_in_a_document_does_not_end_it(tmp_path):
    (tmp_path / "t.txt").write_text("a<|endoftext|>b " * 50)
    data = TextData(source="files", path=str(tmp_path / "t.txt"), split="tail")
    prepared = data.prepare(vocabulary=300)
    assert (prepared.train.tokens == prepared.tokenizer.end_of_text).sum() == 2
    assert documents(prepared, prepared.train)[0].startswith("a<|endoftext|>b ")


def test_cached_stages_are_not_repeated(corpus, offline):
    data = TextData(source="files", path=str(corpus))
    said = []
    first = data.prepare(vocabulary=300, report=said.append)
    assert said == ["reading files", "training a byte-level BPE tokenizer of 300 tokens", "tokenising"]
    said.clear()
    again = data.prepare(vocabulary=300, report=said.append)
    assert said == []
    np.testing.assert_array_equal(first.train.tokens, again.train.tokens)
    # The run's own tokenizer, in a larger model: same tokens, nothing new to do.
    given = data.prepare(
        vocabulary=999, tokenizer=Tokenizer.from_json(first.tokenizer.to_json()), report=said.append
    )
    assert said == []
    np.testing.assert_array_equal(first.train.tokens, given.train.tokens)
    (corpus / "00.txt").write_text("changed")
    data.prepare(vocabulary=300, report=said.append)
    assert len(said) == 3


@pytest.mark.parametrize(("per_token", "share"), [(1, 0.05), (10, 0.5), (10**6, 1.0)])
def test_bpe_is_trained_on_an_even_sample(corpus, monkeypatch, per_token, share):
    seen = []
    train = Tokenizer.train_bpe
    monkeypatch.setattr(text, "_SAMPLE", per_token)
    monkeypatch.setattr(
        Tokenizer, "train_bpe", lambda texts, n: train([t for t in texts if not seen.append(t)], n)
    )
    prepared = TextData(source="files", path=str(corpus)).prepare(vocabulary=300)
    texts = documents(prepared, prepared.train)
    assert set(seen) <= set(texts)
    assert len(seen) / len(texts) == pytest.approx(share, rel=0.4)


def test_large_vocabularies_are_stored_in_32_bits(corpus, tmp_path):
    letters = Tokenizer.characters([p.read_text() for p in corpus.iterdir()])
    tree = json.loads(letters.to_json())
    tree["model"]["vocab"]["é"] = 70_000
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    prepared = TextData(source="files", path=str(corpus), tokenizer=str(path)).prepare(vocabulary=70_001)
    assert prepared.train.tokens.dtype == np.uint32
    assert 70_000 in prepared.train.tokens
    assert set(documents(prepared, prepared.train)) <= {p.read_text() for p in corpus.iterdir()}


def test_long_documents_are_encoded_in_pieces_and_stay_whole(tmp_path, monkeypatch):
    lines = (f"line {i}\n" + "  indented\n\n" * (i % 3) for i in range(500))
    (tmp_path / "t.txt").write_text("".join(lines))
    data = TextData(source="files", path=str(tmp_path / "t.txt"), split="tail")
    whole = data.prepare(vocabulary=300)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(text, "_CHUNK", 150)
    monkeypatch.setattr(Tokenizer, "pieces", lambda self, t: cut(t, 100))
    cut_up = data.prepare(vocabulary=300, tokenizer=whole.tokenizer)
    for one, other in ((whole.train, cut_up.train), (whole.valid, cut_up.valid)):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.starts, other.starts)
        assert one.bytes == other.bytes


@pytest.mark.skipif(
    "HEADWAY_DATA" not in os.environ, reason="set HEADWAY_DATA to the directory with data sets"
)
def test_tiny_shakespeare_is_split_as_published():
    path = os.path.join(os.environ["HEADWAY_DATA"], "tinyshakespeare", "input.txt")
    data = TextData(source="files", path=path, tokenizer="characters", split="tail")
    prepared = data.prepare(vocabulary=66)
    # nanoGPT, data/shakespeare_char/prepare.py: 65 characters; 1,003,854 and 111,540 tokens, without <eot>.
    assert prepared.tokenizer.vocabulary == 65 + 1
    assert (len(prepared.train), len(prepared.valid)) == (1_003_854 + 1, 111_540 + 1)


def test_processes_that_prepare_at_once_agree(corpus, cache):
    program = (
        "import sys; from research.data.text import TextData as T; "
        "p = T(source='files', path=sys.argv[1]).prepare(vocabulary=300); "
        "print(len(p.train), len(p.valid))"
    )
    command = [sys.executable, "-c", program, str(corpus)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(outputs) == 1
    assert not [p for p in cache.rglob(".*")]  # nothing temporary is left


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(directory):
        (directory / "half").write_text("x")
        raise RuntimeError

    with contextlib.suppress(RuntimeError):
        build_once(tmp_path / "c" / "x", fail)
    assert list((tmp_path / "c").iterdir()) == []
    assert (build_once(tmp_path / "c" / "x", lambda d: (d / "y").touch()) / "y").exists()


def test_unwritable_cache(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write prepared data to .*HEADWAY_CACHE"):
        TextData(source="files", path=str(corpus)).prepare(vocabulary=300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, r'data.source "files" needs --data.path .*https://'),
        ({"source": "file"}, "data.source 'file' is unknown; did you mean 'files'"),
        ({"source": "tfds:lm2b"}, "TFDS has no data set 'lm2b'; did you mean 'lm1b'"),
        (
            {"tokenizer": "character"},
            "'character' is no file and no kind of tokenizer; did you mean 'characters'",
        ),
        ({"valid_fraction": 1.0}, "data.valid_fraction is 1.0; it should be between 0 and 1"),
        ({"length": 0}, "data.length is 0"),
        ({"batch": -1}, "data.batch is -1"),
        ({"path": "{one}"}, 'no text is left for .* by data.split "documents" .*use --data.split tail'),
        ({"path": "{latin}"}, r"latin\.txt is not UTF-8 at byte 3 \(line 1\)"),
        ({"path": "{none}"}, r"none\.txt is empty"),
    ],
)
def test_bad_descriptions(corpus, changes, message, offline):
    for name, content in (("one", b"text"), ("latin", b"caf\xe9"), ("none", b"")):
        (corpus.parent / f"{name}.txt").write_bytes(content)
        if changes.get("path") == "{" + name + "}":
            changes = changes | {"path": str(corpus.parent / f"{name}.txt")}
    data = TextData(**({"source": "files", "path": str(corpus)} | changes))
    with pytest.raises(UserError, match=message) as error:
        data.prepare(vocabulary=300)
    assert "\n" not in str(error.value)


def test_tokenizer_larger_than_the_model(corpus):
    data = TextData(source="files", path=str(corpus), tokenizer="characters")
    with pytest.raises(
        UserError, match=r"tokenizer has 28 tokens, the model's vocabulary only 5; use --model"
    ):
        data.prepare(vocabulary=5)


class HeadwayProbe(tfds.core.GeneratorBasedBuilder):
    """A published data set, as far as the loading code can tell."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"body": tfds.features.Text(), "n": np.int32})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("t", 20), "test": self._generate_examples("v", 5)}

    def _generate_examples(self, name, n):
        for i in range(n):
            yield i, {"body": f"{name}{i} é", "n": i}


def test_tfds_by_name_uses_its_own_validation_split(tmp_path, monkeypatch, offline, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    data = TextData(source="tfds:headway_probe", field="body")
    prepared = data.prepare(vocabulary=300)
    assert sorted(documents(prepared, prepared.train)) == sorted(f"t{i} é" for i in range(20))
    assert sorted(documents(prepared, prepared.valid)) == sorted(f"v{i} é" for i in range(5))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"has no text field 'text' \(--data.field\); choose from body"):
        TextData(source="tfds:headway_probe").prepare(vocabulary=300)
    with pytest.raises(
        UserError, match="tfds:headway_probe has no configuration 'nothing'; it has none: tfds"
    ):
        TextData(source="tfds:headway_probe/nothing").prepare(vocabulary=300)
    with pytest.raises(UserError, match=r"tfds:wiki40b has no configuration 'enn'; did you mean 'en'\?"):
        TextData(source="tfds:wiki40b/enn").prepare(vocabulary=300)


def test_a_field_is_missed_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(
        UserError, match=r"tfds:lm1b has no text field 'txt' \(--data.field\); did you mean 'text'"
    ):
        TextData(source="tfds:lm1b", field="txt").prepare(vocabulary=300)
    assert not (tmp_path / "tfds").exists()


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))

    def fail(self, dl_manager):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(HeadwayProbe, "_split_generators", fail)
    with pytest.raises(
        UserError, match=r"cannot prepare tfds:headway_probe \(.*no route to host.*\)"
    ) as error:
        TextData(source="tfds:headway_probe", field="body").prepare(vocabulary=300)
    assert "\n" not in str(error.value)


def test_no_tensorflow_and_nothing_on_stdout():
    assert "tensorflow" not in sys.modules
    assert builder.Documents.__name__ == "Documents"


@pytest.mark.slow
def test_standard_library_end_to_end(offline, capsys):
    prepared = TextData().prepare(vocabulary=2048)
    assert prepared.tokenizer.vocabulary == 2048
    assert prepared.train.bytes > 5e6
    assert 0.05 < prepared.valid.bytes / (prepared.train.bytes + prepared.valid.bytes) < 0.2
    assert "".join(documents(prepared, prepared.valid)).encode() == prepared.valid_path.read_bytes()
    assert capsys.readouterr().out == ""
