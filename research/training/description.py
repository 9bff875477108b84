"""Descriptions as JSON, and experiments from files.

A description is a tree of frozen dataclasses. In JSON each is an object whose ``"kind"`` is its class in
kebab-case (``AdamW`` -> ``"adamw"``, ``WarmupStableDecay`` -> ``"warmup-stable-decay"``, ``CausalLM`` ->
``"causal-lm"``), so a field may admit more classes later without older files changing their meaning. Types
are checked strictly wherever a description comes from: a JSON file, an experiment file, or the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import runpy
import sys
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from research.data.object_store import is_object
from research.errors import UserError, nearest
from research.training.experiment import Experiment
from research.training.migrations import FORMAT, migrated
from research.training.phrase_based import PhraseBased
from research.training.run_directory import open_run
from research.training.word_alignment import WordAlignment

Described = TypeVar("Described")
Description = Experiment | PhraseBased | WordAlignment
"""What an experiment file may describe, and ``headway train`` makes."""


def kind(cls: type) -> str:
    """Returns the name of a description's class in JSON and on the command line: kebab-case."""
    return re.sub(r"(?<=[a-zA-Z])(?=[A-Z][a-z])|(?<=[a-z]{3})(?=[A-Z]{2,}$)", "-", cls.__name__).lower()


def alternatives(declared: Any) -> tuple[Any, ...]:
    """Returns the members of a union, in order; any other type is its own only member."""
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return typing.get_args(declared)
    return (declared,)


def classes(declared: Any) -> dict[str, type]:
    """Returns the description classes a field admits, by kind; empty for a plain value."""
    return {kind(member): member for member in alternatives(declared) if _is_description(member)}


def _is_description(declared: Any) -> bool:
    return isinstance(declared, type) and dataclasses.is_dataclass(declared)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Returns the resolved type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def to_json(description: Any) -> Any:
    """Returns a description as JSON values: objects tagged with ``kind``, tuples as lists."""
    if dataclasses.is_dataclass(description) and not isinstance(description, type):
        fields = {
            field.name: to_json(getattr(description, field.name)) for field in dataclasses.fields(description)
        }
        return {"kind": kind(type(description)), **fields}
    if isinstance(description, tuple):
        return [to_json(item) for item in description]
    return description


def from_json(value: Any) -> Experiment:
    """Returns the experiment that ``to_json`` wrote, exactly; a field that is left out takes its default.

    Raises:
      UserError: unknown field or kind, or a value of the wrong type; names the path and the nearest choice.
    """
    return decode(Experiment, value, "experiment")


def decode(declared: Any, value: Any, where: str) -> Any:
    """Returns ``value`` (parsed JSON) as the declared type: the inverse of ``to_json``, strict about types.

    Raises:
      UserError: naming ``where``, what was expected, and what was found.
    """
    admitted = classes(declared)
    if admitted and isinstance(value, Mapping):
        return _decode_object(admitted, value, where)
    for member in alternatives(declared):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is tuple and isinstance(value, (list, tuple)):
            items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
            if len(items) == len(value):
                pairs = enumerate(zip(items, value, strict=True))
                return tuple(decode(item, element, f"{where}[{i}]") for i, (item, element) in pairs)
        elif member is float:
            if type(value) in (int, float) and math.isfinite(value):
                return float(value)
        elif type(value) is member or (origin is Literal and type(value) is str and value in arguments):
            return value
    suggestion = _did_you_mean(value, _words(declared)) if isinstance(value, str) else ""
    found = "nothing" if value is None else f"{value!r}" if not isinstance(value, Mapping) else "an object"
    raise UserError(f"{where}: expected {expected(declared)}, found {found}{suggestion}")


def _decode_object(admitted: dict[str, type], value: Mapping[str, Any], where: str) -> Any:
    fields = dict(value)
    name = fields.pop("kind", next(iter(admitted)) if len(admitted) == 1 else None)
    if name is None:
        raise UserError(f"{where}: its kind is missing; choose from {', '.join(admitted)}")
    if name not in admitted:
        raise UserError(f"{where}: unknown kind {name!r}{nearest(str(name), admitted)}")
    cls = admitted[name]
    declared = field_types(cls)
    for unknown in fields.keys() - declared.keys():
        raise UserError(f"{where}: no field {unknown!r}{nearest(unknown, declared)}")
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in fields:
            raise UserError(f"{where}: field {field.name!r} is missing")
    return cls(**{name: decode(declared[name], item, f"{where}.{name}") for name, item in fields.items()})


