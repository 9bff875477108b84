"""Trained aligners on disk, applied to other text, and links against gold: through the command."""

import dataclasses
import json

import dictionaries
import numpy as np
import pytest

from research.cli.main import main
from research.errors import UserError
from research.statistical import aligner_run
from research.statistical.aligner import MODELS, Aligner, apply, train
from research.statistical.em import device_mesh

SOURCE, TARGET = dictionaries.SOURCE * 3, dictionaries.TARGET * 3
NEW = (
    ["the blue house".split(), [], "a big flower and the house the big flower the house".split()],  # noqa: SIM905
    ["la maison bleue".split(), ["la"], "une grande fleur et la maison".split()],  # noqa: SIM905
)


# Model 5 begins with Models 3 and 4, and these with the HMM.
FAST = ("joint", "model2", "model5")
EVERY = [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]


@pytest.mark.parametrize("model", EVERY)
def test_run_of_every_model(model, tmp_path):
    """Saved and loaded, a model says the same of text it has not seen, with words and lengths it has not."""
    mesh = device_mesh(1)
    trained, learnt = train(SOURCE, TARGET, Aligner(model=model), mesh=mesh)
    aligner_run.save(trained, tmp_path / "run")
    loaded = aligner_run.load(tmp_path / "run")
    assert loaded.aligner == trained.aligner and loaded.words == trained.words
    direct, again = (apply(which, *NEW, mesh=mesh) for which in (trained, loaded))
    for field in dataclasses.fields(direct):
        np.testing.assert_array_equal(getattr(direct, field.name), getattr(again, field.name))
    assert (again.empty, len(again), again.links(1)) == (1, 3, [])
    if model != "diagonal":  # which would have them straight
        assert {(1, 2), (2, 1)} <= set(again.links(0))
    assert all(i < 11 and j < 6 for i, j in again.links(2)) and (0, 0) in again.links(2)
    assert ((again.probability > 0) & (again.probability <= 1)).all()
    same = apply(trained, SOURCE, TARGET, mesh=mesh)
    if model != "joint":  # whose counts have the text itself in them
        for pair in range(len(SOURCE)):
            assert same.links(pair) == learnt.links(pair)


def test_commands(tmp_path, capsys):
    names = {}
    for name, sentences in (("en", SOURCE), ("fr", TARGET), ("new.en", NEW[0]), ("new.fr", NEW[1])):
        names[name] = str(tmp_path / name)
        (tmp_path / name).write_text("".join(" ".join(words) + "\n" for words in sentences))
    run, links, gold = (str(tmp_path / name) for name in ("run", "links", "gold"))
    learn = ["align", names["en"], names["fr"], "--model", "model1"]
    assert main([*learn, "--out", run]) == 0
    assert f"--run {run} SOURCE TARGET" in capsys.readouterr().err
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
        ([*use[:3], "--run", str(tmp_path)], "it has no aligner.json"),
        ([*learn, "--out", run], "there is something there already"),
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


def test_damaged_runs(tmp_path):
    trained, _ = train(SOURCE, TARGET, Aligner(model="model1"), mesh=device_mesh(1))
    aligner_run.save(trained, tmp_path / "run")
    tables = (tmp_path / "run" / "tables.safetensors").read_bytes()
    description = json.loads((tmp_path / "run" / "aligner.json").read_text())
    for file, content, error in (
        ("tables.safetensors", tables[:-5], "cannot read .*tables.safetensors"),
        ("aligner.json", "{", "aligner.json is damaged"),
        ("aligner.json", json.dumps(description | {"format": 2}), "has format 2, and this version reads 1"),
        ("aligner.json", json.dumps(description | {"colour": 2}), "run is damaged"),
    ):
        path = tmp_path / "run" / file
        before = path.read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=error):
            aligner_run.load(tmp_path / "run")
        path.write_bytes(before)
    with pytest.raises(UserError, match="no run directory"):
        aligner_run.load(tmp_path / "nothing")
