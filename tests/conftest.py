"""The whole suite runs strict: no implicit dtype or rank promotion, annotated shapes and dtypes checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# In the environment, so that processes that tests start are strict too. On an accelerator, set JAX_PLATFORMS.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_ENABLE_X64"] = "0"
# Tests compile much and compute little: optimising would take half of their time. Set the flag to test
# optimised code.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import hypothesis
import jax
import jaxtyping
import pytest

# Again, for the case that a plugin imported JAX before this file.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Calls of the array code are checked against their annotations, shapes and dtypes included; must precede its
# first import. Descriptions (models, training) are left alone: they have errors of their own.
jaxtyping.install_import_hook(
    ["research.attention", "research.modules", "research.inference"], "beartype.beartype"
)

# The same examples on every run, and none too slow: a new shape is a new compilation.
hypothesis.settings.register_profile(
    "headway", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("headway")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory):
    """Prepared data goes to a directory of this session, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def on_eight_devices():
    """Runs cases of a script on eight simulated devices: (script, cases) -> the JSON object it prints."""

    def run(script, cases):
        # The optimisation level: compiling takes all the time.
        flags = {"JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        environment = os.environ | flags | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-W", "error", script, *cases]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run
