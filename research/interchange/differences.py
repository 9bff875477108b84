"""In what two runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from research.training.description import to_json
from research.training.paths import path_name
from research.training.run_directory import flatten
from research.training.trained import Trained


def differences(one: Trained, other: Trained) -> dict[str, Any]:
    """Returns the fields and the weights in which two runs differ, as JSON values.

    A weight that both have in one shape is compared by |a - b| / |a|, in the Euclidean norm; "same" counts
    those that are equal bit for bit.
    """
    fields = [flatten(to_json(run.experiment)) for run in (one, other)]
    names = [*fields[0], *(name for name in fields[1] if name not in fields[0])]
    description = {
        name: [side.get(name) for side in fields]
        for name in names
        if fields[0].get(name) != fields[1].get(name)
    }
    weights = [
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(run.params)}
        for run in (one, other)
    ]
    shapes, norms, same = {}, {}, 0
    for path in [*weights[0], *(path for path in weights[1] if path not in weights[0])]:
        a, b = (side.get(path) for side in weights)
        if a is None or b is None or a.shape != b.shape:
            shapes[path] = [None if x is None else list(x.shape) for x in (a, b)]
            continue
        first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if np.array_equal(first, second):
            same += 1
        else:
            norms[path] = float(np.linalg.norm(first - second)) / max(float(np.linalg.norm(first)), 1e-30)
    runs = [{"run": str(run.directory), "step": run.step} for run in (one, other)]
    return {"runs": runs, "description": description, "shapes": shapes, "weights": norms, "same": same}


def text(found: Mapping[str, Any]) -> str:
    """Returns differences for a reader."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield " | ".join(f"{run['run']} at step {run['step']}" for run in found["runs"])
    yield f"description: {len(found['description'])} fields differ"
    for name, (a, b) in found["description"].items():
        yield f"  {name}: {a} | {b}"
    yield (
        f"weights: {found['same']} equal, {len(found['weights'])} differ, "
        f"{len(found['shapes'])} of one run only or of another shape"
    )
    for path, norm in found["weights"].items():
        yield f"  {path}: relative difference {norm:.3g}"
    for path, (a, b) in found["shapes"].items():
        yield f"  {path}: {a} | {b}"
