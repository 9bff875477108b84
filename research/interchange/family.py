"""What is known of one kind of checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from research.errors import UserError
from research.interchange.layouts import Layers, Row

Config = Mapping[str, Any]
"""The values of a ``config.json``."""
Layout = tuple[Row | Layers, ...]
"""Where every parameter of a model is found."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that is known of one kind of checkpoint."""

    model_type: str
    """Its ``model_type`` in ``config.json``."""
    architecture: Callable[[Any], str]
    """Description -> the class in `transformers` that it loads into."""
    model: type
    """The class of our descriptions."""
    describe: Callable[[Config, Collection[str]], Any]
    """config, names of the tensors -> description; UserError for what the model here cannot do."""
    configure: Callable[[Any], dict[str, Any]]
    """description -> config, for the descriptions that ``describe`` can give back."""
    layout: Callable[[Any], Layout]
    """description -> where its parameters are found."""
    prefix: str = ""
    """Begins the names of the body's tensors; files of the bare body lack it."""
    ignored: str = r"$^"
    """Tensors that hold no parameter of the model (masks kept in the file), as a regular expression."""
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names under which a file may hold a tensor again, and the tensor's own name."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Older names: regular expression and replacement."""


def only(config: Config, name: str, admitted: tuple[Any, ...]) -> None:
    """Refuses a configuration that has another value than those admitted; one that has none is fine."""
    if name in config and config[name] not in admitted:
        raise UserError(
            f"config.json: {name} is {config[name]!r}; supported: {', '.join(map(repr, admitted))}"
        )


def chosen(config: Config, name: str, choices: Mapping[str, str], default: str) -> str:
    """Returns our name for a value of the configuration."""
    only(config, name, tuple(choices))
    return choices[config.get(name, default)]


def shared_rate(config: Config, *names: str) -> float:
    """Returns the dropout rate that several fields have in common; 0 if they differ, as we have one."""
    rates = {float(config.get(name, 0.1)) for name in names}
    return rates.pop() if len(rates) == 1 else 0.0
