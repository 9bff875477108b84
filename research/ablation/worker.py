"""One point of a grid in a process of its own, so that its peak memory is its own.

    python -m research.ablation.worker DIRECTORY [CORES]

reads DIRECTORY/point.json, trains in DIRECTORY/run (or goes on there), measures, and writes
DIRECTORY/result.json. It stops, with everything saved, when its standard input ends: when whoever started it
is gone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

POINT, RUN, RESULT, LOG, PEAK = "point.json", "run", "result.json", "log.txt", "peak_memory"
"""Files of a point's directory; the last holds the most bytes that any session had in use."""


def main(arguments: list[str]) -> int:
    """Runs the point of a directory; returns the exit code, 3 if it was stopped early."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    directory = Path(arguments[0])
    if len(arguments) > 1:
        os.sched_setaffinity(0, map(int, arguments[1].split(",")))
    from research.errors import StoppedError, UserError
    from research.scale.host_memory import keep_freed_memory
    from research.training.progress import say
    from research.training.run_directory import write_atomically

    keep_freed_memory()  # as `headway train` does: a point is as fast as its run would be
    task = json.loads((directory / POINT).read_text(encoding="utf-8"))
    try:
        found = {**task, **run(directory, task)}
    except StoppedError as error:
        say(str(error))
        return error.exit_code
    except UserError as error:
        found = {**task, "failed": str(error)}
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())[:300]
        found = {**task, "failed": f"{type(error).__name__}: {reason} (see {LOG})"}
    write_atomically(directory / RESULT, json.dumps(found, indent=1) + "\n")
    return 0


def run(directory: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Trains a point and returns what is measured of it, as JSON."""
    from research.ablation.measure import decode_seconds, state_bytes
    from research.training.description import from_json
    from research.training.migrations import migrated
    from research.training.progress import say
    from research.training.run_directory import write_atomically
    from research.training.session import run as train
    from research.training.trained import load

    experiment = from_json(migrated(task["experiment"]))
    # A session that only goes on from the last step needs little: what counts is the most of all sessions.
    before = directory / PEAK
    peak = int(before.read_text(encoding="utf-8")) if before.exists() else 0
    try:
        result = train(experiment, directory / RUN, report=say)
    finally:
        peak = max(peak, _peak_memory())
        write_atomically(before, str(peak))
    trained = load(directory / RUN, "newest")
    rates = [row["tokens_per_second"] for row in trained.directory.rows() if "tokens_per_second" in row]
    shapes = {name: shape for name, (shape, _) in experiment.data.shapes().items()}
    values = result.conclusion.values
    return {
        "metrics": {
            **result.validation,
            **{f"test/{name}": value for name, value in values.get("tests", {}).items()},
            **{f"metrics/{name}": value for name, value in values.get("metrics", {}).items()},
        },
        "baselines": values.get("baselines", {}),
        "steps": result.step,
        "seconds": result.seconds,
        "tokens_per_second": statistics.median(rates) if rates else None,
        "peak_memory_bytes": peak,
        "flops_per_step": {
            "full": experiment.model.training_flops(shapes, visible=False),
            "visible": experiment.model.training_flops(shapes, visible=True),
        },
        "state_bytes": state_bytes(experiment.model, task["contexts"]),
        "decode_seconds": decode_seconds(experiment.model, trained.params, task["contexts"]),
    }


def _peak_memory() -> int:
    """Returns the most bytes that the accelerator had in use so far; on a CPU, the process."""
    import jax

    device = jax.local_devices()[0].memory_stats()
    if device:
        return device["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stop_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
