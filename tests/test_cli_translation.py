"""Training, translating and scoring through the command line, on invented languages."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re
import shutil
import sys

import jax
import numpy as np
import pytest

from research.cli.main import main
from research.data.bitext import encode
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import Beam
from research.inference.translate import Candidate, Translator
from research.training import translation

LINES = [(f"a b {'c ' * (i % 5)}d", f"{'C ' * (i % 5)}B A {i % 7}") for i in range(48)]
EXPERIMENT = """
from research.data.bitext import Bitext
from research.models.seq2seq import Seq2Seq
from research.objectives.translation import Translation
from research.training.experiment import Checkpointing, Evaluation, Experiment


def experiment():
    return Experiment(
        name="tiny",
        model=Seq2Seq(vocabulary=270, layers=1, width=8, dropout=0.1, context=32),
        data=Bitext(corpus="files", source="{d}/s", target="{d}/t", length=24, batch_tokens=192, buckets=2),
        objective=Translation(),
        steps=8,
        evaluation=Evaluation(every=4),
        checkpointing=Checkpointing(every=4),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("translation")
    for name, side in zip("st", zip(*LINES, strict=True), strict=True):
        (directory / name).write_text("".join(f"{line}\n" for line in side))
    (directory / "tiny.py").write_text(EXPERIMENT.replace("{d}", str(directory)))
    assert main(["train", str(directory / "tiny.py"), "--workdir", str(directory / "run")]) == 0
    return directory


def say(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.slow
def test_a_run_translates_scores_and_is_scored(place, monkeypatch, capsys):
    run = str(place / "run")
    say(monkeypatch, b"a b d\n\na b c c d\n")
    assert main(["translate", run, "--beam", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    first, empty, last = map(json.loads, out.splitlines())
    assert empty == {"candidates": [{"text": "", "score": 0.0, "log_probability": 0.0}]}
    assert len(first["candidates"]) == len(last["candidates"]) == 2
    assert "3 lines" in err
    say(monkeypatch, b"a b d\n")
    assert main(["translate", run, "--beam", "2", "--json", "--n_best", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"candidates": first["candidates"][:1]}
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["translate", run]) == 2
    assert "there is no standard input" in capsys.readouterr().err
    (place / "given").write_text("\n".join(first["candidates"][i]["text"] for i in (0, 1)) + "\n")
    files = ["--data.source", str(place / "s"), "--data.target", str(place / "t")]
    assert main(["evaluate", run, *files, "--json", "--beam", "1"]) == 0
    found = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert found["sentences"] == 48 and found["bleu"]["score"] < 50
    assert sum(row["sentences"] for row in found["by_length"]) == 48
    # The same by forced decoding, a token at a time.
    say(monkeypatch, (place / "s").read_bytes())
    assert main(["translate", run, "--score", str(place / "t")]) == 0
    nats = -sum(map(float, capsys.readouterr().out.split()))
    tokenizer = Tokenizer.load(place / "run" / Tokenizer.FILE)
    count = sum(len(line) + 1 for line in encode(tokenizer, [target for _, target in LINES]))
    assert found["reference_tokens"] == count and found["too_long"] == 0
    assert found["bits_per_token"] == pytest.approx(nats / math.log(2) / count, rel=1e-4)


@pytest.mark.slow
def test_pairs_too_long_for_the_model_have_no_part_in_bits_per_token(place, tmp_path, capsys):
    found = []
    for more in ("", "a b " * 40 + "\n"):
        for name in "st":
            (tmp_path / name).write_text("a b c d\n" * 3 + more)
        files = ["--data.source", str(tmp_path / "s"), "--data.target", str(tmp_path / "t")]
        assert main(["evaluate", str(place / "run"), *files, "--beam", "1"]) == 0
        out, err = capsys.readouterr()
        assert ("test: warning: 1 lines were translated in parts" in err) == bool(more)
        line = out.splitlines()[-1]
        assert line.startswith("  bits per token of the references, teacher-forced: ")
        found.append(line.removesuffix(", without 1 pairs that are too long)").removesuffix(")"))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beam", "271"], "--beam 271 is larger than the vocabulary: 270 tokens"),
        (["--beam", "2", "--n_best", "3"], "at most the beam of 2"),
        (["--beam", "0"], "a beam of 0"),
        (["--temperature", "1", "--beam", "3"], "--beam plays no part in a draw (--temperature)"),
        (["--seed", "3"], "--seed plays no part in a search: it goes with --temperature"),
        (["--score", "t", "--coverage_penalty", "1"], "--coverage-penalty plays no part in --score"),
    ],
)
def test_bad_options_are_one_line(place, arguments, words, monkeypatch, capsys):
    say(monkeypatch, b"a\n")
    assert main(["translate", str(place / "run"), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


@pytest.mark.slow
def test_runs_of_one_vocabulary_translate_as_one(place, monkeypatch, capsys):
    run, other = str(place / "run"), str(place / "other")
    own = [
        "--data.tokenizer",
        "unigram",
        "--data.source_tokenizer",
        "bpe",
        "--model.source_vocabulary",
        "262",
    ]
    assert main(["train", str(place / "tiny.py"), "--workdir", other, "--steps", "1", *own]) == 0
    larger, same = str(place / "larger"), str(place / "run" / "tokenizer.json")
    more = ["--model.vocabulary", "300", "--data.tokenizer", same]
    assert main(["train", str(place / "tiny.py"), "--workdir", larger, "--steps", "1", *more]) == 0
    capsys.readouterr()
    say(monkeypatch, b"a b d\n" + b"a b c c . " * 8 + b"\n")
    assert main(["translate", other, "--beam", "1", "--replace_unknown", "true", "--ensemble", other]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and "1 lines were translated in parts" in err
    for arguments, words in (
        ([run, "--ensemble", other], "have different vocabularies: they make no ensemble"),
        ([run, "--ensemble", larger], "have different vocabularies: they make no ensemble"),
        ([run, "--replace_unknown", "true"], "its tokenizer can express any text"),
        ([run, "--temperature", "1", "--n_best", "2"], "one translation of each line is drawn"),
        ([run, "--top_p", "0.5"], "--top-p plays no part in a search: it goes with --temperature"),
    ):
        say(monkeypatch, b"a\n")
        assert main(["translate", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_attention_is_scored_and_drawn(place, monkeypatch, capsys):
    run = str(place / "run")
    (place / "gold").write_text("1-1 2p2\n" * 48)
    files = ["--data.source", str(place / "s"), "--data.target", str(place / "t"), "--gold"]
    score = ["evaluate", run, "--task", "alignment", *files, str(place / "gold")]
    assert main([*score, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["links"] == sum(len(target.split()) for _, target in LINES)
    # Eight steps teach it no words.
    monkeypatch.setattr(
        Translator, "translate", lambda _, lines: [[Candidate("C B A", 0.0, 0.0)] for _ in lines]
    )
    assert main(["report", run]) == 0
    assert "Attention of run" in (place / "run" / "report.html").read_text()
    assert (place / "run" / "attention" / "1.png").exists()
    capsys.readouterr()
    assert main([*score, "--layer", "1"]) == 2
    assert "--layer 1: " in (err := capsys.readouterr().err) and "has the layers 0 to 0" in err


@pytest.mark.slow
def test_a_run_on_buckets_that_was_stopped_is_the_run_that_was_not(place, capsys):
    # Seven batches make an epoch and a half.
    often = ["--schedule", "reciprocal-sqrt", "--checkpointing.every", "1", "--evaluation.every", "7"]
    runs = {name: str(place / name) for name in ("straight", "parts")}
    for name, steps in (("straight", "7"), ("parts", "4"), ("parts", "7")):
        arguments = ["train", str(place / "tiny.py"), *often, "--workdir", runs[name], "--steps", steps]
        assert main([*arguments, "--log_every", "1"]) == 0
    one, two = (translation.load(run, "7") for run in runs.values())
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [[row.get("train/loss") for row in run.directory.rows()] for run in (one, two)]
    assert [x for x in losses[0] if x] == [x for x in losses[1] if x]
    capsys.readouterr()


@pytest.mark.slow
def test_runs_are_compared_by_name(place, monkeypatch, capsys):
    run, other = str(place / "run"), str(place / "french")
    shutil.copytree(run, other)
    files = ["--data.source", str(place / "s"), "--data.target", str(place / "t")]
    answers = itertools.cycle([[target for _, target in LINES], ["B A"] * len(LINES)])

    def said(model, lines, **_):
        return [[Candidate(text, 0.0, 0.0)] for text in next(answers)]

    monkeypatch.setattr(Translator, "translate", said)
    assert main(["compare", run, other, *files]) == 0
    line, signature = capsys.readouterr().out.splitlines()
    assert re.match(rf"test: BLEU 100\.00 \({run}\) and \d+\.\d\d \({other}\), p = 0\.0\d+$", line)
    assert "nrefs:1|bs:1000|" in signature and "|version:" in signature
    assert main(["compare", run, other, *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [run, other] and found["splits"]["test"]["signature"] == signature.strip()
    description = place / "french" / "experiment.json"
    described = json.loads(description.read_text())
    described["data"]["target_language"] = "fr"
    description.write_text(json.dumps(described))
    assert main(["compare", run, other, *files]) == 2
    err = capsys.readouterr().err
    assert f"{other} translates en to fr, and the text is en to de" in err and err.count("\n") == 1


@pytest.mark.slow
def test_another_pair_of_languages_and_an_empty_test_are_one_line(place, tmp_path, capsys):
    trained = translation.load(str(place / "run"))
    other = dataclasses.replace(trained.experiment.data, target_language="fr")
    with pytest.raises(UserError, match="run translates en to de, and the text is en to fr"):
        translation.translations(trained, other, beam=Beam(1), report=print)
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text("")
    files = ["--data.source", str(tmp_path / "empty"), "--data.target", str(tmp_path / "other")]
    assert main(["evaluate", str(place / "run"), *files]) == 2
    assert "the split 'test' of the text is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_vocabularies_of_their_own_need_tables_of_their_own(place, capsys):
    for arguments, words in (
        (["--data.source_tokenizer", "bpe"], "data.source_tokenizer without model.source_vocabulary"),
        (["--model.source_vocabulary", "300"], "model.source_vocabulary without data.source_tokenizer"),
    ):
        assert main(["train", str(place / "tiny.py"), "--workdir", str(place / "no"), *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_bad_lines_and_languages_are_one_line(place, monkeypatch, capsys):
    say(monkeypatch, b"a b d\n\xff\n")
    assert main(["translate", str(place / "run")]) == 2
    out, err = capsys.readouterr()
    assert "standard input, line 2 is not UTF-8" in err
    say(monkeypatch, b"a b d\n")
    assert main(["translate", str(place / "run")]) == 0
    assert capsys.readouterr().out == out  # the first line's translation
    (place / "pairs").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n')
    blimp = ["--task", "blimp", "--data.path", str(place / "pairs")]
    assert main(["evaluate", str(place / "run"), *blimp]) == 2
    assert "is not a run of a language model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("given", "missing"), [("source", "target"), ("target", "source")])
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_lines_are_never_scored_against_the_runs_own_references(place, command, given, missing, capsys):
    run = str(place / "run")
    runs = [run] * (1 + (command == "compare"))
    assert main([command, *runs, f"--data.{given}", str(place / "s")]) == 2
    err = capsys.readouterr().err
    assert f"go together; --data.{missing} is missing" in err and err.count("\n") == 1
