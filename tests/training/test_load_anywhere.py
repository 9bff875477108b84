"""A checkpoint written by eight devices, with an engine that needs them, loaded by one, ready to call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import research

WRITER = """
import dataclasses, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.models.gpt import GPT
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Checkpointing, Experiment
from research.training.program import functions
from research.training.run_directory import claim

place = Path(sys.argv[1])
model = GPT(vocabulary=64, context=16, layers=2, width=32, heads=4, engine="ring")
experiment = Experiment(name="eight", model=model, data=TextData(length=16, batch=8))
parts = functions(experiment)
state = parts.init()
assert len(state.params["token_embedding"]["table"].addressable_shards[0].data) == 64
assert state.params["token_embedding"]["table"].addressable_shards[0].data.shape[1] == 4
with claim(place / "run", to_json(experiment)) as run:
    run.keep({Tokenizer.FILE: Tokenizer.characters(["abc"]).to_json()})
    with Checkpoints(run, Checkpointing()) as checkpoints:
        checkpoints.save(5, {"params": state.params}, None, {}, {})
params = jax.device_get(state.params)
anywhere = dataclasses.replace(model, engine="auto")
logits, _ = jax.jit(anywhere.build().apply)({"params": params}, jnp.arange(12, dtype=jnp.int32)[None])
np.save(place / "logits.npy", logits)
"""


@pytest.mark.slow
def test_what_eight_devices_wrote_one_loads(tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=300)
    run = research.load(tmp_path / "run")
    assert run.step == 5 and run.model.layers == 2
    assert run.tokenizer.decode(run.tokenizer.encode("cab")) == "cab"
    logits, _ = run(jnp.arange(12, dtype=jnp.int32)[None])
    np.testing.assert_allclose(logits, np.load(tmp_path / "logits.npy"), atol=1e-5)
