"""The commands on a bucket, over HTTP, each in a process of its own, as on machines that come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gcsfs")

from cloud_storage import ObjectStore
from test_cli_run import EXPERIMENT, TEXT

pytestmark = pytest.mark.slow
RUN = "gs://bucket/runs/tiny"


def test_text_run_and_compiled_programs_in_a_bucket(tmp_path):
    (tmp_path / "tiny.py").write_text(EXPERIMENT.format(path="gs://bucket/text/*.py"))
    with ObjectStore("bucket") as store:
        store.put("bucket", "text/text.py", TEXT.encode())
        common = store.environment | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            "JAX_COMPILATION_CACHE_DIR": "gs://bucket/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def call(machine, *arguments):
            environment = os.environ | common | {"HEADWAY_CACHE": str(tmp_path / machine)}
            command = [sys.executable, "-m", "research.cli", *arguments]
            return subprocess.run(
                command,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        first = call("first", "train", "tiny.py", "--workdir", RUN, "--json", "true")
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["run"] == RUN
        compiled = [name for name in store.names("bucket") if name.startswith("compiled/")]
        assert compiled
        second = call("second", "train", "tiny.py", "--workdir", RUN, "--steps", "15")
        assert second.returncode == 0 and "resumed from step 12" in second.stderr, second.stderr
        # What the first machine compiled, the second has found.
        names = [name for name in store.names("bucket") if name.startswith("compiled/")]
        assert set(compiled) <= set(names) and len(names) < 2 * len(compiled)
        reads = {name for method, _, name in store.requests if method == "GET" and name in compiled}
        assert reads
        sampled = call("third", "sample", RUN, "--prompt", "def ", "--tokens", "4")
        assert sampled.returncode == 0 and sampled.stdout.startswith("def "), sampled.stderr
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("gs")]
