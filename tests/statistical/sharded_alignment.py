"""Trains on eight simulated devices and on one, and prints how far apart they end; a process of its own."""

from __future__ import annotations

import json

import dictionaries
import jax
import numpy as np

from research.statistical.bitext import make_bitext
from research.statistical.directional import Direction, Stage
from research.statistical.directional import train as train_direction
from research.statistical.em import device_mesh
from research.statistical.hmm import Chain
from research.statistical.joint import Joint
from research.statistical.joint import train as train_joint
from research.statistical.positions import Diagonal, Table, Uniform


def main() -> None:
    """Prints JSON: the number of devices, and the largest difference of any parameter, by model."""
    assert len(jax.devices()) == 8
    bitext = make_bitext(dictionaries.SOURCE * 4, dictionaries.TARGET * 4)
    schedule = [Stage(Uniform(), 1), Stage(Table(), 1), Stage(Diagonal(), 1), Stage(Chain(longest=8), 2)]
    model = Joint(independent_iterations=1, chain_iterations=1)
    apart = {}
    for name, run in {
        "directions": lambda mesh: train_direction(Direction(bitext), schedule, mesh=mesh),
        "joint": lambda mesh: (lambda state, memory: (state, memory.links))(
            *train_joint(bitext, model, mesh)
        ),
    }.items():
        results = [jax.tree.leaves(run(device_mesh(devices))) for devices in (8, 1)]
        apart[name] = max(
            float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)) / (1 + np.abs(b))))
            for a, b in zip(*results, strict=True)
        )
    print(json.dumps({"devices": len(jax.devices()), "apart": apart}))


if __name__ == "__main__":
    main()
