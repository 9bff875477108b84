"""What an import and a load hold beyond the parameters, on a mesh of eight devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import json, sys
from pathlib import Path
import jax, numpy as np
from safetensors.numpy import save_file
import research
from research.data.tokenizer import Tokenizer
from research.interchange import families, runs
from research.interchange.layouts import slots
from research.models.gpt import GPT
from research.training import checkpoint
from research.training.trained import load

place = Path(sys.argv[1])
model = GPT(vocabulary=8192, context=64, layers=4, width=1024, heads=8)
family, config = families.of_model(model)
shapes = jax.eval_shape(model.build().init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape
          for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
tensors, rng = {}, np.random.default_rng(0)
for path, slot in slots(family.layout(model)).items():
    for row, name in slot.rows:
        shape = row.expected(leaves[path][1:] if slot.stacked else leaves[path])
        tensors[name] = rng.random(shape, np.float32)
(place / "from").mkdir()
(place / "from" / "config.json").write_text(json.dumps(config))
Tokenizer.train_bpe(["Some text."], 260).save(place / "from" / "tokenizer.json")
save_file(tensors, place / "from" / "model.safetensors")
largest, total = max(x.nbytes for x in tensors.values()), sum(x.nbytes for x in tensors.values())
table = tensors["transformer.wte.weight"]
third = tensors["transformer.h.2.mlp.c_fc.weight"]
del tensors

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))

costs = {}
def measured(name, function):
    def work(*args):
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        found = function(*args)
        costs[name] = resident("VmHWM") - before
        return found
    return work

runs._read = measured("import", runs._read)
checkpoint.read_arrays = measured("load", checkpoint.read_arrays)
runs.import_run(place / "from", place / "run", print)
trained = load(place / "run")
found = trained.params["token_embedding"]["table"]
assert len(found.addressable_shards) == 8 and found.addressable_shards[0].data.nbytes * 8 == table.nbytes
assert np.array_equal(found, table)
assert np.array_equal(trained.params["stack"]["blocks"]["feed_forward"]["up"]["kernel"][2], third)
print(json.dumps({"total": total, "largest": largest, **costs}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peaks of memory")
def test_beyond_the_parameters_there_is_about_a_tensor(tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env=environment, check=True, timeout=300, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("import", "load"):
        # Memory that was freed before counts as had already, so it may be less than all.
        assert 0.5 * found["total"] < found[name] < found["total"] + 1.2 * found["largest"], found
