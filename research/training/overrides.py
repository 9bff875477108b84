"""Fields of a description from the command line: ``--optimizer muon --optimizer.beta 0.9``."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from research.errors import UserError, nearest
from research.training.description import alternatives, classes, decode, expected, field_types, kind

Description = TypeVar("Description")


def split_options(arguments: Iterable[str], flags: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Splits a command line into positional arguments and options (``--name value`` or ``--name=value``).

    Args:
      arguments: the command line after the command's name.
      flags: options that may stand without a value, which then is "true".

    Returns:
      Positional arguments, and the values of the options by name, without dashes and with "_" for "-".

    Raises:
      UserError: an option without a value, or one that is given twice.
    """
    positional: list[str] = []
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            positional.append(argument)
            continue
        option, equals, value = argument.partition("=")
        name = option[2:].replace("-", "_")
        if not equals:
            if name in flags and (not rest or rest[0].lower() not in ("true", "false")):
                value = "true"
            elif rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            else:
                raise UserError(f"{option}: needs a value")
        if name in options:
            raise UserError(f"{option}: given twice")
        options[name] = value
    return positional, options


def leaves(description: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, declared type) of every field that takes a value on the command line.

    A field that admits several classes comes before the fields of the class it holds; its value is a kind.
    """
    for field, declared in field_types(description.__class__).items():
        value = getattr(description, field)
        if not classes(declared) or len(alternatives(declared)) > 1:
            yield prefix + field, declared
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field}.")


def override(
    description: Description, options: Mapping[str, str], other_names: Iterable[str] = ()
) -> Description:
    """Returns the description with fields replaced.

    Args:
      description: any tree of frozen dataclasses.
      options: text by dotted field name. A name whose field admits several classes takes a kind
        (``{"optimizer": "muon"}``): the field becomes that class with its defaults, unless it is one already.
      other_names: further names that the user may have meant, for the error.

    Raises:
      UserError: an unknown name (with the nearest one), or text that is not of the field's type.
    """
    # Choices of class first, outermost first: they decide which fields there are.
    for name in sorted(options, key=lambda name: name.count(".")):
        declared = dict(leaves(description)).get(name)
        if declared is not None and classes(declared):
            current = _get(description, name)
            chosen = _choose(declared, options[name], _option(name))
            if type(chosen) is not type(current):
                description = _replace(description, name, chosen)
    declared_types = dict(leaves(description))
    for name, text in options.items():
        if name not in declared_types:
            known = [_option(known) for known in (*declared_types, *other_names)]
            close = difflib.get_close_matches(_option(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists all options"
            raise UserError(f"unknown option {_option(name)}; {hint}")
        if not classes(declared_types[name]):
            description = _replace(description, name, parse(declared_types[name], text, _option(name)))
    return description


def parse(declared: Any, text: str, where: str) -> Any:
    """Returns text as a value of a declared type ("none" for None, commas between list items).

    Raises:
      UserError: naming ``where``, what was expected, and the text.
    """
    members = alternatives(declared)
    if types.NoneType in members and text.lower() == "none":
        return None
    for member in members:
        if typing.get_origin(member) is tuple:
            item = typing.get_args(member)[0]
            return tuple(parse(item, part, where) for part in text.split(",") if part)
        if member is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if member in (int, float):
            try:
                return decode(member, member(text), where)
            except (ValueError, UserError):
                continue
    if any(member is str or typing.get_origin(member) is typing.Literal for member in members):
        return decode(declared, text, where)
    raise UserError(f"{where}: expected {expected(declared)}, found {text!r}")


def _choose(declared: Any, text: str, where: str) -> Any:
    if types.NoneType in alternatives(declared) and text.lower() == "none":
        return None
    admitted = classes(declared)
    if text not in admitted:
        raise UserError(f"{where}: unknown kind {text!r}{nearest(text, admitted)}")
    return admitted[text]()


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _get(description: Any, name: str) -> Any:
    for part in name.split("."):
        description = getattr(description, part)
    return description


def _replace(description: Any, name: str, value: Any) -> Any:
    head, _, rest = name.partition(".")
    return dataclasses.replace(
        description, **{head: _replace(getattr(description, head), rest, value) if rest else value}
    )


def choices(description: Any) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (option, current kind, all kinds) of every field that admits several classes, for help texts."""
    for name, declared in leaves(description):
        if classes(declared):
            current = _get(description, name)
            yield _option(name), "none" if current is None else kind(type(current)), list(classes(declared))
