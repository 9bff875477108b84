"""Ids of the hub, with a hub that is not there, and checkpoints to start from; pickles."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from research.cli.main import main
from research.errors import UserError
from research.interchange import hub
from research.interchange.tensors import Tensors


@pytest.fixture
def fake(monkeypatch):
    """A hub that answers with what the test says."""
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_an_id_is_fetched_and_a_path_is_not(fake, tmp_path, monkeypatch):
    asked = []
    fake.snapshot_download = lambda name, allow_patterns: (
        asked.append((name, allow_patterns)) or str(tmp_path)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert hub.located("gpt2", print) == Path("gpt2") and not asked
    assert hub.located("runs/none/there", print) == Path("runs/none/there") and not asked
    assert hub.located("some/model", print) == tmp_path
    ((name, patterns),) = asked
    assert name == "some/model" and "model*.safetensors" in patterns and not any("bin" in p for p in patterns)
    hub.located("some/model", print, allow_pickle=True)
    assert "pytorch_model*.bin" in asked[1][1]


def test_without_network_or_library_the_line_says_what_to_place_where(fake, tmp_path, monkeypatch, capsys):
    def unreachable(name, allow_patterns):
        raise ConnectionError("no route to host\nand much more")

    fake.snapshot_download = unreachable
    monkeypatch.chdir(tmp_path)
    assert main(["import", "some/model", "--out", "run"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be fetched from the hub (ConnectionError: no route to host); place config.json" in line
    assert "in a directory, say some/model, and name that" in line and not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub, .* is not installed \(pip install"):
        hub.located("some/model", print)


def test_what_is_no_checkpoint_is_left_to_whoever_wants_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.as_run("runs/missing", print) == "runs/missing"
    (tmp_path / "runs" / "x").mkdir()
    (tmp_path / "runs" / "x" / "experiment.json").write_text("{}")
    assert hub.as_run("runs/x", print) == "runs/x"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_is_read_when_allowed_if_it_holds_tensors_alone(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    file = tmp_path / "pytorch_model.bin"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(tensors, file)
    with pytest.raises(UserError, match=r"a pickle can run any code .* --allow-pickle"):
        Tensors(tmp_path)
    read = Tensors(tmp_path, allow_pickle=True)
    assert read.names() == {"a", "b"} and str(read["b"].dtype) == "bfloat16"
    np.testing.assert_array_equal(read["a"], np.arange(6.0).reshape(2, 3))

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, file)
    with pytest.raises(UserError, match="holds more than tensors") as error:
        Tensors(tmp_path, allow_pickle=True)
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)


def test_an_unsupported_architecture_lists_the_supported(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    assert main(["import", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "supported: gpt2, llama, qwen3, bert, roberta, modernbert, marian, t5" in capsys.readouterr().err
