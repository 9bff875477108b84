"""Tensors in safetensors files: read one at a time, written in shards."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes  # NumPy then knows bfloat16
import numpy as np
import safetensors
from safetensors.numpy import save_file

from research.errors import UserError

SHARD = 5 * 2**30
"""Bytes of tensors in a file, at most."""


class Tensors:
    """The tensors of a directory (sharded or not) or a file, read from disk when they are asked for.

    Args:
      path: a directory with ``model.safetensors`` or ``model.safetensors.index.json``, or a file.
      allow_pickle: whether ``.bin`` files of PyTorch will do where there is none of these.
    """

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        """Opens the files; UserError if there are none, or one is cut short or is something else."""
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        for file in _files(path, allow_pickle=allow_pickle):
            if file.suffix != ".safetensors":
                pickled = _unpickled(file)
                self._files.update(dict.fromkeys(pickled, pickled))
                continue
            try:
                opened = self._stack.enter_context(safetensors.safe_open(file, "np"))
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{file} is not a whole safetensors file: {error}") from None
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def __enter__(self) -> Tensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return set(self._files)

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns a tensor."""
        file = self._files[name]
        return _array(file[name]) if isinstance(file, dict) else file.get_tensor(name)


def _unpickled(file: Path) -> dict[str, Any]:
    """Returns the tensors of a file of `torch.save`; its pickle may build tensors and nothing else."""
    try:
        import torch
    except ImportError:
        raise UserError(f'{file}: reading a pickle needs PyTorch (pip install "headway[peers]")') from None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle's, zip's, PyTorch's own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} holds more than tensors, or is cut short: {reason}") from None
    return {str(name): tensor for name, tensor in found.items()}


def _array(tensor: Any) -> np.ndarray:
    """Returns a tensor of PyTorch; NumPy has no bfloat16 of its own."""
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.view(dtype=sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _files(path: Path, *, allow_pickle: bool = False) -> list[Path]:
    if path.is_file():
        if path.suffix != ".safetensors" and not allow_pickle:
            raise UserError(_unsafe(path))
        return [path]
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory; an import needs config.json, model.safetensors and tokenizer.json, "
            "as `huggingface-cli download` or `save_pretrained` write them"
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for name in named:
            if not (path / name).is_file():
                raise UserError(f"{index} names {name}, which is not there")
        return [path / name for name in named]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    pickles = sorted(path.glob("pytorch_model*.bin"))
    if pickles and allow_pickle:
        return pickles
    pickles += sorted(path.glob("*.bin")) + sorted(path.glob("*.pt"))
    if pickles:
        raise UserError(_unsafe(pickles[0]))
    raise UserError(f"{path} has no model.safetensors")


def _unsafe(path: Path) -> str:
    return (
        f"{path} is not a safetensors file; a pickle can run any code when it is read, so it is refused: "
        "convert it with `save_pretrained(..., safe_serialization=True)` where you trust it, or say "
        "--allow-pickle to have PyTorch read it with all but tensors forbidden"
    )


def write(
    directory: Path,
    tensors: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    shard: int = SHARD,
) -> list[Path]:
    """Writes tensors as ``model.safetensors``, or as numbered files with an index if they need several.

    Args:
      directory: where to.
      tensors: names and arrays, of which one file's worth is held in memory.
      metadata: kept in each file's header.
      shard: bytes in a file, at most (a larger tensor has one of its own).

    Returns:
      The files written.
    """
    written: list[tuple[Path, list[str]]] = []
    total, held = 0, 0
    batch: dict[str, np.ndarray] = {}

    def flush() -> None:
        file = directory / f"model-{len(written) + 1:05}.safetensors"
        save_file(batch, file, dict(metadata))
        written.append((file, list(batch)))
        batch.clear()

    for name, array in tensors:
        if batch and held + array.nbytes > shard:
            flush()
            held = 0
        batch[name] = array
        held += array.nbytes
        total += array.nbytes
    flush()
    if len(written) == 1:
        return [written[0][0].rename(directory / "model.safetensors")]
    files = []
    where: dict[str, str] = {}
    for number, (file, names) in enumerate(written, 1):
        target = file.rename(directory / f"model-{number:05}-of-{len(written):05}.safetensors")
        files.append(target)
        where.update(dict.fromkeys(names, target.name))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return files


def matching(names: set[str], pattern: str) -> set[str]:
    """Returns the names in which ``pattern``, a regular expression, is found."""
    return {name for name in names if re.search(pattern, name)}
