"""Sources: what is a document, and one clear line for everything that is wrong with a file."""

import ast
import gzip
import json
import lzma
import os

import pytest

from research.data.files import TextFiles
from research.data.prose import PythonProse, comments, docstrings, without_markup
from research.data.standard_library import StandardLibrary
from research.errors import UserError


def read(path, **options):
    return [(d["path"], d["text"]) for d in TextFiles(str(path), **options).documents()]


def test_file_directory_and_glob(tmp_path):
    (tmp_path / "a.txt").write_bytes("ä\r\nb".encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("two")
    (tmp_path / "sub" / "empty.txt").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"\xff")
    assert read(tmp_path / "a.txt") == [("a.txt", "ä\r\nb")]
    assert read(tmp_path) == [("a.txt", "ä\r\nb"), ("sub/b.md", "two")]
    assert read(tmp_path / "*.txt") == [("a.txt", "ä\r\nb")]
    assert read(tmp_path / "**" / "*.md") == [("sub/b.md", "two")]


def test_compressed_and_json_lines(tmp_path):
    lines = [json.dumps({"text": t, "n": 1}, ensure_ascii=False) for t in ("one", "zwei\u2028drei", "")]
    data = ("\n\n".join(lines) + "\n").encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress("ü".encode()))
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:1", "one"), ("a.jsonl:3", "zwei\u2028drei")]
    assert [text for _, text in read(tmp_path / "b.jsonl.gz")] == ["one", "zwei\u2028drei"]
    assert read(tmp_path / "c.txt.xz") == [("c.txt.xz", "ü")]


def test_json_lines_of_windows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [text for _, text in read(tmp_path / "a.jsonl")] == ["one", "two"]


def test_file_names_that_are_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    assert read(tmp_path) == [("caf\\xe9.txt", "text")]
    [document] = TextFiles(str(tmp_path)).corpus().train  # by way of TFDS
    assert document == {"path": "caf\\xe9.txt", "text": "text"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.txt", b"ok\nthen \xe9t\xe9", r"x\.txt is not UTF-8 at byte 8 \(line 2\); .*iconv"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"x\.jsonl is not UTF-8 at byte 24 \(line 2\)"),
        ("x.txt", b"", "is empty: there is no text in it"),
        ("x.jsonl", b"\n\n", "is empty: there is no text in it"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl, line 2: not JSON \(.* at column 9\)"),
        ("x.jsonl", b"[1]\n", r"line 1: a list, where a JSON object should be"),
        ("x.jsonl", b'{"txt": "a"}\n', r"line 1: no field 'text' \(--data.field\); did you mean 'txt'\?"),
        ("x.jsonl", b'{"text": 3}\n', r"line 1: field 'text' is a int, not text"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', r"line 1: field 'text' is not valid Unicode"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl, line 1: JSON that cannot be read \(maximum recursion depth"),
        ("x.jsonl", b"1" * 5_000, r"x\.jsonl, line 1: JSON that cannot be read \(Exceeds the limit"),
        ("x.txt.gz", b"not gzip", r"cannot read .*x\.txt\.gz: "),
        ("x.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], r"cannot read .*x\.txt\.gz: "),
        ("x.txt.xz", b"not xz", r"cannot read .*x\.txt\.xz: "),
    ],
)
def test_bad_file(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(UserError, match=r"no file.*; did you mean '.*/shakespeare\.txt'\?"):
        read(tmp_path / "shakespare.txt")
    with pytest.raises(UserError, match="nor is there a directory"):
        read(tmp_path / "no" / "x.txt")
    with pytest.raises(UserError, match="there are no files in"):
        read(tmp_path / "*.csv")
    with pytest.raises(UserError, match=r"s3://bucket.* of object stores gs:// alone is known; mount"):
        read("s3://bucket/x.txt")
    with pytest.raises(UserError, match=r"~no-such-user/x.txt: there is no user 'no-such-user'"):
        read("~no-such-user/x.txt")


def test_fingerprint_changes_with_the_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    source = TextFiles(str(file))
    before = source.fingerprint()
    assert source.fingerprint() == before
    file.write_text("other")
    assert source.fingerprint() != before


def test_standard_library_is_sources_and_prose():
    documents = {d["path"]: d["text"] for d in StandardLibrary().documents()}
    assert list(documents) == sorted(documents)
    assert len(documents) > 300
    ast.parse(documents["argparse.py"])
    assert not [p for p in documents if {"test", "tests", "encodings", "site-packages"} & set(p.split("/"))]
    assert 'The "assert" statement\n**********************\n' in documents["pydoc_data/topics.py"]


def test_standard_library_leaves_out_undecodable_files(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = 1")
    (tmp_path / "b.py").write_bytes(b"# \xe9")
    assert [d["path"] for d in StandardLibrary(tmp_path).documents()] == ["a.py"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Python sources in"):
        StandardLibrary(tmp_path / "empty").fingerprint()


def test_prose_of_topics():
    source = "# made\ntopics = {'a': 'x\\n' 'y', 'b': '''z'''}"
    assert StandardLibrary.topics(source) == ["x\ny", "z"]
    assert StandardLibrary.topics("x = 1") == ["x = 1"]


def test_prose_is_docstrings_and_comments_that_read_as_sentences(tmp_path):
    source = '''"""About a module."""
# This is a comment
# over two lines.
x = 1  # not on a line of its own.
# y = switched(off)
def f():
    """Does a thing."""
'''
    assert docstrings(source) == ["About a module.", "Does a thing."]
    assert comments(source) == ["This is a comment\nover two lines."]
    assert without_markup("<p>It <b>is</b> &lt;so&gt;.</p>") == "It is <so>."
    (tmp_path / "m.py").write_text(source)
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "LICENSE.txt").write_text("Free.")
    found = {document["path"]: document["text"] for document in PythonProse(root=tmp_path).documents()}
    assert found == {
        "m.py": "About a module.\n\nDoes a thing.\n\nThis is a comment\nover two lines.",
        "LICENSE.txt": "Free.",
    }
