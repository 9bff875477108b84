"""The page of one run and of many, from run directories as training leaves them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from research.cli.main import main
from research.errors import UserError
from research.report.page import page, table, text_of
from research.report.runs import metric_label, write_report


class Cells(HTMLParser):
    """Collects the rows of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def make_run(place, seed, final):
    place.mkdir(parents=True)
    description = {"kind": "experiment", "name": "mine", "seed": seed, "model": {"kind": "gpt", "width": 16}}
    (place / "experiment.json").write_text(json.dumps(description))
    rows = [
        {"step": 10, "train/loss": 3.0, "tokens_per_second": 100.0, "seconds": 1.0},
        {"step": 10, "valid/loss": final, "valid/accuracy": 0.25, "seconds": 1.5},
        {"step": 20, "train/loss": 2.0, "tokens_per_second": 300.0, "seconds": 2.0},
        {"step": 20, "valid/loss": final + 0.5, "valid/accuracy": 0.5, "seconds": 2.5},
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_the_report_of_one_run_lies_in_it_and_has_its_numbers(tmp_path, capsys):
    run = make_run(tmp_path / "a", 0, 1.5)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    header, row = Cells(text).rows[:2]
    assert header[:4] == ["run", "steps", "best validation loss (nats)", "best validation accuracy"]
    assert row == ["a", "20", "1.5", "0.5", "200", "2"]
    assert text.count("<svg") == 3 and "&quot;width&quot;: 16" in text
    assert not re.search(r'(?:src|href)="(?!#)|@import|<script', text)


def test_the_report_of_several_runs_says_in_what_they_differ(tmp_path):
    runs = [make_run(tmp_path / name / "run", seed, 1.5 + seed) for seed, name in enumerate("ab")]
    out = write_report(runs, tmp_path / "both.html")
    rows = Cells(out.read_text()).rows
    assert [row[0] for row in rows[:3]] == ["run", "a/run", "b/run"]
    assert rows[3:6] == [["run", "seed"], ["a/run", "0"], ["b/run", "1"]]


def test_what_is_no_run_or_has_no_metrics_is_refused_in_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    run = make_run(tmp_path / "a", 0, 1.5)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no metrics yet"):
        write_report([run])


def test_pages_escape_what_they_show_and_failures_take_the_rest_of_a_row():
    text = table(["name", "a", "b"], [["<i>", 1234567, 0.123456], ["worse", "failed: <b>"]], best=0)
    assert "&lt;i&gt;" in text and "1,234,567" in text and "0.1235" in text
    assert '<td class="failed" colspan="2">failed: &lt;b&gt;</td>' in text
    assert text.count('class="best"') == 1
    assert text_of(None) == "-" and page("a & b", []).count("a &amp; b") == 2
    assert metric_label("valid/loss") == "validation loss (nats)"
    assert metric_label("train/gradient_norm") == "training gradient norm"
