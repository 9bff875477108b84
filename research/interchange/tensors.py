"""Tensors in safetensors files: read one at a time, written in shards."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # NumPy then knows bfloat16
import numpy as np
import safetensors

from research.errors import UserError

SHARD = 5 * 2**30
"""Bytes of tensors in a file, at most."""
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""What a header calls the dtypes of weights."""


class Tensors:
    """The tensors of a directory (sharded or not) or a file, read from disk when they are asked for.

    Args:
      path: a directory with ``model.safetensors`` or ``model.safetensors.index.json``, or a file.
      allow_pickle: whether ``.bin`` files of PyTorch will do where there is none of these.
    """

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        """Opens the files; UserError if there are none, or one is cut short or is something else."""
        self._tensors: dict[str, Any] = {}
        for file in _files(path, allow_pickle=allow_pickle):
            if file.suffix != ".safetensors":
                self._tensors.update(_unpickled(file))
                continue
            try:
                with safetensors.safe_open(file, "np"):  # looks whether the file is whole
                    self._tensors.update(_placed(file))
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{file} is not a whole safetensors file: {error}") from None

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        return set(self._tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns a tensor; UserError if its dtype is none that weights have."""
        found = self._tensors[name]
        if not isinstance(found, _Placed):
            return _array(found)
        dtype = next((ours for ours, theirs in _DTYPES.items() if theirs == found.dtype), None)
        if dtype is None:
            raise UserError(f"{found.file}: {name} has dtype {found.dtype}; supported: {', '.join(_DTYPES)}")
        count = math.prod(found.shape)
        # Not the library's `get_tensor`: it maps the file, and holds every page that has been read.
        return np.fromfile(found.file, np.dtype(dtype), count, offset=found.offset).reshape(found.shape)


class _Placed(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _placed(file: Path) -> dict[str, _Placed]:
    """Returns where the tensors of a safetensors file lie."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return {
        name: _Placed(file, tensor["dtype"], tuple(tensor["shape"]), 8 + length + tensor["data_offsets"][0])
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def _unpickled(file: Path) -> dict[str, Any]:
    """Returns the tensors of a file of `torch.save`; its pickle may build tensors and nothing else."""
    try:
        import torch
    except ImportError:
        raise UserError(f'{file}: reading a pickle needs PyTorch (pip install -e ".[peers]")') from None
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


class Planned(NamedTuple):
    """A tensor to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    array: Callable[[], np.ndarray]
    """Makes it, contiguous."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    directory: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str], shard: int = SHARD
) -> list[Path]:
    """Writes tensors as ``model.safetensors``, or as numbered files with an index if they need several.

    Args:
      directory: where to.
      tensors: by name; each is made when its turn comes, so that one is held in memory.
      metadata: kept in each file's header.
      shard: bytes in a file, at most (a larger tensor has one of its own).

    Returns:
      The files written.

    Raises:
      UserError: the disk is full, or refuses.
    """
    batches: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        if batches[-1] and held + tensor.nbytes > shard:
            batches.append([])
            held = 0
        batches[-1].append(name)
        held += tensor.nbytes
    several = len(batches) > 1
    files, where = [], {}
    for number, names in enumerate(batches, 1):
        count = f"-{number:05}-of-{len(batches):05}" if several else ""
        file = directory / f"model{count}.safetensors"
        try:
            _write_file(file, {name: tensors[name] for name in names}, metadata)
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from error
        files.append(file)
        where.update(dict.fromkeys(names, file.name))
    if several:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index, indent=2)
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return files


def _write_file(file: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str]) -> None:
    """Writes one file: the length of its header (8 bytes), the header, and the tensors one after another.

    The library's own `save_file` holds a second copy of all of them.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[str(tensor.dtype)],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    with open(file, "wb", buffering=0) as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for tensor in tensors.values():
            left = tensor.array().reshape(-1).view(np.uint8).data
            while left:  # Linux writes 2 GiB at once, at most
                left = left[out.write(left) :]


def matching(names: set[str], pattern: str) -> set[str]:
    """Returns the names in which ``pattern``, a regular expression, is found."""
    return {name for name in names if re.search(pattern, name)}
