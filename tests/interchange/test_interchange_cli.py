"""From the command line: a checkpoint of another tool imported, tuned with adapters, shown and exported."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.cli.main import main
from research.data.tokenizer import Tokenizer
from research.interchange.decoders import GPT2
from research.interchange.layouts import slots
from research.models.gpt import GPT
from research.training.experiment import Experiment
from research.training.paths import path_name
from research.training.program import functions

MODEL = GPT(vocabulary=64, context=16, layers=1, width=16, heads=2)
EXPERIMENT = """
from research.data.text import TextData
from research.models.gpt import GPT
from research.training.experiment import Experiment

def experiment():
    return Experiment(
        name="tuned", model=GPT(depth="unroll"), steps=3, log_every=1,
        data=TextData("files", {path!r}, split="tail", length=16, batch=8),
    )
"""


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint in the format of GPT-2, written by hand."""
    source = tmp_path / "theirs"
    source.mkdir()
    rng = np.random.default_rng(0)
    shapes = functions(Experiment(name="x", model=MODEL)).abstract_state.params
    leaves = {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    tensors = {}
    for path, slot in slots(GPT2.layout(MODEL)).items():
        row, name = slot.rows[0]
        shape = row.expected(leaves[path][1:] if slot.stacked else leaves[path])
        tensors[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2", **GPT2.configure(MODEL)}))
    Tokenizer.characters(["abcdefgh \n"]).save(source / "tokenizer.json")
    return source


@pytest.mark.slow
def test_import_tune_show_export(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("abcd efgh\n" * 200)
    (tmp_path / "tuned.py").write_text(EXPERIMENT.format(path=str(tmp_path / "text.txt")))
    tune = ["train", "tuned.py", "--from", str(checkpoint), "--initial.adapters", "lora"]
    assert main([*tune, "--initial.adapters.rank", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 3 and "new: none" in captured.err
    assert main([*tune, "--initial.adapters.rank", "2"]) == 0  # the same command goes on, with what is done
    assert "resumed from step 3" in capsys.readouterr().err
    assert main(["show", "runs/tuned", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"]["step"] == 3 and "token_embedding/table" in shown["run"]["norms"]
    assert any(row["path"].endswith("query/kernel/lora_a") for row in shown["sharding"])
    assert main(["export", "runs/tuned", "out"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert before.keys() - same == {"transformer.h.0.attn.c_attn.weight"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained with Headway for 3 steps" in card and "text.txt" in card
