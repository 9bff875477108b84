"""The resolved quickstart and where its parameters lie, as stored: a change of either must be meant.

python tests/goldens/test_quickstart_golden.py        stores them anew
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from research.scale.mesh import AXES
from research.training.description import load_experiment, to_json
from research.training.paths import path_name
from research.training.program import functions
from research.training.sharding import STRATEGIES, parameter_specs

HERE = Path(__file__).parent
QUICKSTART = Path(__file__).parents[2] / "experiments" / "gpt" / "quickstart.py"
MESH = AbstractMesh((2, 4, 1, 1), AXES)
"""Data 2, fsdp 4, tensor 1, sequence 1; no such devices are needed."""


def description() -> dict:
    return to_json(load_experiment(QUICKSTART))


def sharding() -> dict:
    params = functions(load_experiment(QUICKSTART)).abstract_state.params
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    specs = {name: parameter_specs(table, params, MESH) for name, table in STRATEGIES.items()}
    return {
        path: {"shape": list(shape), **{name: list(found[path]) for name, found in specs.items()}}
        for path, shape in shapes.items()
    }


GOLDENS = {"quickstart.json": description, "quickstart_sharding.json": sharding}


def test_the_quickstart_resolves_to_what_is_stored():
    assert description() == json.loads((HERE / "quickstart.json").read_text())


def test_its_parameters_lie_where_is_stored():
    assert sharding() == json.loads((HERE / "quickstart_sharding.json").read_text())


if __name__ == "__main__":
    for name, current in GOLDENS.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in current().items()]
        (HERE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")
