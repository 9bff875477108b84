"""Counts summed over eight simulated devices are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sharded_is_unsharded():
    flags = {"JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("sharded_alignment.py"))]
    environment = os.environ | flags | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    # Beliefs are float16, whose last digit is 5e-4 of them: sums in another order may round elsewhere.
    assert found["apart"]["directions"] < 1e-5 and found["apart"]["joint"] < 1e-3, found
