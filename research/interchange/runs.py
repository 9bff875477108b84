"""Checkpoints of other tools as run directories, and runs as directories that other tools load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interchange import families
from research.interchange.layouts import Slot, slots
from research.interchange.tensors import Tensors, matching, write
from research.models.gpt import GPT
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Checkpointing, Experiment
from research.training.paths import path_name
from research.training.program import functions
from research.training.run_directory import RunDirectory, claim
from research.training.trained import Trained, evaluated
from research.training.validity import validate

ORIGIN = "origin.json"
"""File of an imported run that says where it is from, and its tensors' dtype."""
_BLOCKS = "stack/blocks"


def import_run(source: Path, out: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Makes a run directory of a directory in `transformers`' format; returns what was read, as JSON values.

    Tensors are read one after another into parameters that lie as the experiment's sharding says.

    Args:
      source: directory with config.json, safetensors and tokenizer.json.
      out: run directory to make.
      report: receives messages.

    Raises:
      UserError: a file is missing or cut short, the architecture is not supported, a tensor is missing, left
        over, or of another shape, or ``out`` is a run already.
    """
    refuse_run(out)
    config = _config(source)
    family = families.of_config(config)
    try:
        model = family.describe(config)
    except KeyError as error:
        raise UserError(f"the config.json of {source} has no {error.args[0]}") from None
    tokenizer = _tokenizer(source, model.vocabulary)
    with Tensors(source) as tensors:
        names = tensors.names()
        prefix = "" if any(name.startswith(family.prefix) for name in names) else family.prefix
        table = slots(family.root(model), family.block(model), model.layers, _BLOCKS)
        wanted = {name.removeprefix(prefix) for slot in table.values() for _, name in slot.rows}
        _cover(names, wanted, family.ignored, tied=model.tied_head)
        dtype = str(tensors[min(wanted)].dtype)
        if dtype == "bfloat16":
            model = dataclasses.replace(model, dtype="bfloat16")
        data = TextData(length=min(model.context, 1024), batch=8)
        experiment = Experiment(name=out.name, model=model, data=data)
        validate(experiment)
        report(f"reading {len(wanted)} tensors of {source}")
        params = _read(functions(experiment).abstract_state.params, table, tensors, prefix)
    origin = {"source": str(source), "model_type": family.model_type, "dtype": dtype}
    report(f"writing {out}")
    make_run(out, experiment, {Tokenizer.FILE: tokenizer.to_json(), ORIGIN: json.dumps(origin)}, params, 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"run": str(out), **origin, "parameters": count, "tensors": len(wanted)}


def refuse_run(out: Path) -> None:
    """Raises UserError if there is a run with a checkpoint at ``out``."""
    if RunDirectory(out).steps():
        raise UserError(f"{out} is a run already; choose another --out")


def make_run(out: Path, experiment: Experiment, files: Mapping[str, str], params: Any, step: int) -> None:
    """Makes a run of parameters that no training led to.

    Args:
      out: run directory to make.
      experiment: its description.
      files: contents by file name, the tokenizer's among them.
      params: the parameters to evaluate and sample with.
      step: step of its checkpoint.

    Raises:
      UserError: the directory cannot be made.
    """
    with claim(out, to_json(experiment)) as run:
        run.keep(files)
        with Checkpoints(run, Checkpointing()) as checkpoints:
            checkpoints.save(step, {evaluated(experiment): params}, None, {}, {})


def _config(source: Path) -> dict[str, Any]:
    file = source / "config.json" if source.is_dir() else source.with_name("config.json")
    if not file.is_file():
        with Tensors(source):  # which says what is wrong with the place, if anything
            raise UserError(f"{file} is missing: it says what the tensors are")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object")
    return found


def _tokenizer(source: Path, vocabulary: int) -> Tokenizer:
    file = source / Tokenizer.FILE if source.is_dir() else source.with_name(Tokenizer.FILE)
    if not file.is_file():
        raise UserError(
            f"{file} is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    tokenizer = Tokenizer.load(file)
    if tokenizer.vocabulary > vocabulary:
        raise UserError(f"{file} has {tokenizer.vocabulary} tokens, the model only {vocabulary}")
    return tokenizer


def _cover(names: set[str], wanted: set[str], ignored: str, *, tied: bool) -> None:
    """Refuses tensors that are missing or left over."""
    if missing := sorted(wanted - names):
        raise UserError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    over = names - wanted - matching(names, ignored) - ({"lm_head.weight"} if tied else set())
    if over:
        raise UserError(f"{len(over)} tensors belong to no parameter, the first is {min(over)}")


def _read(abstract: Any, table: dict[str, Slot], tensors: Tensors, prefix: str) -> Any:
    """Returns the parameters, each read onto its devices before the next."""

    def parameter(path: Any, leaf: Any) -> jax.Array:
        name = path_name(path)
        if name not in table:
            raise UserError(f"no tensor is known for the parameter {name}")
        try:
            value = table[name].read(lambda tensor: tensors[tensor.removeprefix(prefix)], leaf.shape)
        except ValueError as error:
            raise UserError(f"a tensor does not fit config.json: {error}") from None
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map_with_path(parameter, abstract)


def export_run(
    trained: Trained, out: Path, dtype: str | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Writes a run as a directory that `transformers` loads; returns what was written, as JSON values.

    Args:
      trained: the run's checkpoint.
      out: directory to make; must be empty or not there.
      dtype: of the tensors; None: that of the import the run came from, or float32.
      report: receives messages.

    Raises:
      UserError: no family has this model's parts, or the directory has files.
    """
    model = trained.experiment.model
    family, config = families.of_model(model)
    assert isinstance(model, GPT)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose a directory that is empty or new")
    origin = trained.directory.path / ORIGIN
    if dtype is None:
        dtype = json.loads(origin.read_text("utf-8")).get("dtype") if origin.exists() else None
        dtype = dtype or "float32"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}") from error
    end = trained.tokenizer.end_of_text
    ends = {"bos_token_id": end, "eos_token_id": end}
    table = slots(family.root(model), family.block(model), model.layers, _BLOCKS)
    report(f"writing {out}")
    tensors = _tensors(trained.params, table, np.dtype(dtype))
    files = write(out, tensors, {"format": "pt"})
    special = trained.tokenizer.name_of(end)
    texts = {
        "config.json": _dump({**config, **ends, "torch_dtype": dtype}),
        "generation_config.json": _dump(ends),
        Tokenizer.FILE: trained.tokenizer.to_json(),
        "tokenizer_config.json": _dump(
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special, "eos_token": special}
        ),
        "README.md": _card(trained, family),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    written = [file.name for file in files]
    return {
        "directory": str(out),
        "model_type": family.model_type,
        "dtype": dtype,
        "files": [*written, *texts],
    }


