"""What an import and a load hold beyond the parameters, on a mesh of eight devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from research.data.tokenizer import Tokenizer
from research.interchange import families
from research.interchange.layouts import slots
from research.models.gpt import GPT

# In a process of its own, and with what is free given back: memory taken again would count as nothing.
MEASURE = """
import ctypes, sys
from pathlib import Path
from research.interchange import runs
from research.training import checkpoint, checkpoint_files
from research.training.trained import load

what, place = sys.argv[1], Path(sys.argv[2])

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))

def measured(function):
    def work(*args):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        found = function(*args)
        print(resident("VmHWM") - before)
        return found
    return work

if what == "import":
    runs._read = measured(runs._read)
    runs.import_run(place / "from", place / "run", lambda line: None)
else:
    import numpy as np
    from safetensors.numpy import load_file
    checkpoint_files._WINDOW = 1 << 20  # bytes of files whose checksum is computed beside count as well
    checkpoint.read_arrays = measured(checkpoint.read_arrays)
    params = load(place / "run").params
    tensors = load_file(place / "from" / "model.safetensors")
    found, table = params["token_embedding"]["table"], tensors["transformer.wte.weight"]
    assert len(found.addressable_shards) == 8
    assert found.addressable_shards[0].data.nbytes * 8 == table.nbytes
    assert np.array_equal(found, table)
    up = params["stack"]["blocks"]["feed_forward"]["up"]["kernel"]
    assert np.array_equal(up[2], tensors["transformer.h.2.mlp.c_fc.weight"])
"""


def write_checkpoint(directory: Path) -> tuple[int, int]:
    """Writes a GPT-2 of random weights as Hugging Face does; bytes of all tensors and of the largest."""
    model = GPT(vocabulary=8192, context=64, layers=4, width=1024, heads=8)
    family, config = families.of_model(model)
    shapes = jax.eval_shape(model.build().init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    tensors, rng = {}, np.random.default_rng(0)
    for path, slot in slots(family.layout(model)).items():
        for row, name in slot.rows:
            shape = row.expected(leaves[path][1:] if slot.stacked else leaves[path])
            tensors[name] = rng.random(shape, np.float32)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    Tokenizer.train_bpe(["Some text."], 260).save(directory / "tokenizer.json")
    save_file(tensors, directory / "model.safetensors")
    sizes = [tensor.nbytes for tensor in tensors.values()]
    return sum(sizes), max(sizes)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peaks of memory")
def test_beyond_the_parameters_there_is_about_a_tensor(tmp_path):
    total, largest = write_checkpoint(tmp_path / "from")
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    for what in ("import", "load"):
        command = [sys.executable, "-c", MEASURE, what, str(tmp_path)]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, cwd=root, env=environment, check=True, timeout=300, stdout=subprocess.PIPE, text=True
        )
        held = int(done.stdout.splitlines()[-1])
        assert 0.9 * total < held < total + 1.2 * largest, (what, held, total, largest)
