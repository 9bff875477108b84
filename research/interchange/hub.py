"""Checkpoints by their ids on the Hugging Face hub, and as runs to start from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from research.data.cache import build_once, cache_directory, content_hash
from research.data.object_store import is_object
from research.errors import UserError
from research.interchange.runs import import_run

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ("config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin",)


def located(source: str, report: Callable[[str], None], *, allow_pickle: bool = False) -> Path:
    """Returns the directory of a checkpoint: ``source`` itself, or what the hub has under that id.

    Args:
      source: a path, or an id ("gpt2", "google-bert/bert-base-uncased").
      report: receives messages.
      allow_pickle: whether to fetch ``.bin`` files as well.

    Raises:
      UserError: it is no path that exists, and cannot be fetched.
    """
    if Path(source).exists() or not is_id(source):
        return Path(source)
    by_hand = (
        f"place config.json, tokenizer.json and model.safetensors (or model.safetensors.index.json and the "
        f"files it names) in a directory, say {source}, and name that"
    )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{source}: no such directory, and huggingface_hub, which fetches ids of the hub, is not "
            f'installed (pip install -e ".[hf]"); or {by_hand}'
        ) from None
    report(f"fetching {source} from the Hugging Face hub")
    files = [*_FILES, *(_PICKLES if allow_pickle else ())]
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=files))
    except Exception as error:  # the hub's, the network's, the disk's
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(" .")
        raise UserError(
            f"{source}: no such directory, and it cannot be fetched from the hub ({reason}); {by_hand}"
        ) from None


def is_id(source: str) -> bool:
    """Returns whether ``source`` can be an id of the hub, and is no path into a directory that is here."""
    return _ID.fullmatch(source) is not None and ("/" not in source or not Path(source).parent.exists())


def as_run(source: str, report: Callable[[str], None]) -> str:
    """Returns the run directory of something to start from: a run, or a checkpoint, imported once.

    Raises:
      UserError: the checkpoint cannot be fetched or imported.
    """
    path = Path(source)
    if is_object(source):
        return source
    if (path / "experiment.json").is_file() or not ((path / "config.json").is_file() or is_id(source)):
        return source
    if path.is_dir() and not (path / "config.json").is_file():
        return source  # neither; the error of a run says so
    directory = located(source, report).resolve()
    files = [(str(file), file.stat().st_size) for file in sorted(directory.glob("*.*"))]

    def build(made: Path) -> None:
        import_run(directory, made, report)

    return str(build_once(cache_directory() / "imports" / content_hash(files), build))
