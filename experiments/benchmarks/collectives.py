"""What one device sends in a training step, against the devices: from plans, 1 to 256 of them.

    python experiments/benchmarks/collectives.py --json collectives.json --picture collectives.svg

The rows that a device works on stay the same as devices are added, so the batch grows with them. Programs are
compiled for simulated devices; another partitioner (that of TPUs, --chip v5e) cuts collectives otherwise.
Bytes on the wire are those of ring algorithms. In a plan that scales, they approach a constant: under data
parallelism and fsdp that of the parameters, under tensor parallelism that of a group's activations.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

from research.data.text import TextData
from research.models.gpt import GPT
from research.scale.chips import default_platform_is_cpu, topology
from research.training.experiment import Experiment, Sharding
from research.training.optimizer import AdamW
from research.training.plan import plan

ROWS = 4
"""Of each device, or of each group of devices that share rows."""
GROUP = 4
"""Devices of a tensor-parallel group; fewer if there are fewer."""
SLICES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""Of a v5e, by their chips."""


def shardings(devices: int) -> dict[str, Sharding]:
    """Returns the ways to split a step over so many devices."""
    group = min(GROUP, devices)
    return {
        "data parallel": Sharding("replicated", data=devices, fsdp=1),
        "fsdp": Sharding("fsdp", fsdp=devices),
        "data and tensor": Sharding("fsdp+tensor", data=devices // group, fsdp=1, tensor=group),
        "fsdp and tensor": Sharding("fsdp+tensor", fsdp=devices // group, tensor=group),
    }


def measure(devices: int, name: str, sharding: Sharding, chip: str) -> dict[str, Any]:
    """Returns what a device holds of the parameters, and sends in a step, in bytes by kind."""
    model = GPT(vocabulary=512, context=128, layers=2, width=256, heads=4, bias=False)
    shards = devices // sharding.tensor
    experiment = Experiment(
        name="collectives",
        model=model,
        data=TextData(length=128, batch=ROWS * shards),
        optimizer=AdamW(),
        steps=10,
        sharding=sharding,
    )
    place = topology(f"cpu:{devices}" if chip == "cpu" else f"{chip}:{SLICES[devices]}")
    found = plan(experiment, place)
    sent: dict[str, float] = {}
    for row in found["collectives"]:
        sent[row["kind"]] = sent.get(row["kind"], 0.0) + row["wire_bytes"]
    return {
        "strategy": name,
        "devices": devices,
        "parameters": found["memory_per_device"]["parameters"],
        "sent": sent,
        "total": sum(sent.values()),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns a table of MiB that a device sends: a line for each number of devices."""
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    lines = ["| devices | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for devices in sorted({row["devices"] for row in rows}):
        cells = [
            next(
                f"{r['total'] / 2**20:.2f}" for r in rows if (r["strategy"], r["devices"]) == (name, devices)
            )
            for name in names
        ]
        lines.append(f"| {devices} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws MiB against devices, a line for each strategy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == name]
        axes.plot([r["devices"] for r in own], [r["total"] / 2**20 for r in own], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("devices (rows of each the same)")
    axes.set_ylabel("MiB that a device sends in a step")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--chip", choices=["cpu", "v5e"], default="cpu", help="v5e needs libtpu; 4 to 256")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--picture", type=Path, help="file for the picture: .svg, .png")
    arguments = parser.parse_args()
    default_platform_is_cpu()
    if arguments.chip == "cpu":
        topology(f"cpu:{max(arguments.devices)}")  # JAX makes its devices once
    rows = []
    for devices in arguments.devices:
        for name, sharding in shardings(devices).items():
            rows.append(measure(devices, name, sharding, arguments.chip))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.picture:
        draw(rows, arguments.picture)
    print(markdown(rows))


if __name__ == "__main__":
    main()
