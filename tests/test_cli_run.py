"""A run from the command line, from training to sampling, in the smallest size that has every part."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from research.cli.main import main
from research.training.language_model import evaluate
from research.training.trained import load

ROOT = Path(__file__).parents[1]
EXPERIMENT = """
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Evaluation, Experiment

def experiment():
    return Experiment(
        name="tiny",
        model=GPT(vocabulary=64, context=16, layers=1, width=16, heads=2, depth="unroll"),
        data=TextData("files", {path!r}, tokenizer="characters", split="tail", length=16, batch=8),
        steps=12,
        evaluation=Evaluation(every=6),
        log_every=3,
        samples=3,
        ema=0.9,
    )
"""
TEXT = "".join(f"def plus_{n}(x):\n    return x + {n * n}\n\n" for n in range(200))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a text, an experiment of it, and a finished run of that; the cache is its own."""
    place = tmp_path_factory.mktemp("run")
    (place / "text.py").write_text(TEXT)
    (place / "tiny.py").write_text(EXPERIMENT.format(path=str(place / "text.py")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(place / "cache"))
        patch.chdir(place)
        assert main(["train", "tiny.py", "--baselines", "true", "--profile", "4:6"]) == 0
        yield place


@pytest.fixture
def call(place, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_training_leaves_a_run_directory_under_runs_and_its_name(place):
    run = place / "runs" / "tiny"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "valid/bits_per_byte" in row] == [6, 12]
    assert (run / "tokenizer.json").exists() and list((run / "events").iterdir())
    assert list((run / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_training_a_finished_run_again_reports_it_without_training(call):
    code, out, err = call("train", "runs/tiny", "--baselines", "true")
    assert code == 0 and "resumed from step 12" in err
    lines = out.splitlines()
    assert lines[0].startswith("validation after 12 steps: ") and "bits per byte" in lines[0]
    assert [line.split()[0] for line in lines[2:6]] == ["unigram", "bigram", "trigram", "xz"]
    assert "sample (1 of 3)" in out and "run directory: runs/tiny" in out
    assert 'headway sample runs/tiny --prompt "..."' in out


@pytest.mark.slow
def test_training_goes_on_for_more_steps_and_prints_one_json_object(call, place):
    shutil.copytree(place / "runs" / "tiny", place / "longer")
    code, out, err = call("train", "tiny.py", "--workdir", "longer", "--steps", "15", "--json")
    result = json.loads(out)
    assert code == 0 and "resumed from step 12" in err
    assert result["step"] == 15 and len(result["samples"]) == 3 and "baselines" not in result
    assert set(result["validation"]) == {"valid/loss", "valid/bits_per_byte"}


def test_a_reader_that_goes_away_does_not_end_training(place):
    command = [sys.executable, "-m", "research.cli", "train", "tiny.py", "--workdir", "unread"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=place, env=environment, **streams) as process:
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(timeout=300) == 0
    assert load(place / "unread", "newest").step == 12


def test_another_experiment_in_the_same_directory_is_refused(call):
    code, out, err = call("train", "tiny.py", "--workdir", "runs/tiny", "--model.width", "32", "--seed", "1")
    assert code == 2 and not out and err.count("\n") == 1
    assert "model.width (16 there, 32 now)" in err and "seed" in err


def test_a_text_that_has_changed_is_refused_though_its_tokenizer_is_the_same(call, place, tmp_path):
    text, run = tmp_path / "text.py", str(tmp_path / "run")
    arguments = ["train", "tiny.py", "--data.path", str(text), "--workdir", run, "--samples", "0"]
    text.write_text(TEXT)
    assert call(*arguments)[0] == 0
    text.write_text(TEXT + TEXT[:100])
    code, _, errors = call(*arguments, "--steps", "14")
    assert code == 2 and "has changed since the run began: its text.json is not the one" in errors


def test_evaluation_agrees_with_the_last_validation(call, place):
    _, out, _ = call("evaluate", "runs/tiny", "--json", "--checkpoint", "newest")
    found = json.loads(out)
    rows = [json.loads(line) for line in (place / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    last = [row["valid/bits_per_byte"] for row in rows if "valid/bits_per_byte" in row][-1]
    assert found["step"] == 12 and found["bits_per_byte"] == pytest.approx(last, rel=1e-5)


def test_a_loss_whose_perplexity_is_no_float_is_evaluated(place, monkeypatch):
    monkeypatch.chdir(place)
    trained = load("runs/tiny")
    vast = dataclasses.replace(trained, params=jax.tree.map(lambda leaf: leaf * 1e4, trained.params))
    found = evaluate(vast, trained.experiment.data, whole=False, report=print)
    assert found["loss"] > 1e3
    assert found["perplexity"] == pytest.approx(sys.float_info.max)


@pytest.mark.slow
def test_evaluation_of_another_text_measures_all_of_it_or_the_part_held_out(call, place):
    (place / "moved").mkdir(exist_ok=True)
    shutil.copy(place / "text.py", place / "moved" / "text.py")
    sizes = {}
    for name, options in {"all": [], "tail": ["--data.split", "tail"]}.items():
        _, out, _ = call("evaluate", "runs/tiny", "--json", "--data.path", "moved/text.py", *options)
        sizes[name] = json.loads(out)["bytes"]
    assert sizes["all"] == len(TEXT) and sizes["tail"] == pytest.approx(0.1 * len(TEXT), abs=1)
    code, out, _ = call("evaluate", "runs/tiny", "--data.path", "moved/text.py")
    assert code == 0 and "all of moved/text.py" in out and "perplexity" in out


def test_sampling_needs_the_run_directory_alone_and_is_a_function_of_the_seed(call, place):
    shutil.copytree(place / "runs" / "tiny", place / "elsewhere")
    os.rename(place / "text.py", place / "hidden")
    try:
        arguments = ("elsewhere", "--prompt", "def ", "--count", "2", "--tokens", "5", "--json", "--seed")
        first, again, other = (json.loads(call("sample", *arguments, seed)[1]) for seed in ("1", "1", "2"))
    finally:
        os.rename(place / "hidden", place / "text.py")
    assert first["samples"] == again["samples"] != other["samples"]
    assert len(first["samples"]) == 2 and all(text.startswith("def ") for text in first["samples"])


@pytest.mark.slow
def test_sampling_prints_the_text_alone(call):
    code, out, _ = call("sample", "runs/tiny", "--prompt", "def ", "--tokens", "5", "--temperature", "0")
    assert code == 0 and out.startswith("def ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sample", "runs/tiny", "--prompt", "déf"], "character 'é'"),
        (["sample", "runs/tiny", "--tokens", "16"], "16 tokens to generate"),
        (["sample", "runs/tiny", "--checkpoint", "13"], "no checkpoint '13'"),
        (["sample", "runs"], "runs is not a run directory: it has no experiment.json"),
        (["evaluate", "runs/tiny", "--data.path", "texd.py"], "did you mean 'text.py'?"),
        (["show", "runs/tiny", "--steps", "3"], "the description of a run is what it is: leave out --steps"),
        (
            ["show", "other.py", "--workdir", "runs/tiny"],
            "different experiment: model.layers (1 there",
        ),
        (["evaluate", "runs/tiny", "--beam", "3"], "for translation, which runs/tiny is not"),
        (
            ["evaluate", "runs/tiny", "--task", "blimp", "--data.path", "text.py", "--data.field", "text"],
            "--data.field plays no part in --task blimp",
        ),
        (["train", "tiny.py", "--workdir", "new", "--data.path", "empty.txt"], "empty.txt is empty"),
        (
            ["train", "tiny.py", "--workdir", "new", "--data.path", "latin.txt"],
            "latin.txt is not UTF-8 at byte 3",
        ),
        (["train", "tiny.py", "--workdir", "new", "--data.batch", "4096"], "too little training text"),
        (["train", "tiny.py", "--workdir", "new", "--model.vocabulary", "20"], "use --model.vocabulary"),
        (
            ["evaluate", "runs/tiny", "--data.path", "text.py", "--data.source", "python-prose"],
            "data.path is for data.source 'files', not for 'python-prose'",
        ),
        # The run's own path is not taken for the source's: it gets as far as reading that.
        (["evaluate", "runs/tiny", "--data.source", "python-prose"], "character"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, place, arguments, line):
    (place / "empty.txt").write_text("")
    (place / "latin.txt").write_bytes("abcé".encode("latin-1"))
    (place / "other.py").write_text((place / "tiny.py").read_text().replace("layers=1", "layers=2"))
    code, out, err = call(*arguments)
    assert code == 2 and not out and line in err
    assert err.splitlines()[-1].startswith("headway: ")
    assert not (place / "new").exists()


def test_a_model_beyond_the_memory_is_one_line(call):
    code, out, err = call("train", "tiny.py", "--model.width", "100000000", "--workdir", "runs/vast")
    assert (code, out) == (2, "")
    assert re.match(
        r"headway: out of memory: .*Out of memory.*; make the model, the batch", err.splitlines()[-1]
    )


def test_a_directory_that_is_no_run_is_refused_and_left_alone(call, place):
    (place / "thesis").mkdir()
    (place / "thesis" / "thesis.tex").write_text("precious")
    code, _, err = call("train", "tiny.py", "--workdir", "thesis")
    assert code == 2 and "it has thesis.tex" in err
    assert [p.name for p in (place / "thesis").iterdir()] == ["thesis.tex"]


def test_show_of_a_run_adds_step_norms_and_metrics(call):
    code, out, _ = call("show", "runs/tiny", "--json")
    found = json.loads(out)["run"]
    assert code == 0 and found["step"] == 12 and "valid/bits_per_byte" in found["metrics"]
    scale = found["norms"]["final_norm/scale"]
    assert scale["rms"] == pytest.approx(1.0, abs=0.1) and scale["norm"] == pytest.approx(4 * scale["rms"])


@pytest.mark.slow
def test_show_of_an_experiment_takes_its_run_along(call):
    code, out, _ = call("show", "tiny.py", "--workdir", "runs/tiny")
    assert code == 0 and "run runs/tiny: step 12" in out


@pytest.mark.slow
def test_a_signal_stops_with_exit_code_3_and_the_same_command_goes_on(place):
    command = [sys.executable, "-m", "research.cli", "train", "tiny.py", "--workdir", "stopped"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    endless = [*command, "--steps", "2000000", "--checkpointing.every", "1000000"]
    with subprocess.Popen(endless, cwd=place, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signal.SIGTERM)
                break
        last = process.stderr.read().splitlines()[-1]
        assert process.wait(timeout=60) == 3
    stopped = re.fullmatch(r"headway: stopped by SIGTERM at step (\d+) of 2000000; saved in .*", last)
    assert stopped, last
    step = int(stopped[1])
    short = [*command, "--steps", str(step + 3)]
    done = subprocess.run(short, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"resumed from step {step}\n" in done.stderr
    assert f"validation after {step + 3} steps" in done.stdout


@pytest.mark.slow
def test_a_run_of_eight_devices_is_sampled_from_and_evaluated_on_one(place, call):
    command = [sys.executable, "-m", "research.cli", "train", "tiny.py", "--workdir", "eight"]
    command += ["--sharding.strategy=fsdp+tensor", "--sharding.data=2", "--sharding.tensor=2"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    environment = os.environ | flags
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    eight, one = (json.loads(call("evaluate", run, "--json")[1]) for run in ("eight", "runs/tiny"))
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert call("sample", "eight", "--tokens", "3")[0] == 0
