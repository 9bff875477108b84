"""How a parameter of ours lies in another tool's tensors: one declarative row each, used both ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our parameters, or one layer's part of it, and the tensor that holds it.

    Seen as matrices (inputs, outputs), ours is their tensor, transposed if they write (outputs, inputs), or
    one of several equal parts of it, side by side along the outputs.
    """

    ours: str
    """Path in our parameters; below the stack's blocks for a row of a layer."""
    theirs: str
    """Name of the tensor, "{layer}" standing for the number of the layer."""
    inputs: int | None = 1
    """Leading axes of ours that are inputs (2 for the attention output's heads x head width); 0: a matrix of
    one row; None: a vector."""
    transposed: bool = False
    """Whether theirs is (outputs, inputs)."""
    part: int = 0
    """Which of the parts it is."""
    parts: int = 1
    """Equal parts that their tensor is cut into."""

    def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns our parameter, in our ``shape``, from their tensor.

        Raises:
          ValueError: the tensor's shape is not ``expected(shape)``.
        """
        if tensor.shape != self.expected(shape):
            raise ValueError(f"{self.theirs}: {tensor.shape} instead of {self.expected(shape)}")
        matrix = tensor.T if self.transposed else tensor
        return np.split(matrix, self.parts, axis=-1)[self.part].reshape(shape)

    def write(self, ours: np.ndarray) -> np.ndarray:
        """Returns our parameter as (its part of) their tensor, before parts are joined and transposed."""
        return ours.reshape(self._matrix(ours.shape))

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """Returns their tensor from the parts that ``write`` gave, in order."""
        matrix = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return np.ascontiguousarray(matrix.T if self.transposed else matrix)

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their tensor, given that of our parameter."""
        *rows, columns = self._matrix(shape)
        matrix = (*rows, columns * self.parts)
        return matrix[::-1] if self.transposed else matrix

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.inputs is None:
            return (math.prod(shape),)
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])


@dataclasses.dataclass(frozen=True)
class Layers:
    """The parameters of blocks of one kind, stacked along their first axis."""

    path: str
    """Of the blocks in our parameters: "stack/blocks"."""
    rows: tuple[Row, ...]
    """Rows of the parameters of a block."""
    numbers: tuple[int, ...]
    """Their number of each block, in our order."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a parameter of ours is found: one row, or one row per layer of a stacked parameter."""

    path: str
    rows: tuple[tuple[Row, str], ...]
    """Row and name of the tensor, for each layer; of one element if the parameter is not stacked."""
    stacked: bool

    def read(
        self, tensor: Callable[[str], np.ndarray], shape: tuple[int, ...]
    ) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields the parameter layer by layer, with the layer's index, or whole, with None.

        Args:
          tensor: gives their tensors by name.
          shape: of the parameter.

        Raises:
          ValueError: a tensor has another shape than the parameter's asks for.
        """
        for layer, (row, name) in enumerate(self.rows):
            yield (
                (layer, row.read(tensor(name), shape[1:]))
                if self.stacked
                else (None, row.read(tensor(name), shape))
            )


def slots(layout: tuple[Row | Layers, ...]) -> dict[str, Slot]:
    """Returns where each of our parameters is found, by path.

    Args:
      layout: rows of the parameters that occur once, and the layers.
    """
    found = {}
    for item in layout:
        if isinstance(item, Row):
            found[item.ours] = Slot(item.ours, ((item, item.theirs),), False)
            continue
        for row in item.rows:
            path = f"{item.path}/{row.ours}"
            numbered = (row.theirs.format(layer=number) for number in item.numbers)
            rows = tuple((dataclasses.replace(row, theirs=name), name) for name in numbered)
            found[path] = Slot(path, rows, True)
    return found


def stacked(
    path: str, rows: tuple[Row, ...], layers: int, *, period: int = 1, first: int = 0
) -> Iterator[Layers]:
    """Yields the layers of a stack of ours (see `research.modules.block.Stack`).

    Args:
      path: of the stack.
      rows: rows of the parameters of a block.
      layers: blocks in all.
      period: blocks in a group.
      first: their number of the first block.
    """
    for index in range(period):
        name = f"{path}/blocks" if period == 1 else f"{path}/blocks_{index}"
        yield Layers(name, rows, tuple(range(first + index, first + layers, period)))


def linear(ours: str, theirs: str, inputs: int = 1, *, bias: bool = True) -> Iterator[Row]:
    """Yields the rows of a linear map that they keep as (outputs, inputs)."""
    yield Row(f"{ours}/kernel", f"{theirs}.weight", inputs, transposed=True)
    if bias:
        yield Row(f"{ours}/bias", f"{theirs}.bias", None)


def norm(ours: str, theirs: str, *, bias: bool = True) -> Iterator[Row]:
    """Yields the rows of a normalisation."""
    yield Row(f"{ours}/scale", f"{theirs}.weight", None)
    if bias:
        yield Row(f"{ours}/bias", f"{theirs}.bias", None)
