"""What planned steps send and hold, as stored: more than 5 % over it must be meant.

python tests/goldens/test_plan_goldens.py              stores the plans for simulated devices anew
python tests/goldens/test_plan_goldens.py v5e:2x4      and those for a TPU slice, where libtpu is
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.models.gpt import GPT
from research.training.experiment import Experiment, Sharding

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "plans.json"
GROWTH = 1.05


def plans() -> dict[str, Experiment]:
    """Small models on eight devices, one for each way to split them."""
    from research.attention.positions import Rotary
    from research.data.text import TextData
    from research.training.optimizer import AdamW

    model = GPT(
        vocabulary=512, context=512, layers=2, width=128, heads=4, kv_heads=2, positions=Rotary(), bias=False
    )
    base = Experiment(
        name="golden", model=model, data=TextData(length=512, batch=16), optimizer=AdamW(), steps=10
    )
    meshes = {
        "fsdp": Sharding("fsdp", data=2, fsdp=4),
        "fsdp+tensor": Sharding("fsdp+tensor", fsdp=2, tensor=4),
        "sequence": Sharding("fsdp", fsdp=2, sequence=4),
    }
    return {name: dataclasses.replace(base, sharding=mesh) for name, mesh in meshes.items()}


def measured(topology_name: str) -> dict[str, dict]:
    """Bytes of every use of memory and of every kind of collective, by plan; starts JAX for the topology."""
    from research.scale.chips import default_platform_is_cpu, topology
    from research.training.plan import plan

    default_platform_is_cpu()
    place = topology(topology_name)
    found = {}
    for name, experiment in plans().items():
        planned = plan(experiment, place)
        memory = {
            k: v for k, v in planned["memory_per_device"].items() if k not in ("program", "share_of_memory")
        }
        sent: dict[str, int] = {}
        for row in planned["collectives"]:
            sent[row["kind"]] = sent.get(row["kind"], 0) + row["bytes"]
        found[name] = {"memory": memory, "collectives": sent}
    return found


def installed() -> str:
    """The compiler for TPUs, which is another with each version; "" if there is none."""
    try:
        return f"libtpu {importlib.metadata.version('libtpu')}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def in_a_process(topology: str) -> dict[str, dict]:
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "TPU_MIN_LOG_LEVEL": "3"}
    environment = os.environ | flags | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, __file__, topology, "print"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def grown(stored: dict[str, dict], found: dict[str, dict]) -> list[str]:
    """What is more than 5 % over what is stored, or new."""
    return [
        f"{plan}: {kind} {name}: {size:,} bytes, {stored[plan][kind].get(name, 0):,} stored"
        for plan, kinds in found.items()
        for kind, sizes in kinds.items()
        for name, size in sizes.items()
        if size > GROWTH * stored[plan][kind].get(name, 0)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(json.loads(STORED.read_text())))
def test_plans_have_not_grown(name):
    topology, _, compiler = name.partition(" by ")
    if compiler not in ("", here := installed()):
        pytest.skip(f"stored with {compiler}, here is {here or 'none'}")
    assert grown(json.loads(STORED.read_text())[name], in_a_process(topology)) == []


def test_growth_is_named():
    stored = {"a": {"memory": {"total": 100}, "collectives": {"all-gather": 10}}}
    assert grown(stored, {"a": {"memory": {"total": 105}, "collectives": {"all-gather": 4}}}) == []
    worse = {"a": {"memory": {"total": 106}, "collectives": {"all-reduce": 1}}}
    assert grown(stored, worse) == [
        "a: memory total: 106 bytes, 100 stored",
        "a: collectives all-reduce: 1 bytes, 0 stored",
    ]


def test_a_ring_is_in_the_stored_plan_and_no_gathered_sequence():
    # Weights are gathered by fsdp; what the axis sequence adds is passed round.
    plans = json.loads(STORED.read_text())["cpu:8"]
    parameters = 2 * plans["sequence"]["memory"]["parameters"]  # fsdp 2
    assert plans["sequence"]["collectives"]["all-gather"] < 3 * parameters
    assert plans["sequence"]["collectives"]["collective-permute"] > 0
    assert plans["fsdp"]["collectives"].get("collective-permute", 0) == 0


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "cpu:8"
    if "print" in sys.argv:
        json.dump(measured(name), sys.stdout)
    else:
        kept = json.loads(STORED.read_text())
        key = f"{name} by {installed()}" if name.startswith("v") else name
        kept = {other: plans for other, plans in kept.items() if not other.startswith(f"{name} by ")}
        kept[key] = in_a_process(name)
        STORED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
