"""Trained aligners on disk, applied to other text, and links against gold: through the command."""

import dataclasses
import json
import signal
import subprocess
import sys

import dictionaries
import jax
import numpy as np
import pytest

from research.cli.main import main
from research.errors import UserError
from research.statistical.aligner import MODELS, Aligner, apply, train
from research.training import alignment_training, kept_iterations, trained_aligner
from research.training.migrations import FORMAT
from research.training.run_directory import open_run
from research.training.word_alignment import AlignedFiles, WordAlignment

SOURCE, TARGET = dictionaries.SOURCE * 3, dictionaries.TARGET * 3
NEW = (
    ["the blue house".split(), [], "a big flower and the house the big flower the house".split()],  # noqa: SIM905
    ["la maison bleue".split(), ["la"], "une grande fleur et la maison".split()],  # noqa: SIM905
)


# Model 5 begins with Models 3 and 4, and these with the HMM.
FAST = ("joint", "model2", "model5")
EVERY = [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    for name, sentences in (("en", SOURCE), ("fr", TARGET), ("new.en", NEW[0]), ("new.fr", NEW[1])):
        (directory / name).write_text("".join(" ".join(words) + "\n" for words in sentences))
    (directory / "gold").write_text("1-1 2-2\n1-1 2-3 3-2\n1p1 2-2\n")
    return directory


def description(files, model):
    data = AlignedFiles(str(files / "en"), str(files / "fr"), str(files / "gold"))
    return WordAlignment("tiny", data, Aligner(model=model))


def same_tables(one, other):
    one, other = trained_aligner.load(one), trained_aligner.load(other)
    assert one.words == other.words and one.tables.keys() == other.tables.keys()
    for name, table in one.tables.items():
        np.testing.assert_array_equal(table, other.tables[name])


def rows(path):
    return [{**row, "seconds": 0} for row in open_run(path).rows()]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.mark.parametrize("model", EVERY)
def test_run_of_every_model(model, files, tmp_path, monkeypatch):
    """Loaded, a model says of new text what it said before it was saved; interrupted, it ends as the same."""
    run = tmp_path / "run"
    result, learnt, score = alignment_training.run(description(files, model), run)
    trained, _ = train(SOURCE, TARGET, Aligner(model=model))
    loaded = trained_aligner.load(run)
    assert loaded.aligner == trained.aligner and loaded.words == trained.words
    direct, again = (apply(which, *NEW) for which in (trained, loaded))
    for field in dataclasses.fields(direct):
        np.testing.assert_array_equal(getattr(direct, field.name), getattr(again, field.name))
    assert (again.empty, len(again), again.links(1)) == (1, 3, [])
    if model != "diagonal":  # which would have them straight
        assert {(1, 2), (2, 1)} <= set(again.links(0))
        assert score.aer < 0.5
    assert all(i < 11 and j < 6 for i, j in again.links(2)) and (0, 0) in again.links(2)
    assert ((again.probability > 0) & (again.probability <= 1)).all()
    same = apply(trained, SOURCE, TARGET)
    if model != "joint":  # whose counts have the text itself in them
        for pair in range(len(SOURCE)):
            assert same.links(pair) == learnt.links(pair)
    if model in ("joint", "model5", "model6"):  # every kind of phase
        check_interrupted(description(files, model), run, tmp_path / "stopped", result, monkeypatch)


def check_interrupted(what, straight, path, result, monkeypatch):
    """Stops before a state is saved, goes on and stops behind another, and goes on."""
    save, saves = kept_iterations.save_arrays, []

    def stopping(file, arrays):
        saves.append(file)
        if len(saves) == 3:
            raise Killed
        save(file, arrays)
        if len(saves) == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(kept_iterations, "save_arrays", stopping)
        for _ in range(2):
            with pytest.raises(Killed):
                alignment_training.run(what, path)
        ended, _, _ = alignment_training.run(what, path)
    assert ended.step == result.step and ended.validation == result.validation
    same_tables(path, straight)
    assert rows(path) == rows(straight) and len(rows(path)) == result.step
    assert not (path / "iterations").exists()


KILLING = """
import os, signal, sys
from research.cli.main import main
from research.training import kept_iterations

save, left = kept_iterations.save_arrays, int(sys.argv.pop(1))

def killing(path, arrays):
    global left
    save(path, arrays)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

kept_iterations.save_arrays = killing
sys.exit(main(sys.argv[1:]))
"""


def test_killed_between_iterations(files, tmp_path, capsys):
    """A process that is killed after iteration 7 of 10 leaves what ends as an unharmed run does."""
    learn = ["align", str(files / "en"), str(files / "fr"), "--model", "model1"]
    straight, killed = tmp_path / "a" / "run", tmp_path / "b" / "run"
    # Of as many devices as the tests have: sums are taken in another order where there are more.
    program = (
        f"import jax\njax.config.update('jax_num_cpu_devices', {len(jax.devices())})\njax.devices()\n"
        + KILLING
    )
    done = subprocess.run([sys.executable, "-c", program, "7", *learn, "--out", str(killed)], timeout=120)
    assert done.returncode == -signal.SIGKILL and len(rows(killed)) == 7
    assert main(["show", str(killed)]) == 0
    assert "not trained to the end yet" in capsys.readouterr().out
    assert main(["align", *learn[1:3], "--run", str(killed)]) == 2
    assert f"is not trained yet: headway train {killed} goes on with it" in capsys.readouterr().err
    assert main(["align", *learn[1:3], "--out", str(killed)]) == 2
    assert "made by a different experiment: aligner.model ('model1' there" in capsys.readouterr().err
    assert main([*learn, "--out", str(straight)]) == 0
    lines = capsys.readouterr().out
    assert main([*learn, "--out", str(killed)]) == 0
    assert capsys.readouterr().out == lines
    same_tables(killed, straight)
    assert rows(killed) == rows(straight)
    assert main(["align", *learn[1:], "--out", str(killed)]) == 0  # done, so there is nothing to do
    assert capsys.readouterr().out == lines


def test_damaged_iterations(files, tmp_path, monkeypatch):
    what = description(files, "model1")
    with monkeypatch.context() as patch:
        patch.setattr(alignment_training, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            alignment_training.run(what, tmp_path)
    (tmp_path / "iterations" / "backward-uniform.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"backward-uniform.npz is damaged .*: delete it"):
        alignment_training.run(what, tmp_path)


def test_commands(files, tmp_path, capsys):
    names = {name: str(files / name) for name in ("en", "fr", "new.en", "new.fr")}
    run, links, gold = (str(tmp_path / name) for name in ("run", "links", "gold"))
    learn = ["align", names["en"], names["fr"], "--model", "model1"]
    assert main([*learn, "--out", run, "--gold", str(files / "gold")]) == 0
    err = capsys.readouterr().err
    assert f"--run {run} SOURCE TARGET" in err and " links in 3 sentence pairs)" in err
    assert main(["show", run]) == 0
    shown = capsys.readouterr().out
    assert "source   15 sentences, 48 words, 6 different" in shown and "AER" in shown
    assert "forward  log-likelihood a pair by iteration: -" in shown and "entries/forward/pairs" in shown
    assert main(["show", run, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["log_likelihood"]["backward"]) == 5 and shown["score"]["pairs"] == 3
    assert main(["report", run]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert capsys.readouterr().out.strip().endswith("report.html")
    for part in (f"<td>{100 * shown['score']['aer']:.4g}</td>", "iteration, backward", "Pair 3", "AER, %"):
        assert part in page
    use = ["align", names["new.en"], names["new.fr"], "--run", run]
    assert main([*use, "--probabilities", "--symmetrize", "union"]) == 0
    lines = capsys.readouterr().out
    assert lines.splitlines()[1] == "" and "1-2:" in lines.splitlines()[0]
    (tmp_path / "links").write_text(lines)
    (tmp_path / "gold").write_text("1p1 2-3 3-2\n\n1-1\n")
    text = ["--data.source", names["new.en"], "--data.target", names["new.fr"]]
    score = ["evaluate", links, "--task", "alignment", "--gold", gold]
    assert main([*score, *text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 3 and found["recall"] == 1 and 0 < found["precision"] < 1
    assert main(score) == 0
    assert f"recall 100.00 %, AER {100 * found['aer']:.2f} %" in capsys.readouterr().out
    assert main(["evaluate", run, "--gold", gold, *text, "--pictures", str(tmp_path / "pictures")]) == 0
    assert "AER" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"report.html", "pair-1.png", "pair-1.svg"} <= files
    for arguments, error in (
        ([*use, "--model", "hmm"], "--model is for training"),
        ([*use, "--out", links], "--run uses what was trained, --out saves what is trained now"),
        ([*use[:3], "--run", str(tmp_path)], "is no aligner's run directory"),
        ([*learn, "--out", str(tmp_path)], "is not empty and not a run directory"),
        (["align", names["en"], names["fr"], "--model", "model1", "--out", run], "data.gold"),
        (["translate", run], "'word-alignment', which does not translate"),
        (["sample", run], "'word-alignment', which has no network; it is for align, train, show"),
        (["evaluate", run, "--gold", gold], "needs both sides: --data.source FILE --data.target FILE"),
        (["evaluate", links, "--task", "alignment"], "needs --gold FILE"),
        (["evaluate", links, "--task", "alignmnt"], "unknown task 'alignmnt'; did you mean 'alignment'"),
        (["evaluate", links, "--gold", gold], "--gold, --pictures and --layer go with --task alignment"),
        ([*score, "--data.path", "x"], "--data.path has nothing to do with"),
    ):
        assert main(arguments) == 2
        assert error in capsys.readouterr().err
    (tmp_path / "gold").write_text("1-1\n\n12p1\n")
    assert main([*score, *text]) == 2
    assert "gold, line 3: link 12-1 is outside its sentence pair" in capsys.readouterr().err


def test_damaged_runs(files, tmp_path):
    run = tmp_path / "run"
    alignment_training.run(description(files, "model1"), run)
    tables, stored = (run / "tables.safetensors").read_bytes(), (run / "experiment.json").read_text()
    for file, content, error in (
        ("tables.safetensors", tables[:-5], "cannot read .*tables.safetensors"),
        ("vocabulary.json", "{", "vocabulary.json is damaged"),
        ("vocabulary.json", "{}", "run is damaged"),
        ("experiment.json", stored.replace(f'"format": {FORMAT}', '"format": 9'), "its format is 9"),
        ("experiment.json", stored.replace("threshold", "colour"), "no field 'colour'"),
    ):
        path = run / file
        before = path.read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=error):
            trained_aligner.load(run)
        path.write_bytes(before)
    with pytest.raises(UserError, match="no run directory"):
        trained_aligner.load(tmp_path / "nothing")
    # As runs were before: the description by itself.
    aligner = json.loads(stored)["aligner"] | {"format": 1}
    (run / "experiment.json").unlink()
    (run / "aligner.json").write_text(json.dumps(aligner))
    assert trained_aligner.load(run).aligner == Aligner(model="model1")
