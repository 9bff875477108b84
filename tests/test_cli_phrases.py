"""A phrase-based system through the command line, on two invented languages."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time

import pytest

from research.cli.main import main
from research.training.phrase_training import ALIGNMENT, LANGUAGE_MODEL, PHRASES, TUNING, WEIGHTS

NOUNS = ["cat:kato", "dog:hundo", "tree:arbo", "house:domo", "child:infano"]
ADJECTIVES = ["big:granda", "red:rugha", "old:maljuna"]
VERBS = ["sees:vidas", "likes:amas"]
EXPERIMENT = """
from research.data.parallel import ParallelText
from research.statistical.aligner import Aligner
from research.statistical.stack_decoder import Search
from research.statistical.tuning import Tuning
from research.training.phrase_based import NgramLanguageModel, PhraseBased


def experiment():
    return PhraseBased(
        name="tiny",
        data=ParallelText(
            corpus="files", source="{d}/s", target="{d}/t", valid_source="{d}/vs", valid_target="{d}/vt"
        ),
        alignment=Aligner(model="model1", symmetrize="grow-diag-final-and"),
        language_model=NgramLanguageModel(order=3),
        search=Search(stack=20, candidates=100),
        tuning=Tuning(n_best=10, iterations=2),
    )
"""


def sentences():
    """English noun phrases have the adjective first, those of the other language last."""
    found = []
    for k, noun in enumerate(NOUNS):
        for m, adjective in enumerate(ADJECTIVES):
            verb, other = VERBS[(k + m) % 2], NOUNS[(k + m + 1) % 5]
            (a, aa), (n, nn), (v, vv), (o, oo) = (w.split(":") for w in (adjective, noun, verb, other))
            found.append((f"the {a} {n} {v} the {o}", f"la {nn} {aa} {vv} la {oo}"))
            found.append((f"the {o} {v} the {a} {n} .", f"la {oo} {vv} la {nn} {aa} ."))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("phrases")
    pairs = sentences()
    splits = {"s": pairs[4:], "vs": pairs[:4]}
    for name, part in splits.items():
        other = name.replace("s", "t")
        (directory / name).write_text("".join(f"{source}\n" for source, _ in part))
        (directory / other).write_text("".join(f"{target}\n" for _, target in part))
    (directory / "tiny.py").write_text(EXPERIMENT.replace("{d}", str(directory)))
    assert main(["train", str(directory / "tiny.py"), "--workdir", str(directory / "run")]) == 0
    return directory


def say(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_run_translates(place, monkeypatch, capsys):
    say(monkeypatch, b"the big tree likes the child\n\nthe  unheard dog sees the house .\n")
    assert main(["translate", str(place / "run")]) == 0
    out, err = capsys.readouterr()
    first, empty, last = out.split("\n")[:-1]
    assert first == "la arbo granda amas la infano" and empty == "" and "unheard" in last
    assert "3 lines" in err


def test_candidates_with_scores(place, monkeypatch, capsys):
    say(monkeypatch, b"the red cat sees the tree\n")
    assert main(["translate", str(place / "run"), "--n_best", "3"]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    rows = [line.split(" ||| ") for line in lines]
    assert [row[0] for row in rows] == ["0"] * 3 and len({row[1] for row in rows}) == 3
    assert sorted((float(row[2]) for row in rows), reverse=True) == [float(row[2]) for row in rows]
    say(monkeypatch, b"the red cat sees the tree\n")
    assert main(["translate", str(place / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"]
    assert found[0]["text"] == rows[0][1] and found[0]["log_probability"] is None


def test_it_is_scored_compared_shown_and_reported(place, capsys):
    run = str(place / "run")
    files = ["--data.source", str(place / "s"), "--data.target", str(place / "t")]
    assert main(["evaluate", run, *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert found["sentences"] == 26 and found["bleu"]["score"] > 90
    assert main(["compare", run, run, *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"]["p_value"] == 1
    assert main(["show", run]) == 0
    shown = capsys.readouterr().out
    assert "language_model: ngram-language-model" in shown and "source phrases" in shown
    assert main(["show", run, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ngrams"][0] == 15 and shown["phrase_pairs"] > 50 and set(shown["weights"]) >= {"words"}
    assert main(["show", str(place / "tiny.py")]) == 0
    assert "kind" not in capsys.readouterr().out
    assert main(["report", run]) == 0
    page = (place / "run" / "report.html").read_text()
    assert "best validation BLEU" in page


def test_stages_that_are_done_are_not_done_again(place, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    kept = {name: (run / name).read_bytes() for name in (ALIGNMENT, PHRASES, LANGUAGE_MODEL, WEIGHTS)}
    rows = (run / "metrics.jsonl").read_text()
    (run / PHRASES).unlink()
    (run / WEIGHTS).unlink()
    before = (run / ALIGNMENT).stat().st_mtime_ns
    assert main(["train", str(place / "tiny.py"), "--workdir", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert (run / ALIGNMENT).stat().st_mtime_ns == before
    assert {name: (run / name).read_bytes() for name in kept} == kept
    assert (run / "metrics.jsonl").read_text() == rows
    assert PHRASES in err and ALIGNMENT not in err
    assert json.loads(out)["validation"]["valid/bleu"] == json.loads(kept[WEIGHTS])["bleu"]


def test_a_run_that_was_stopped_goes_on(place, tmp_path, capsys):
    run = tmp_path / "run"

    def stop():
        while not (run / ALIGNMENT).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(["train", str(place / "tiny.py"), "--workdir", str(run)]) == 3
    thread.join()
    assert "the same command goes on" in capsys.readouterr().err
    assert main(["translate", str(run)]) == 2
    assert "is not tuned" in capsys.readouterr().err
    assert main(["train", str(place / "tiny.py"), "--workdir", str(run)]) == 0
    assert (run / WEIGHTS).read_bytes() == (place / "run" / WEIGHTS).read_bytes()
    assert (run / TUNING).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "{d}/tiny.py", "--phrases.longest", "0"], "phrases.longest 0: at least 1"),
        (["train", "{d}/tiny.py", "--phrases.smoothing", "laplace"], "expected one of none, good-turing"),
        (["train", "{d}/tiny.py", "--alignment.model", "hmmm"], "unknown model 'hmmm'; did you mean 'hmm'?"),
        (["train", "{d}/tiny.py", "--model.layers", "2"], "unknown option --model.layers"),
        (["train", "{d}/tiny.py", "--from", "x"], "unknown option --from"),
        (["train", "{d}/tiny.py", "--profile", "1:2"], "--profile"),
        (
            ["train", "{d}/tiny.py", "--workdir", "{d}/run", "--language_model.order", "2"],
            "different experiment",
        ),
        (
            ["train", "{d}/tiny.py", "--workdir", "{d}/new", "--language_model.path", "{d}/lm.binary"],
            "only KenLM reads {d}/lm.binary: --language_model.reader kenlm",
        ),
        (["sample", "{d}/run"], "'phrase-based', which has no network"),
        (["plan", "{d}/tiny.py", "--topology", "v5e:4x4"], "'phrase-based', which has no network"),
        (["translate", "{d}/run", "--score", "{d}/t"], "gives no probability to a translation"),
        (["translate", "{d}/run", "--length_penalty", "2"], "weighs length by itself"),
    ],
)
def test_bad_input_is_one_line(place, arguments, words, monkeypatch, capsys):
    say(monkeypatch, b"a\n")
    assert main([argument.replace("{d}", str(place)) for argument in arguments]) == 2
    err = capsys.readouterr().err
    words = words.replace("{d}", str(place))
    assert words in err.split("\n")[-2] and err.split("\n")[-2].startswith("headway: ")


@pytest.mark.parametrize(("name", "words"), [("s", "no arpa file"), ("absent.arpa", "no such file")])
def test_a_language_model_that_cannot_be_read_is_told_of_before_alignment(
    place, tmp_path, name, words, capsys
):
    given = ["--workdir", str(tmp_path / "run"), "--language_model.path", str(place / name)]
    assert main(["train", str(place / "tiny.py"), *given]) == 2
    message = capsys.readouterr().err.split("\n")[-2]
    assert message.startswith("headway: ") and str(place / name) in message and words in message.lower()
    assert not (tmp_path / "run" / ALIGNMENT).exists()


def test_text_that_changed_since_is_refused(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "text.json").write_text("{}\n")
    assert main(["train", str(place / "tiny.py"), "--workdir", str(tmp_path / "run")]) == 2
    assert "has changed since the run began" in capsys.readouterr().err


def test_kenlm_reads_the_language_model_of_a_run(place, tmp_path, monkeypatch, capsys):
    pytest.importorskip("kenlm")
    run = tmp_path / "run"
    given = ["--language_model.path", str(place / "run" / LANGUAGE_MODEL), "--language_model.reader", "kenlm"]
    assert main(["train", str(place / "tiny.py"), "--workdir", str(run), *given]) == 0
    assert (run / LANGUAGE_MODEL).read_bytes() == (place / "run" / LANGUAGE_MODEL).read_bytes()
    ours, theirs = (json.loads((one / WEIGHTS).read_text()) for one in (place / "run", run))
    assert theirs["bleu"] == ours["bleu"]
    assert theirs["weights"] == pytest.approx(ours["weights"], abs=1e-4)
    capsys.readouterr()
    found = []
    for one in (place / "run", run):
        say(monkeypatch, b"the big tree likes the child\n")
        assert main(["translate", str(one)]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert main(["show", str(run)]) == 0
    assert "in a model that KenLM reads" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "kenlm", None)
    say(monkeypatch, b"a\n")
    assert main(["translate", str(run)]) == 2
    assert 'pip install -e ".[kenlm]"' in capsys.readouterr().err
