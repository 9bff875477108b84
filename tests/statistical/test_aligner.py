"""Sentences in, links out: order, what is left out, what is refused; and the command."""

import dataclasses
import itertools
import json

import dictionaries
import pytest

from research.cli.main import main
from research.errors import UserError
from research.statistical.aligner import Aligner, align, read_sentences
from research.statistical.bitext import LONGEST
from research.statistical.em import device_mesh
from research.statistical.iterations import Progress

SOURCE, TARGET = dictionaries.SOURCE * 3, dictionaries.TARGET * 3


def check_known(links):
    """The blue house is la maison bleue, whatever else is."""
    assert {(1, 2), (2, 1)} <= set(links) <= {(0, 0), (1, 2), (2, 1)}


def test_order_is_kept_and_what_cannot_be_aligned_is_counted():
    source = [[], *SOURCE, ["a"] * (LONGEST + 1), ["the"]]
    target = [["la"], *TARGET, ["b"], []]
    said = []
    found = align(source, target, mesh=device_mesh(1), progress=Progress(said.append))
    assert (len(found), found.empty, found.too_long) == (len(source), 2, 1)
    for pair in (0, -3, -2, -1):
        assert pair == -3 or found.links(pair % len(source)) == []
    for pair in range(2, len(SOURCE), len(dictionaries.SOURCE)):
        check_known(found.links(pair))
    assert ((found.probability > 0) & (found.probability <= 1)).all()
    lines, scored = list(found.lines()), list(found.lines(probabilities=True))
    assert lines[0] == "" and lines[2] == " ".join(f"{i}-{j}" for i, j in found.links(2))
    assert [part.split(":")[0] for part in scored[2].split()] == lines[2].split()
    assert said[0].startswith("15 sentence pairs, 48 and 42 words") and len(said) == 11


def test_case_is_one_word_unless_kept():
    upper = [[word.upper() for word in sentence] if k % 2 else sentence for k, sentence in enumerate(SOURCE)]
    settings = Aligner(model="model1", symmetrize="union")
    folded = align(upper, TARGET, settings, mesh=device_mesh(1))
    assert list(folded.lines()) == list(align(SOURCE, TARGET, settings, mesh=device_mesh(1)).lines())
    said = []
    kept = dataclasses.replace(settings, keep_case=True)
    align(upper, TARGET, kept, mesh=device_mesh(1), progress=Progress(said.append))
    entries = len({pair for e, f in zip(upper, TARGET, strict=True) for pair in itertools.product(e, f)})
    assert f" {entries} pairs of words" in said[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "modle1"}, "unknown model 'modle1'; did you mean 'model1'"),
        ({"model": "hmm", "symmetrize": "grow"}, "unknown symmetrization 'grow'"),
        ({"symmetrize": "union"}, "the joint model's links are symmetric"),
        ({"threshold": 1.5}, "threshold 1.5 is not between 0 and 1"),
        ({"prior": 0.0}, "prior 0.0 is not positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        align(SOURCE, TARGET, Aligner(**settings))


def test_bad_sentences():
    with pytest.raises(UserError, match="15 source and 14 target sentences: line n"):
        align(SOURCE, TARGET[1:])
    with pytest.raises(
        UserError, match="nothing to align: of 2 sentence pairs 1 have an empty side and 1 more"
    ):
        align([[], ["a"] * 10_000], [["b"], ["b"]])


def test_files(tmp_path):
    source, target = tmp_path / "en", tmp_path / "fr"
    source.write_bytes(b"a\xc2\xa0b  c\t d\r\n\n\x1ce\xe2\x80\xa8f\n")
    target.write_text("x\n\ny", encoding="utf-8")
    said = []
    sides = read_sentences(source, target, said.append)
    # Only spaces and tabs divide words, only LF and CR LF end lines.
    assert sides == ([["a\xa0b", "c", "d"], [], ["\x1ce\u2028f"]], [["x"], [], ["y"]])
    assert said == [f"{source}: control characters in 1 lines, the first 3; they stay in words"]
    target.write_text("x\ny\n")
    with pytest.raises(UserError, match=r"en has 3 lines and .*fr 2: line n"):
        read_sentences(source, target)
    with pytest.raises(UserError, match="are the same text"):
        read_sentences(source, source)
    target.write_bytes(b"x\n\xff\nz\n")
    with pytest.raises(UserError, match=r"fr, line 2 is not UTF-8"):
        read_sentences(source, target)


def test_command(tmp_path, capsys):
    source, target = tmp_path / "en", tmp_path / "fr"
    source.write_text("".join(" ".join(words) + "\n" for words in SOURCE))
    target.write_text("".join(" ".join(words) + "\n" for words in TARGET))
    arguments = ["align", str(source), str(target), "--model", "model1"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["pairs"], found["empty"], found["too_long"]) == (15, 0, 0)
    check_known([tuple(link) for link in found["alignment"][1]])
    assert "15 sentence pairs" in captured.err
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == " ".join(f"{i}-{j}" for i, j in found["alignment"][1]) and len(lines) == 15
    assert main([*arguments, "--symmetrize", "grow-dig"]) == 2
    assert capsys.readouterr().err == (
        "headway: unknown symmetrization 'grow-dig'; did you mean 'grow-diag'?\n"
    )
    assert main(["align", str(source), str(tmp_path / "no")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_text_that_the_chain_explains_entirely_keeps_its_links():
    """Where no sentence ever goes on from some positions, jumps from there take nothing from the others."""
    nouns, verbs = ["cat", "dog", "tree", "house", "child"], ["sees", "likes"]
    source = [["the", "big", a, verbs[(k + m) % 2], "the", b]
              for k, a in enumerate(nouns) for m, b in enumerate(nouns) if a != b]  # fmt: skip
    target = [[word.upper() for word in (s[0], s[2], s[1], *s[3:])] for s in source]
    found = align(source, target, Aligner(model="hmm"))
    assert {(2, 1), (3, 3), (5, 5)} <= set(found.links(0))
