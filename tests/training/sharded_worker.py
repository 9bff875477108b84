"""Trains small networks on meshes of eight simulated devices and prints what came of it; in its own process.

The number of devices is settled when JAX starts, so the tests, which run on one, start this once and read
its JSON. A case is a description's overrides; the same case on one device is its reference.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from typing import Any

import jax
import numpy as np

from research.attention.mechanisms import Softmax
from research.attention.positions import Rotary
from research.data.bitext import Bitext
from research.data.labelled_text import LabelledText
from research.data.masked_text import MaskedText
from research.data.packing import train_batches
from research.data.stream import TokenStream
from research.data.text import TextData
from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.models.seq2seq import Seq2Seq
from research.models.transformer import Transformer
from research.objectives.causal_lm import CausalLM
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.objectives.translation import Translation
from research.scale.collectives import collectives
from research.scale.mesh import make_mesh
from research.training.experiment import Experiment, Sharding
from research.training.optimizer import Adafactor, AdamW, Muon
from research.training.paths import path_name
from research.training.program import functions, place_rows
from research.training.schedule import Linear

STEPS = 3
FEED_FORWARD = "feed_forward/"
BASE = Experiment(
    name="sharded",
    model=GPT(vocabulary=64, context=16, layers=2, width=32, heads=4, kv_heads=2),
    data=TextData(length=16, batch=16),
    optimizer=AdamW(learning_rate=3e-3, epsilon=1e-6),
    schedule=Linear(warmup=0),
    steps=STEPS,
    ema=0.5,
    objective=CausalLM(z_loss=1e-3),
)
ROTARY = dataclasses.replace(
    BASE.model, positions=Rotary(), tied_head=False, feed_forward="swiglu", depth="unroll"
)
ENCODER = BERT(
    vocabulary=64, context=16, layers=2, width=16, heads=2, feed_forward_width=32, dropout=0.0, depth="unroll"
)
PAIRS = dataclasses.replace(
    BASE, data=Bitext(length=16, batch_tokens=256, buckets=1), objective=Translation(label_smoothing=0.1)
)
NORMED = dataclasses.replace(ROTARY, remat="block", attention=Softmax(qk_norm=True))
MODELS = {
    "": BASE,
    "rotary": dataclasses.replace(BASE, model=NORMED),
    "dropout": dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dropout=0.1)),
    "accumulate": dataclasses.replace(BASE, accumulate=2),
    "muon": dataclasses.replace(BASE, optimizer=Muon()),
    # No biases: that of the keys has no gradient but noise, and Adafactor divides every gradient by its size.
    "adafactor": dataclasses.replace(
        BASE, optimizer=Adafactor(), model=dataclasses.replace(BASE.model, bias=False)
    ),
    "masked": dataclasses.replace(
        BASE, model=ENCODER, data=MaskedText(length=16, batch=16, pairs="next"), objective=MaskedLM()
    ),
    "classifier": dataclasses.replace(
        BASE,
        model=Classifier(ENCODER, classes=4, head_dropout=0.0),
        data=LabelledText(classes=4, length=16, batch=16),
        objective=Classification(),
    ),
    "recurrent": dataclasses.replace(PAIRS, model=Seq2Seq(vocabulary=64, context=16, width=32, dropout=0.1)),
    "translator": dataclasses.replace(
        PAIRS,
        model=Transformer(vocabulary=64, layers=2, width=32, heads=4, feed_forward_width=64),
    ),
}
"""Descriptions, by name; the first word of a case."""
MESHES = {
    "replicated": Sharding("replicated", data=8, fsdp=1),
    "fsdp": Sharding("fsdp", data=2, fsdp=4),
    "fsdp+tensor": Sharding("fsdp+tensor", data=2, fsdp=2, tensor=2),
    "few kv heads": Sharding("fsdp+tensor", data=1, fsdp=1, tensor=4, sequence=2),
    "sequence": Sharding("fsdp", data=2, fsdp=2, sequence=2),
}
FAST = ["fsdp", "few kv heads", "accumulate fsdp"]
SLOW = [
    "replicated",
    "fsdp+tensor",
    "sequence",
    "dropout fsdp+tensor",
    "dropout sequence",
    "muon fsdp+tensor",
]
SLOW += ["adafactor fsdp", "rotary few kv heads", "rotary fsdp+tensor"]
SLOW += ["masked fsdp+tensor", "classifier fsdp+tensor"]
SLOW += ["recurrent fsdp", "recurrent fsdp+tensor", "recurrent sequence", "translator fsdp+tensor"]


def stream() -> TokenStream:
    random = np.random.default_rng(0)
    tokens = random.integers(1, 64, 4000).astype(np.uint16)
    starts = np.arange(0, 4000, 23)
    tokens[starts] = tokens[-1] = 0
    return TokenStream(tokens, starts.astype(np.int64), 8000)


def batches(experiment: Experiment):
    """Three batches whose weights differ, in their sum over rows too."""
    if not isinstance(experiment.data, TextData):
        yield from (rows(experiment, np.random.default_rng(number)) for number in range(STEPS))
        return
    for number, batch in zip(
        range(STEPS), train_batches(stream(), length=16, batch=16, seed=1), strict=False
    ):
        batch["weights"] = np.random.default_rng(number).choice([0.0, 1.0], (16, 16), p=[0.3, 0.7])
        batch["weights"][number::4] = 0.0
        batch["weights"] = batch["weights"].astype(np.float32)
        yield batch


def rows(experiment: Experiment, random: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch of an encoder's: rows of different lengths, one of them empty, in which anything is drawn."""
    shapes = {name: shape for name, (shape, _) in experiment.data.shapes().items()}
    column, lengths = np.arange(16, dtype=np.int32), random.integers(4, 17, (16, 1))
    lengths[5] = 0
    drawn = {"source": 64, "tokens": 64, "types": 2, "labels": 4, "targets": 64, "selected": 16}
    batch = {
        name: random.integers(0, most, shapes[name], np.int32)
        for name, most in drawn.items()
        if name in shapes
    }
    real = (column < lengths).astype(np.int32)
    batch |= {"positions": np.tile(column, (16, 1)), "segments": real}
    if "source" in shapes:
        batch["source_segments"] = (column < np.maximum(lengths - 3, 0)).astype(np.int32)
        del batch["positions"]
    if "pair" in shapes:
        batch["pair"] = random.integers(0, 2, 16, np.int32) - (lengths[:, 0] == 0) * np.int32(2)
        batch["pair"] = np.maximum(batch["pair"], -1).astype(np.int32)
    weights = random.choice([0.0, 1.0], shapes["weights"], p=[0.3, 0.7])
    weights[5] = 0.0
    return {**batch, "weights": weights.astype(np.float32)}


