"""The report of a grid: what its tables hold, how failures stand in it, and which pictures there are."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import pytest

from research.ablation.grid import Ablation, Factor, Row
from research.ablation.report import table, text_table, write
from research.ablation.runner import run
from research.ablation.summary import summaries
from research.data.associative_recall import AssociativeRecall
from research.models.gpt import GPT
from research.objectives.recall import Recall
from research.report.page import text_of
from research.training.experiment import Experiment

BASE = Experiment(
    "base",
    GPT(vocabulary=32, context=16, layers=1, width=16, heads=2),
    AssociativeRecall(),
    Recall(),
    steps=3,
)
GRID = Ablation(
    "grid",
    BASE,
    (Factor("attention", ("model.attention",), {"full": {}, "window": {}}),),
    learning_rates=(1e-3, 2e-3, 0.9),  # the fake worker fails at the last
    seeds=(0, 1, 2),
    contexts=(8, 16),
)
ROWS = tuple(Row((("attention", label),), BASE, count) for label, count in (("full", 1000), ("window", 1005)))
FAKE = str(Path(__file__).parent / "fake_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("grid")
    results = run(
        GRID,
        ROWS,
        place,
        report=lambda line: None,
        command=lambda directory, _: [sys.executable, FAKE, str(directory)],
    )
    return place, results, write(GRID, ROWS, results, place)


def test_a_row_has_the_mean_over_seeds_at_its_best_rate(found):
    # The fake loss is 1000 * |rate - 0.002| + seed, and 0.25 more with a window: 1 ± t(2) * 1/sqrt(3).
    _, results, _ = found
    full, window = summaries(GRID, ROWS, results)
    assert full.rate == window.rate == 2e-3
    assert (full.quality.mean, window.quality.mean) == (1.0, 1.25)
    assert full.quality.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert full.less_reference is None
    assert (window.less_reference.mean, window.less_reference.half_width) == (
        0.25,
        pytest.approx(0, abs=1e-9),
    )
    assert full.mean("tokens_per_second") == 2000.0
    assert full.failures == ("learning rate 0.9, seed 0: not finite at step 3: first bad tensor is the loss",)


def test_a_row_is_compared_with_the_first_that_differs_in_matched_factors_alone():
    grid = Ablation(
        "grid",
        BASE,
        (Factor("text", ("data",), {"a": {}, "b": {}}), *GRID.factors),
        matched=("attention",),
        seeds=(0, 1),
    )
    kinds = [(text, attention) for text in "ab" for attention in ("full", "window")]
    rows = tuple(Row((("text", text), ("attention", kind)), BASE, 1000) for text, kind in kinds)
    losses = {("a", "full"): 9.0, ("a", "window"): 9.5, ("b", "full"): 1.0, ("b", "window"): 1.125}
    results = [
        {
            "labels": dict(row.labels),
            "seed": seed,
            "learning_rate": 1e-3,
            "metrics": {"valid/loss": losses[kind] + seed},
        }
        for row, kind in zip(rows, kinds, strict=True)
        for seed in grid.seeds
    ]
    less = [one.less_reference for one in summaries(grid, rows, results)]
    assert [None if x is None else x.mean for x in less] == [None, 0.5, None, 0.125]
    everything = summaries(dataclasses.replace(grid, matched=()), rows, results)
    assert [x.less_reference and x.less_reference.mean for x in everything] == [None, 0.5, -8.0, -7.875]


def test_the_tables_are_there_as_csv(found):
    place, results, _ = found
    with open(place / "rows.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["attention"] for row in rows] == ["full", "window"]
    assert rows[1]["validation loss (nats) (± 95% interval)"].startswith("1.2500 ± 2.4841")
    assert rows[1]["less the reference's, paired by seed"] == "0.2500 ± 0.0000"
    assert (rows[0]["state at 8 tokens (bytes)"], rows[0]["state at 16 tokens (bytes)"]) == ("2048", "2048")
    with open(place / "points.csv") as file:
        points = list(csv.DictReader(file))
    assert len(points) == len(results) == 10
    assert sum(bool(point["failed"]) for point in points) == 2
    assert points[0]["metrics/valid/loss"] == "1.0" and points[0]["decode_seconds/16"] == "0.002"


def test_columns_that_no_row_fills_are_left_out(found):
    _, results, _ = found
    encoders = [{**r, "state_bytes": {}, "decode_seconds": {}} for r in results]
    (whole, _), (header, body) = (table(GRID, summaries(GRID, ROWS, each)) for each in (results, encoders))
    assert [name for name in whole if name not in header] == [
        "state at 8 tokens (bytes)",
        "state at 16 tokens (bytes)",
        "decoding a token at 16 tokens (ms)",
    ]
    assert [len(row) for row in body] == [len(header)] * 2 and body[0][0] is not None


def test_the_page_holds_pictures_baselines_rates_and_failures(found):
    place, _, page = found
    text = page.read_text()
    pictures = {path.stem for path in place.glob("*.svg")}
    assert pictures == {path.stem for path in place.glob("*.png")} == {
        "training_loss", "validation", "quality_against_state", "quality_against_training_time",
        "quality_against_decoding_time", "decoding", "learning_rates",
    }  # fmt: skip
    assert text.count("<svg") == len(pictures)
    assert "majority 0.2500" in text and "within 1 %" in text and "Means over 3 seeds" in text
    assert "Every learning rate" in text and "Points that failed" in text
    assert "full, learning rate 0.9, seed 0: not finite at step 3" in text


def test_a_row_whose_points_all_failed_says_why(found):
    _, results, _ = found
    failed = [
        {**result, "failed": "memory"} if result["labels"]["attention"] == "window" else result
        for result in results
    ]
    header, body = table(GRID, summaries(GRID, ROWS, failed))
    assert body[1][:2] == ["window", 1005] and body[1][2].startswith(
        "failed: learning rate 0.001, seed 0: memory"
    )
    lines = text_table(header, body).splitlines()
    assert len(lines) == 3 and lines[2].startswith("window")


def test_seeds_count_where_the_first_failed(found):
    _, results, _ = found
    failed = [
        {**result, "failed": "memory"}
        if (result["labels"]["attention"], result["seed"]) == ("window", 0)
        else result
        for result in results
    ]
    window = summaries(GRID, ROWS, failed)[1]
    assert window.rate == 2e-3 and [result["seed"] for result in window.results] == [1, 2]
    assert window.quality.mean == 1.75 and window.less_reference.mean == 0.25
    assert all("seed 0: memory" in failure for failure in window.failures)


def test_with_one_seed_there_are_no_intervals(found):
    _, results, _ = found
    grid = dataclasses.replace(GRID, seeds=(0,))
    header, body = table(grid, summaries(grid, ROWS, [r for r in results if r["seed"] == 0]))
    assert any("one seed" in name for name in header)
    assert "±" not in "".join(text_of(cell) for row in body for cell in row)
