"""Seconds from the command to the first step and to the end of a short run, with nothing compiled before and
with everything in the compilation cache.

    python experiments/benchmarks/startup.py --pairs 3 --json startup.json

Each start is a process of its own, `headway train` of the quickstart's model, in a run directory of its own.
The tokenised text is there before (it is made by a start that is not counted); the cache of programs
(JAX_COMPILATION_CACHE_DIR) is empty at the cold start and is what that left at the warm one. Run it on a
machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENT = Path(__file__).parents[1] / "gpt" / "quickstart.py"
COMMAND = [sys.executable, "-m", "research.cli", "train", str(EXPERIMENT)]


def start(work: Path, name: str, options: list[str]) -> dict[str, float]:
    """Trains for three steps; returns the seconds until the first was done, and until the process ended."""
    places = {"HEADWAY_CACHE": str(work / "data"), "JAX_COMPILATION_CACHE_DIR": str(work / name)}
    environment = os.environ | places | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with tempfile.TemporaryDirectory() as run:
        command = [*COMMAND, "--workdir", run, "--steps", "3", *options]
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        first, said = None, []
        for line in process.stderr:
            said.append(line)
            if first is None and re.match(r"step 1/", line):
                first = time.monotonic() - began
        code = process.wait()
        if code != 0 or first is None:
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{''.join(said)[-2000:]}")
        return {"first step": first, "end": time.monotonic() - began}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="of a cold and a warm start (default 3)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments, options = parser.parse_known_args()
    options += ["--samples", "0", "--baselines", "false", "--evaluation.batches", "1"]
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        start(work, "not counted", options)
        for pair in range(arguments.pairs):
            for kind in ("cold", "warm"):
                for event, seconds in start(work, str(pair), options).items():
                    found.setdefault(kind, {}).setdefault(event, []).append(round(seconds, 2))
            print(json.dumps(found), file=sys.stderr, flush=True)
    medians = {
        kind: {event: statistics.median(values) for event, values in events.items()}
        for kind, events in found.items()
    }
    if arguments.json:
        arguments.json.write_text(json.dumps({"medians": medians, "all": found}, indent=1) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
