"""TFDS data sets: local text through one builder, and published data sets by name. No TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import tensorflow_datasets as tfds

from research.data.cache import build_once, cache_directory, content_hash
from research.data.documents import Corpus, Document, LocalSource, Source
from research.errors import UserError, nearest

_PARTS = ("translate", "text", "question_answering", "summarization", "text_simplification")
"""Parts of the catalogue that hold text. TFDS itself stops at the first part that lacks a package (h5py, say)
and knows nothing of those behind it."""


class Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Documents of a local source, in their order, as one TFDS data set with the split "train"."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: LocalSource, data_dir: Path) -> None:
        """Makes, or opens, the data set of ``source`` in ``data_dir``."""
        self._source = source
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict({"path": text(), "text": text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Document]]:
        yield from enumerate(self._source.documents())


@dataclasses.dataclass(frozen=True)
class _Records:
    """Documents of a TFDS data source, decoded as they are read."""

    records: Sequence[dict[str, Any]]
    field: str
    split: str | None
    """Documents of a published data set have no path: they are named by split and number."""

    def __iter__(self) -> Iterator[Document]:
        for i in range(len(self.records)):
            record = self.records[i]
            path = f"{self.split}/{i}" if self.split else record["path"].decode()
            try:
                yield {"path": path, "text": record[self.field].decode("utf-8")}
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: field {self.field!r} is not UTF-8 at byte {error.start}") from None


def local_corpus(source: LocalSource) -> Corpus:
    """Returns the documents of ``source``, from its TFDS copy in the cache, made first if need be."""
    key = content_hash("documents", 1, source.name, source.fingerprint())
    directory = cache_directory() / "sources" / key
    tfds.disable_progress_bar()
    build_once(directory, lambda d: _prepare(Documents(source=source, data_dir=d), io.StringIO()))
    builder = Documents(source=source, data_dir=directory)
    records = builder.as_data_source("train")
    return Corpus(_Records(records, "text", None), None, builder.info.splits["train"].num_bytes)


@dataclasses.dataclass(frozen=True)
class NamedDataset(Source):
    """A data set of the TFDS catalogue, in TFDS's own data directory (``$TFDS_DATA_DIR``)."""

    name: str
    """Name, with an optional configuration and version: "lm1b", "wiki40b/en"."""
    field: str
    """Field that holds the text."""

    def fingerprint(self) -> list[object]:
        """Returns the full name and version."""
        return [self._builder().info.full_name, self.field]

    def corpus(self) -> Corpus:
        """Returns the documents, downloading and preparing the data set on first use.

        Raises:
          UserError: it cannot be downloaded or prepared, or has no such text field or no training split.
        """
        builder = self._builder()
        features = builder.info.features
        texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
        if self.field not in texts:
            raise UserError(
                f"tfds:{self.name} has no text field {self.field!r} (--data.field)"
                + _choices(self.field, texts)
            )
        prepare(builder, f"tfds:{self.name}")
        splits = builder.info.splits
        if "train" not in splits:
            raise UserError(f"tfds:{self.name} has no split 'train'; it has {', '.join(splits)}")
        valid = next((split for split in ("validation", "valid", "test") if split in splits), None)
        return Corpus(
            train=_Records(builder.as_data_source("train"), self.field, "train"),
            valid=_Records(builder.as_data_source(valid), self.field, valid) if valid else None,
            bytes=splits["train"].num_bytes,
        )

    def _builder(self) -> tfds.core.DatasetBuilder:
        return named_builder(self.name)


def named_builder(name: str) -> tfds.core.DatasetBuilder:
    """Returns a data set of the TFDS catalogue; UserError if there is no such name or configuration."""
    for part in _PARTS:
        importlib.import_module(f"tensorflow_datasets.{part}")
    try:
        return tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        base = name.partition("/")[0]
        raise UserError(
            f"TFDS has no data set {base!r}"
            + _choices(base, tfds.list_builders(with_community_datasets=False))
        ) from None
    except (ValueError, RuntimeError, AssertionError) as error:  # unknown configuration or version
        base, config = re.match(r"([^/:]*)/?([^/:]*)", name).groups()  # type: ignore[union-attr]
        if config and config not in (known := tfds.builder_cls(base).builder_configs):
            raise UserError(
                f"tfds:{base} has no configuration {config!r}"
                + (nearest(config, known) if known else f"; it has none: tfds:{base}")
            ) from None
        raise UserError(f"tfds:{name}: {str(error).splitlines()[0]}") from None


def prepare(builder: tfds.core.DatasetBuilder, name: str, *, quiet: bool = False) -> None:
    """Downloads and prepares a data set unless that is done, with progress on standard error or ``quiet``.

    Raises:
      UserError: it cannot be downloaded or prepared; the message calls it ``name``.
    """
    (tfds.disable_progress_bar if quiet else tfds.enable_progress_bar)()
    try:
        _prepare(builder, io.StringIO() if quiet else sys.stderr)
    except (OSError, ImportError, tfds.download.DownloadError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot prepare {name} ({first}); it goes to {builder.data_path}") from error


def _choices(name: str, choices: Sequence[str]) -> str:
    hint = nearest(name, choices)
    return hint if "did you mean" in hint or len(choices) <= 12 else ""


def _prepare(builder: tfds.core.DatasetBuilder, messages: TextIO) -> None:
    # TFDS prints to standard output, which is for results.
    with contextlib.redirect_stdout(messages):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="array_record"
        )
