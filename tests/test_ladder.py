"""The ladder of translators: names of systems, figures, means over seeds, the table and its pictures."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
from pathlib import Path

import jax
import pytest

from research.cli.main import main
from research.data.parallel import ParallelText
from research.training.description import load_description
from research.training.overrides import override
from research.training.translation import load

FILE = Path(__file__).parents[1] / "experiments" / "translation" / "ladder.py"
LINES = [f"Ein Hund läuft {'sehr ' * (i % 5)}schnell , weil es {i} Uhr ist ." for i in range(30)]


@pytest.fixture(scope="module")
def ladder():
    spec = importlib.util.spec_from_file_location("ladder", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ladder"] = module
    spec.loader.exec_module(module)
    return module


def test_runs_that_differ_in_their_seed_alone_are_one_system(ladder, tmp_path):
    runs = []
    for name, seed, width, origin in (
        ("a", 0, 8, False), ("b", 1, 8, False), ("c", 0, 16, False), ("d", 0, 8, True), ("e", 2, 16, False),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        described = {"name": "lstm", "seed": seed, "model": {"width": width}}
        (tmp_path / name / "experiment.json").write_text(json.dumps(described))
        if origin:
            (tmp_path / name / "origin.json").write_text("{}")
        runs.append(str(tmp_path / name))
    assert ladder.names(runs) == ["lstm", "lstm", "lstm (c)", "lstm averaged", "lstm (c)"]


def test_the_ladder_names_its_runs_and_every_option_is_an_experiments(ladder):
    own = ladder.ladder(Path("runs"), 2, "de-en")
    assert len(own) == 2 + 2 * (len(ladder.RUNGS) - 2)  # statistical systems have no seed
    assert {"ibm-model-de-en", "lstm-de-en", "lstm-dot-de-en-1"} < {path.name for path in own}
    for path, (file, *options) in own.items():
        names = [name.removeprefix("--") for name in options[::2]]
        changes = {name: value for name, value in zip(names, options[1::2], strict=True) if name != "workdir"}
        found = override(load_description(file), changes)
        assert found.data.source_language == "de" and found.data.target_language == "en"
        assert path.name.startswith(found.name) and path.name.endswith("-1") == (
            getattr(found, "seed", 0) == 1
        )


def test_figures_of_systems_become_a_table_and_pictures(ladder, tmp_path, capsys):
    for stem in ("train", "val", *ladder.TESTS):
        for language in ("en", "de"):
            raw = [line.replace(" ,", ",").replace(" .", ".") for line in LINES]
            (tmp_path / f"{stem}.{language}").write_text("\n".join(raw) + "\n", encoding="utf-8")
    data = ParallelText(directory=str(tmp_path), tokenised=True)
    lower = [line.lower() for line in LINES]
    texts = {test: (lower, lower) for test in ladder.TESTS}

    def system(seed, change):
        return ladder.System(
            "copy", seed, data, lambda lines: [change(line) for line in lines], 10, 2.0 + seed,
            lambda: ["warning: 2 lines were cut"] * seed,
        )  # fmt: skip

    out = tmp_path / "out"
    out.mkdir()
    rows = [
        ladder.measure(system(0, str), texts, None, out),
        ladder.measure(system(1, lambda line: line.replace("hund", "kater")), texts, None, out),
    ]
    assert [line for line in capsys.readouterr().err.splitlines() if "cut" in line] == [
        "copy, seed 1: warning: 2 lines were cut"
    ]
    assert rows[0]["BLEU 2016"] == pytest.approx(100) and rows[0]["raw coco"] == pytest.approx(100)
    assert rows[1]["BLEU 2016"] < 95
    assert (out / "test_2016_flickr.copy.1.txt").read_text().count("kater") == 30
    found = ladder.merged(rows)
    assert found["runs"] == 2 and found["training s"] == 2.5
    assert found["BLEU 2017"] == pytest.approx((100 + rows[1]["BLEU 2017"]) / 2)
    text = ladder.write([found], out)
    assert "| copy | en-de | 2 |" in text
    with open(out / "ladder.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["BLEU 2016"]) == pytest.approx(found["BLEU 2016"])
    for name in ("bleu", "by_length"):
        assert (out / f"{name}.png").stat().st_size > 1000 and (out / f"{name}.svg").exists()


EXPERIMENT = """
from research.attention.recurrent_mechanisms import LinearTransformer
from research.data.bitext import Bitext
from research.models.transformer import Transformer
from research.objectives.translation import Translation
from research.training.experiment import Evaluation, Experiment


def experiment():
    return Experiment(
        name="tiny",
        model=Transformer(
            vocabulary=270, layers=1, width=8, heads=2, feed_forward_width=8,
            cross_attention=LinearTransformer(),
        ),
        data=Bitext(corpus="multi30k", directory="{d}", length=64, batch_tokens=512, buckets=1),
        objective=Translation(),
        steps=2,
        evaluation=Evaluation(every=2),
        samples=0,
    )
"""


@pytest.mark.slow
def test_runs_of_two_seeds_become_one_row_from_the_command_line(ladder, tmp_path, monkeypatch, capsys):
    for stem in ("train", "val", *ladder.TESTS):
        for language in ("en", "de"):
            (tmp_path / f"{stem}.{language}").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    (tmp_path / "tiny.py").write_text(EXPERIMENT.replace("{d}", str(tmp_path)))
    runs = [str(tmp_path / f"run-{seed}") for seed in (0, 1)]
    for seed, run in enumerate(runs):
        assert main(["train", str(tmp_path / "tiny.py"), "--workdir", run, "--seed", str(seed)]) == 0
    out = tmp_path / "out"
    options = ["--data", str(tmp_path), "--beam", "2", "--limit", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["ladder.py", *runs, *options])
    capsys.readouterr()
    ladder.main()
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["tiny", "en-de", "2"]
    numbers = load(runs[0]).params
    assert cells[9] == f"{sum(leaf.size for leaf in jax.tree.leaves(numbers)):,}"
    assert len(list(out.glob("test_*.tiny.[01].txt"))) == 6
    # Cross-attention without weights is refused where somebody asks for them.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ein Hund\n")))
    assert main(["translate", runs[0], "--coverage-penalty", "0.2"]) == 2
    assert "LinearTransformer has no weights over the source" in capsys.readouterr().err
