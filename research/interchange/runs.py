"""Checkpoints of other tools as run directories."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data.bitext import Bitext
from research.data.labelled_text import LABELS, LabelledText
from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError
from research.interchange import families
from research.interchange.encoder_decoders import start_token
from research.interchange.family import Config, Family
from research.interchange.layouts import Slot, slots
from research.interchange.tensors import Tensors, matching
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.transformer import Transformer
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.objectives.translation import Translation
from research.training.arrays import Part, placed
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Checkpointing, Experiment
from research.training.paths import path_name
from research.training.program import functions
from research.training.run_directory import RunDirectory, claim
from research.training.trained import evaluated
from research.training.validity import validate

ORIGIN = "origin.json"
"""File of an imported run that says where it is from, and its tensors' dtype."""


def import_run(
    source: Path, out: Path, report: Callable[[str], None], *, allow_pickle: bool = False
) -> dict[str, Any]:
    """Makes a run directory of a directory in `transformers`' format; returns what was read, as JSON values.

    Tensors are read one after another into parameters that lie as the experiment's sharding says.

    Args:
      source: directory with config.json, safetensors and tokenizer.json.
      out: run directory to make.
      report: receives messages.
      allow_pickle: whether pytorch_model.bin will do.

    Raises:
      UserError: a file is missing or cut short, the architecture is not supported, a tensor is missing, left
        over, or of another shape, or ``out`` is a run already.
    """
    refuse_run(out)
    config = _config(source)
    family = families.of_config(config)
    tensors = Tensors(source, allow_pickle=allow_pickle)
    there = _names(family, tensors.names())
    model = _described(family, config, there)
    tokenizer = _tokenizer(source, family, model.vocabulary)
    table = slots(family.layout(model))
    wanted = {name for slot in table.values() for _, name in slot.rows}
    unused = _cover(family, tensors, there, wanted)
    dtype = str(tensors[there[min(wanted)]].dtype)
    if dtype == "bfloat16":
        model = _in_bfloat16(model)
    experiment = _experiment(out.name, model, config, tokenizer)
    validate(experiment)
    report(f"reading {len(wanted)} tensors of {source}")
    if unused:
        report(f"not used: {', '.join(unused)}")
    params = _read(functions(experiment).abstract_state.params, table, tensors, there)
    origin = {"source": str(source), "model_type": family.model_type, "dtype": dtype}
    report(f"writing {out}")
    files = {Tokenizer.FILE: tokenizer.to_json(), ORIGIN: json.dumps(origin)}
    if isinstance(model, Classifier) and (names := config.get("id2label")):
        scored = isinstance(experiment.data, LabelledText) and experiment.data.task == "score"
        labels = [] if scored else [names[number] for number in sorted(names, key=int)]
        files[LABELS] = json.dumps(labels, ensure_ascii=False) + "\n"
    make_run(out, experiment, files, params, 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"run": str(out), **origin, "parameters": count, "tensors": len(wanted), "unused": unused}


def _described(family: Family, config: Config, names: Iterable[str]) -> Any:
    try:
        return family.describe(config, set(names))
    except KeyError as error:
        raise UserError(f"config.json has no {error.args[0]}, which a {family.model_type} needs") from None


def _experiment(name: str, model: Any, config: Config, tokenizer: Tokenizer) -> Experiment:
    """Returns the experiment that could have made the checkpoint, as far as sampling needs it."""
    length = min(model.context, 1024)
    if isinstance(model, Classifier):
        score = model.classes == 1 and not model.per_token
        labelled = LabelledText(
            task="tags" if model.per_token else "score" if score else "labels",
            classes=model.classes,
            length=min(length, 128),
        )
        return Experiment(name=name, model=model, data=labelled, objective=Classification())
    if isinstance(model, BERT):
        data = MaskedText(length=length, batch=8)
        return Experiment(name=name, model=model, data=data, objective=MaskedLM())
    if isinstance(model, Transformer):
        start = start_token(config)
        text = Bitext(
            corpus="files",
            start=None if start == tokenizer.end_of_text else tokenizer.name_of(start),
            length=min(length, 128),
        )
        return Experiment(name=name, model=model, data=text, objective=Translation())
    return Experiment(name=name, model=model, data=TextData(length=length, batch=8))


def _in_bfloat16(model: Any) -> Any:
    if isinstance(model, Classifier):
        return dataclasses.replace(model, bert=_in_bfloat16(model.bert))
    return dataclasses.replace(model, dtype="bfloat16")


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
        Tensors(source)  # which says what is wrong with the place, if anything
        raise UserError(f"{file} is missing: it says what the tensors are")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object")
    return found


def _tokenizer(source: Path, family: Family, vocabulary: int) -> Tokenizer:
    file = source / Tokenizer.FILE if source.is_dir() else source.with_name(Tokenizer.FILE)
    if not file.is_file():
        raise UserError(
            f"{file} is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    tokenizer = (MaskingTokenizer if family.model in (BERT, Classifier) else Tokenizer).load(file)
    if tokenizer.vocabulary > vocabulary:
        raise UserError(f"{file} has {tokenizer.vocabulary} tokens, the model only {vocabulary}")
    return tokenizer


def _names(family: Family, names: set[str]) -> dict[str, str]:
    """Returns the names in the file by the names that the family's layout has for them."""
    bare = not any(name.startswith(family.prefix) for name in names)
    found = {}
    for name in sorted(names):
        ours = name
        for pattern, replacement in family.renamed:
            ours = re.sub(pattern, replacement, ours)
        found[family.prefix + ours if bare and ours not in family.tied else ours] = name
    for alias, own in family.tied.items():  # a file may hold a shared tensor under either name
        if own not in found and alias in found:
            found[own] = found.pop(alias)
    return found


def _cover(family: Family, tensors: Tensors, there: dict[str, str], wanted: set[str]) -> list[str]:
    """Refuses tensors that are missing or left over; returns those that hold no parameter of the model."""
    if missing := sorted(wanted - there.keys()):
        raise UserError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    unused = matching(there.keys() - wanted, family.ignored)
    over = there.keys() - wanted - unused
    for name in sorted(over & family.tied.keys()):
        if not np.array_equal(tensors[there[name]], tensors[there[family.tied[name]]]):
            raise UserError(
                f"{there[name]} differs from {there[family.tied[name]]}; a {family.model_type} here has one "
                "table for both"
            )
    if over := over - family.tied.keys():
        raise UserError(f"{len(over)} tensors belong to no parameter, the first is {there[min(over)]}")
    return sorted(there[name] for name in unused)


def _read(abstract: Any, table: dict[str, Slot], tensors: Tensors, there: dict[str, str]) -> Any:
    """Returns the parameters, each read onto its devices before the next, tensor by tensor."""

    def parameter(path: Any, leaf: Any) -> jax.Array:
        name = path_name(path)
        if name not in table:
            raise UserError(f"no tensor is known for the parameter {name}")

        def fill(parts: Sequence[Part]) -> None:
            for layer, value in table[name].read(lambda tensor: tensors[there[tensor]], leaf.shape):
                for region, memory in parts:
                    if layer is None:
                        memory[...] = value[region]
                    elif region[0].start <= layer < region[0].stop:
                        memory[layer - region[0].start] = value[region[1:]]

        try:
            return placed(leaf, fill)
        except ValueError as error:
            raise UserError(f"a tensor does not fit config.json: {error}") from None

    return jax.tree.map_with_path(parameter, abstract)
