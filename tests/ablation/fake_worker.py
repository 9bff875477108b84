"""Stands in for a point's training: what it does is decided by files of the ablation's directory."""

import json
import os
import signal
import sys
from pathlib import Path

directory = Path(sys.argv[1])
task = json.loads((directory / "point.json").read_text())
with open(directory.parent / "started", "a") as file:
    file.write(directory.name + "\n")
if (directory.parent / "die").exists() and "window" in directory.name:
    os.kill(os.getpid(), signal.SIGKILL)
if (directory.parent / "hang").exists():

    def stop(number, frame):
        (directory / "saved").touch()
        sys.exit(3)

    signal.signal(signal.SIGTERM, stop)
    (directory / "hanging").touch()
    sys.stdin.read()  # until the signal comes, or whoever started it is gone
rate, seed = task["learning_rate"], task["seed"]
loss = abs(rate - 0.002) * 1000 + seed + ("window" in directory.name) * 0.25
metrics = {"valid/loss": loss, "valid/accuracy": 1 / (1 + loss)}
if rate > 0.5:
    result = {"failed": "not finite at step 3: first bad tensor is the loss"}
else:
    result = {
        "metrics": metrics,
        "baselines": {"majority": 0.25},
        "steps": 2,
        "seconds": 1.5,
        "tokens_per_second": 1000.0 * (1 + seed),
        "peak_memory_bytes": 2**30,
        "flops_per_step": {"full": 2e9, "visible": 1e9},
        "state_bytes": {"8": 1024 * (1 + ("full" in directory.name)), "16": 2048},
        "decode_seconds": {"8": 1e-3, "16": 2e-3},
    }
    (directory / "run").mkdir(exist_ok=True)
    rows = [{"step": n, "train/loss": loss + 1 / n, "valid/loss": loss + 1 / n} for n in (1, 2, 3)]
    (directory / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "run" / "experiment.json").write_text(json.dumps(task["experiment"]))
(directory / "result.json").write_text(json.dumps({**task, **result}))
