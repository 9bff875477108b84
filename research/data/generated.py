"""Tasks whose rows are generated: batch i is a function of (seed, i), there is no last one, nothing is read.

A row is tokens, and targets where something is asked: ``weights`` is 1 there and 0 elsewhere. The arrays are
those of text (`research.data.packing.Batch`), so whatever reads text reads them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float32, Int32

Rows = dict[str, np.ndarray]
"""``tokens``, ``targets``, ``segments``, ``positions`` [rows, length] int32; ``weights`` float32."""
_PARTS = ("train", "valid", "test")


def random_of(part: Literal["train", "valid", "test"], *numbers: int) -> np.random.Generator:
    """Returns the random numbers of one batch of a part; a training batch is named by (seed, index)."""
    return np.random.default_rng([_PARTS.index(part), *numbers])


def rows(
    tokens: Int32[np.ndarray, "rows length"],
    targets: Int32[np.ndarray, "rows length"],
    weights: Float32[np.ndarray, "rows length"],
    lengths: Int32[np.ndarray, " rows"] | None = None,
) -> Rows:
    """Returns a batch of rows, each a document; those of ``lengths`` are padded on the right."""
    index = np.arange(tokens.shape[1], dtype=np.int32)[None]
    real = np.ones(tokens.shape, bool) if lengths is None else index < lengths[:, None]
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": real.astype(np.int32),
        "positions": np.where(real, index, np.int32(0)),
        "weights": weights,
    }


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task, ready for training.

    Attributes:
      train: (seed, index) -> training batch.
      valid: index -> validation batch.
      valid_count: validation batches.
      batch: rows of a training batch.
      baselines: accuracy on the validation rows of what needs no model, by name.
      tests: further batches that a finished model is measured on, by what they test.
    """

    train: Callable[[int, int], Rows]
    valid: Callable[[int], Rows]
    valid_count: int
    batch: int
    baselines: Mapping[str, float]
    tests: Mapping[str, Callable[[], Iterator[Rows]]] = dataclasses.field(default_factory=dict)

    def files(self) -> dict[str, str]:
        """Returns nothing: the description says it all."""
        return {}

    def train_batches(self, *, seed: int, process_index: int, process_count: int) -> Any:
        """Returns this process's share of endless batches, a Grain iterator."""
        from research.data.packing import endless

        return endless(_Batches(self.train, seed, self._part(process_index, process_count)))

    def valid_batches(
        self, *, limit: int | None = None, process_index: int, process_count: int
    ) -> Sequence[Rows]:
        """Returns this process's share of the validation batches, at most ``limit``."""
        part = self._part(process_index, process_count)
        count = self.valid_count if limit is None else min(limit, self.valid_count)
        return [{name: array[part] for name, array in self.valid(i).items()} for i in range(count)]

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss" in nats per answer and "accuracy", the share of right answers."""
        return {name: sums[name] / sums["weight"] for name in ("loss", "accuracy")}

    def _part(self, process_index: int, process_count: int) -> slice:
        from research.data.packing import share_of_process

        return share_of_process(self.batch, process_index, process_count)


class _Batches:
    """Endless training batches as a source of random access."""

    def __init__(self, train: Callable[[int, int], Rows], seed: int, part: slice) -> None:
        self._train, self._seed, self._part = train, seed, part

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Rows:
        return {name: array[self._part] for name, array in self._train(self._seed, index).items()}


class _Sized(Protocol):
    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> int: ...


class Generated:
    """What descriptions of generated tasks have in common, by their fields ``batch`` and ``length``."""

    def shapes(self: _Sized) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and dtype of the arrays of a batch, over all devices."""
        shape = (self.batch, self.length)
        integers = dict.fromkeys(("tokens", "targets", "segments", "positions"), (shape, "int32"))
        return {**integers, "weights": (shape, "float32")}

    @property
    def tokens_per_step(self: _Sized) -> int:
        """Tokens in a batch, over all devices."""
        return self.batch * self.length

    def load_tokenizer(self, directory: Path) -> None:
        """Returns None: there is no text."""
        del directory