def train(experiment: Experiment, mesh) -> dict[str, Any]:
    """Losses and gradient norms of each step, and the last state."""
    parts = functions(experiment, mesh)
    init = parts.init.lower().compile()
    step = parts.step.lower(parts.abstract_state, parts.abstract_batch).compile()
    state = init()
    metrics, same = [], True
    with jax.transfer_guard_device_to_device("disallow"):
        for batch in batches(experiment):
            placed = place_rows(parts.mesh, batch)
            same = same and all(np.array_equal(placed[name], batch[name]) for name in batch)
            state, found = step(state, placed)
            metrics.append(jax.device_get(found))
    return {
        "batches_arrive": same,
        "losses": [float(m["train/loss"]) for m in metrics],
        "norms": [float(m["train/gradient_norm"]) for m in metrics],
        "parameters": named(state.params),
        "average": named(state.average),
        "state": state,
        "abstract": parts.abstract_state,
        "initialisation": init.as_text(),
        "step": step.as_text(),
    }


def whole_shapes(found: dict[str, Any]) -> list[str]:
    """Kernels of whose whole shape the (partitioned) program of the initialisation has an array."""
    kernels = {path: value.shape for path, value in found["parameters"].items() if FEED_FORWARD in path}
    shapes = {
        name: next(shape for path, shape in kernels.items() if path.endswith(f"{name}/kernel"))
        for name in (("up", "down") if kernels else ())
    }
    text = {name: f"[{','.join(map(str, shape))}]" for name, shape in shapes.items()}
    return [name for name, shape in text.items() if shape in found["initialisation"]]


def whole_activations(found: dict[str, Any]) -> list[str]:
    """Floating arrays of the (partitioned) step that hold every row of the batch, over the whole width.

    A look-up in a table that is split by its width gives every row a part of the width; that is no more than
    a part of the rows over the whole width.
    """
    arrays = set(re.findall(r"f32\[(?:16,16|256),([\d,]+)\]", found["step"]))
    return sorted(rest for rest in arrays if np.prod([int(n) for n in rest.split(",")]) >= BASE.model.width)


def named(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def compare(case: str, references: dict[str, Any]) -> dict[str, Any]:
    """Largest differences between a case and its reference, and how its state lies on the devices."""
    name, _, rest = case.partition(" ")
    name, mesh = (name, rest) if name in MODELS else ("", case)
    same = "" if name == "accumulate" else name  # as one large batch
    if same not in references:
        one = make_mesh(devices=jax.devices()[:1])
        references[same] = train(dataclasses.replace(MODELS[same], sharding=Sharding("replicated")), one)
    one, experiment = references[same], dataclasses.replace(MODELS[name], sharding=MESHES[mesh])
    found = train(experiment, None)

    def apart(kind: str) -> float:
        return max(float(np.abs(found[kind][path] - one[kind][path]).max()) for path in one[kind])

    leaves = jax.tree_util.tree_leaves_with_path(found["state"])
    as_promised = jax.tree.map(
        lambda leaf, promised: (
            leaf.sharding.is_equivalent_to(promised.sharding, leaf.ndim)
            and (leaf.shape, leaf.dtype) == (promised.shape, promised.dtype)
        ),
        found["state"],
        found["abstract"],
    )
    return {
        "batches_arrive": found["batches_arrive"],
        "losses": found["losses"],
        "reference": one["losses"],
        "norms": found["norms"],
        "reference_norms": one["norms"],
        "parameters_apart": apart("parameters"),
        "average_apart": apart("average"),
        "as_promised": all(jax.tree.leaves(as_promised)),
        "whole_while_initialising": whole_shapes(found),
        "whole_in_reference": whole_shapes(one),
        "whole_activations": whole_activations(found),
        "collectives": sum(row.count for row in collectives(found["step"], [0] * 8)),
        "whole_activations_in_reference": whole_activations(one),
        "shares": {
            path_name(path): leaf.addressable_shards[0].data.size / leaf.size for path, leaf in leaves
        },
    }


def mistakes() -> dict[str, str]:
    """What is said of meshes and shardings that do not fit."""
    found = {}
    for name, sharding, model in (
        ("too large", Sharding(data=16, fsdp=1), {}),
        ("left over", Sharding(data=3, fsdp=1), {}),
        ("indivisible", Sharding("fsdp", fsdp=8), {"width": 36}),
        ("heads", Sharding("fsdp+tensor", tensor=8), {}),
    ):
        model = dataclasses.replace(BASE.model, **model)
        try:
            functions(dataclasses.replace(BASE, model=model, sharding=sharding))
        except UserError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    references: dict[str, Any] = {}
    results = {case: compare(case, references) for case in sys.argv[1:]}
    json.dump({"cases": results, "mistakes": mistakes()}, sys.stdout)