def _tensors(params: Any, table: dict[str, Slot], dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Yields their tensors, by name; of ours, no more than what one tensor needs is converted at once."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    sources: dict[str, list[tuple[Any, str, int | None]]] = {}
    for path, slot in table.items():
        for layer, (row, name) in enumerate(slot.rows):
            sources.setdefault(name, []).append((row, path, layer if slot.stacked else None))
    for name, parts in sources.items():
        arrays = [
            row.write(np.asarray(leaves[path] if layer is None else leaves[path][layer]).astype(dtype))
            for row, path, layer in sorted(parts, key=lambda part: part[0].part)
        ]
        yield name, parts[0][0].join(arrays)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _card(trained: Trained, family: families.Family) -> str:
    """Returns the model card: what made the weights, and how well they do."""
    experiment = trained.experiment
    metrics = trained.directory.checkpoint_metrics(trained.step)
    lines = [f"- {name.removeprefix('valid/')}: {value:.4f}" for name, value in metrics.items()]
    return "\n".join(
        [
            f"# {experiment.name}",
            "",
            f"A {family.architecture} trained with Headway for {trained.step} steps.",
            "",
            "## Validation",
            "",
            *(lines or ["Not measured."]),
            "",
            "## Experiment",
            "",
            "```json",
            json.dumps(to_json(experiment), indent=2),
            "```",
            "",
        ]
    )
