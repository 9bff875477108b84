"""Data in a bucket, read from a store over HTTP: what comes of it, and what is said when it refuses."""

import gzip
import json
import sys

import pytest

pytest.importorskip("gcsfs")

from cloud_storage import in_use

from research.data.files import TextFiles
from research.data.labelled_records import Fields, read_file
from research.data.object_store import filesystem, is_object, located, refusal
from research.data.parallel import ParallelFiles
from research.data.tokenizer import Tokenizer
from research.errors import UserError


@pytest.fixture(scope="module")
def serving():
    """A store for the module: the libraries keep their connections to it."""
    with in_use("corpus") as store:
        yield store


@pytest.fixture
def store(serving):
    """That store, empty."""
    serving.buckets["corpus"].clear()
    serving.refuse = lambda method, bucket, name: None
    return serving


def read(path):
    return [(d["path"], d["text"]) for d in TextFiles(path).documents()]


def test_text(store):
    store.put("corpus", "a/one.txt", b"first")
    store.put("corpus", "a/b/two.txt.gz", gzip.compress("zweité".encode()))
    store.put("corpus", "a/b/three.jsonl", b'{"text": "x"}\n{"text": "y"}\n')
    store.put("corpus", "a/.hidden/four.txt", b"no")
    store.put("corpus", "other.txt", b"no")
    everything = [("b/three.jsonl:1", "x"), ("b/three.jsonl:2", "y"), ("b/two.txt.gz", "zweité")]
    assert read("gs://corpus/a") == [*everything, ("one.txt", "first")]
    assert read("gs://corpus/a/one.txt") == [("one.txt", "first")]
    assert read("gs://corpus/a/*.txt") == [("one.txt", "first")]
    assert read("gs://corpus/a/**/t*") == everything
    with pytest.raises(UserError, match=r"there are no objects 'gs://corpus/a/\*\.md'"):
        read("gs://corpus/a/*.md")


def test_a_new_object_of_the_same_size_is_another_text(store):
    store.put("corpus", "a/one.txt", b"first")
    before = TextFiles("gs://corpus/a").fingerprint()
    assert TextFiles("gs://corpus/a").fingerprint() == before
    store.put("corpus", "a/one.txt", b"f1rst")
    assert TextFiles("gs://corpus/a").fingerprint() != before


def test_a_directory_is_listed_once_and_not_asked_for_file_by_file(store):
    for number in range(50):
        store.put("corpus", f"a/{number}.txt", b"text")
    store.requests.clear()
    TextFiles("gs://corpus/a").fingerprint()
    assert len(store.requests) < 10


def test_pairs_labels_and_tokenizer(store):
    store.put("corpus", "p.en", b"a b\r\nc\n")
    store.put("corpus", "p.de", b"A B\nC\n")
    text = ParallelFiles({"train": ("gs://corpus/p.en", "gs://corpus/p.de")})
    assert list(text.pairs("train")) == [("a b", "A B"), ("c", "C")]
    before = text.fingerprint()
    store.put("corpus", "p.de", b"B A\nC\n")
    assert text.fingerprint() != before
    store.put("corpus", "rows.csv", b'\xef\xbb\xbftext,label\r\n"one\ntwo",x\r\nthree,y\r\n')
    rows = read_file("gs://corpus/rows.csv", Fields("text", None, "label", None), None, tags=False)
    assert [(row.texts, row.labels) for row in rows] == [(("one\ntwo",), ("x",)), (("three",), ("y",))]
    made = Tokenizer.characters(["abc"])
    store.put("corpus", "tokenizer.json", made.to_json().encode())
    assert Tokenizer.load("gs://corpus/tokenizer.json").encode("cab") == made.encode("cab")


def test_refused_in_one_line(store):
    store.put("corpus", "one.txt", b"first")
    pair = ParallelFiles({"train": ("gs://corpus/none", "gs://corpus/one.txt")})
    with pytest.raises(
        UserError, match=r"gs://corpus/none: no such object; .* gcloud storage ls gs://corpus"
    ):
        pair.fingerprint()
    with pytest.raises(UserError, match=r"gs://corpus/x\.json: no such object"):
        Tokenizer.load("gs://corpus/x.json")
    store.refuse = lambda method, bucket, name: 403
    with pytest.raises(UserError, match=r"one\.txt: no permission.*; granted by: gcloud storage") as error:
        read("gs://corpus/one.txt")
    assert "add-iam-policy-binding gs://corpus" in str(error.value)
    assert "\n" not in str(error.value)
    store.refuse = lambda method, bucket, name: 401
    with pytest.raises(UserError, match=r"no credentials .*: gcloud auth application-default login"):
        read("gs://corpus/one.txt")


def test_the_permission_that_is_lacking_decides_the_role():
    said = "robot@project.iam.gserviceaccount.com does not have storage.{} access to the object."
    for right, role in (
        ("objects.create", "objectUser"),
        ("objects.delete", "objectUser"),
        ("objects.get", "objectViewer"),
        ("objects.list", "objectViewer"),
        ("buckets.get", "legacyBucketReader"),
    ):
        line = refusal(OSError(f"Forbidden: b/x\n{said.format(right)}"), "gs://x/y")
        assert line == (
            f"gs://x/y: no permission (storage.{right}); granted by: gcloud storage buckets"
            f" add-iam-policy-binding gs://x --role=roles/storage.{role}"
            " --member=serviceAccount:robot@project.iam.gserviceaccount.com"
        )
    assert refusal(OSError("Forbidden"), "/a/path") is None
    line = refusal(ConnectionRefusedError("nobody listens"), "gs://x/y")
    assert line is not None and line.startswith(
        "gs://x/y: the store cannot be reached (nobody listens); mend"
    )
    assert refusal(KeyError("bug"), "gs://x/y") is None


def test_what_is_an_object(monkeypatch):
    assert is_object("gs://a/b") and is_object("gs:/a/b")  # as pathlib writes it
    assert str(located("gs:/a/b")) == "gs://a/b"
    assert not is_object("gs/a") and not is_object("/gs://a")
    with pytest.raises(UserError, match="hf://a/b: of object stores gs:// alone is known"):
        located("hf://a/b")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    filesystem.cache_clear()
    with pytest.raises(UserError, match=r'not installed: pip install -e "\.\[gcs\]"'):
        located("gs://a/b")
    filesystem.cache_clear()


def test_the_store_itself_lists_as_the_real_one(store):
    """Names and prefixes, by the JSON API's description of objects.list."""
    import urllib.request

    for name in ("a/b/c", "a/d", "a/b/e", "f"):
        store.put("corpus", name, b"x")
    address = f"{store.environment['STORAGE_EMULATOR_HOST']}/storage/v1/b/corpus/o?prefix=a/&delimiter=/"
    with urllib.request.urlopen(address) as answer:
        found = json.load(answer)
    assert [item["name"] for item in found["items"]] == ["a/d"]
    assert found["prefixes"] == ["a/b/"]