def _did_you_mean(name: str, choices: list[str]) -> str:
    suggestion = nearest(name, choices)
    return suggestion if "did you mean" in suggestion else ""


def _words(declared: Any) -> list[str]:
    """Returns the strings a type admits, where it admits a fixed set only, and its kinds of description."""
    words = [word for member in alternatives(declared) for word in typing.get_args(member)]
    return [*(word for word in words if isinstance(word, str)), *classes(declared)]


def expected(declared: Any) -> str:
    """Returns a type in words, for errors: "a whole number or none"."""
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        types.NoneType: "none",
    }

    def word(member: Any) -> str:
        if typing.get_origin(member) is Literal:
            return "one of " + ", ".join(map(str, typing.get_args(member)))
        if typing.get_origin(member) is tuple:
            return "a list"
        return f"{kind(member)!r}" if _is_description(member) else names.get(member, str(member))

    return " or ".join(map(word, alternatives(declared)))


def load_experiment(path: str | Path) -> Experiment:
    """Returns the experiment of a file or run directory, as `load_description`.

    Raises:
      UserError: as `load_description`, or what is described there is not trained by steps.
    """
    found = load_description(path)
    if not isinstance(found, Experiment):
        raise UserError(
            f"{path} is of kind {kind(type(found))!r}, which has no network; it is for "
            + ("translate, compare, " if isinstance(found, PhraseBased) else "align, ")
            + "train, show, evaluate and report"
        )
    return found


def load_description(path: str | Path) -> Description:
    """Returns what a file (``.py`` with ``experiment()``, or ``.json``) or a run directory describes.

    Raises:
      UserError: no such file, no ``experiment()`` in it, one that raises, or one that returns something else.
    """
    if is_object(path):
        path = open_run(path).experiment
    path = Path(path)
    if path.is_dir():
        if not (path / "experiment.json").is_file():
            raise UserError(
                f"{path}: neither an experiment file nor a run directory (it has no experiment.json)"
            )
        path = path / "experiment.json"
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*") if p.is_dir() or p.suffix in (".py", ".json")]
        raise UserError(
            f"{path}: no such experiment file or run directory{_did_you_mean(str(path), siblings)}"
        )
    if path.suffix not in (".py", ".json"):
        raise UserError(
            f"{path}: an experiment is a .py file with a function experiment(), or a run directory"
        )
    try:
        # Through JSON and back: checks the types of what the file wrote, and that it can be saved.
        value = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.suffix == ".json"
            else {"format": FORMAT, **to_json(call(path, "experiment", *alternatives(Description)))}
        )
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    try:
        # Descriptions of old had one kind, which went without saying.
        value = {"kind": kind(Experiment), **migrated(value)} if isinstance(value, Mapping) else value
        return decode(Description, value, "experiment")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def call(path: Path, function: str, *expected_classes: type[Described]) -> Described:
    """Runs a file, which may import its neighbours, and returns what a function that it defines returns.

    Raises:
      UserError: no such function in it, one that raises, or one that returns something else.
    """
    sys.path.append(str(path.parent.resolve()))
    try:
        module = runpy.run_path(str(path), run_name=function)
        if not callable(module.get(function)):
            own = [name for name, value in module.items() if getattr(value, "__module__", None) == function]
            raise UserError(f"{path}: defines no function {function}(){_did_you_mean(function, own)}")
        described = module[function]()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}{_line(error, path)}: {_reason(error)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(described, expected_classes):
        names = [cls.__name__ for cls in expected_classes]
        expected = " or ".join(("an " if name[0] in "AEIOU" else "a ") + name for name in names)
        raise UserError(f"{path}: {function}() returned {type(described).__name__}, expected {expected}")
    return described


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""


def _reason(error: Exception) -> str:
    """Returns an exception as one line, with the nearest name for a field that a description lacks."""
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown:
        known = (c for described in alternatives(Description) for c in _reachable(described))
        found = {c.__name__: c for c in known}.get(unknown[1])
        if found:
            return f"{unknown[1]} has no field {unknown[2]!r}{nearest(unknown[2], field_types(found))}"
    return f"{type(error).__name__}: " + " ".join(str(error).split())


def _reachable(cls: type) -> list[type]:
    """Returns the description classes that may occur in a description, the class itself first."""
    nested = [
        c
        for declared in field_types(cls).values()
        for member in classes(declared).values()
        for c in _reachable(member)
    ]
    return [cls, *nested]
