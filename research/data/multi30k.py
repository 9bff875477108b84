"""Multi30k as a TFDS data set: image captions in English, German, French and Czech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from research.data.parallel import aligned
from research.errors import UserError, nearest

ADDRESS = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1"
"""Where its owners publish it (for non-commercial research and education)."""
LANGUAGES = ("en", "de", "fr", "cs")
_FILES = {
    "train": "train",
    "valid": "val",
    "test_2016_flickr": "test_2016_flickr",
    "test_2017_flickr": "test_2017_flickr",
    "test_2017_mscoco": "test_2017_mscoco",
}
_SUFFIXES = ("", ".gz", ".xz")


def splits(languages: Sequence[str]) -> list[str]:
    """Returns the splits that hold every one of the languages (Czech has no tests of 2017).

    Raises:
      UserError: not two different languages of Multi30k.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise UserError(f"Multi30k has no language {language!r}{nearest(language, LANGUAGES)}")
    if len(set(languages)) != len(languages):
        raise UserError(f"source and target are both {languages[0]!r}; name two languages")
    return [split for split in _FILES if "cs" not in languages or "2017" not in split]


class Multi30k(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Task 1 of Multi30k (Elliott et al., 2016): one caption and its translation per record.

    The files are taken from a directory that holds them, plain, .gz or .xz, or else downloaded.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, languages: tuple[str, str], directory: str | None, tokenised: bool, data_dir: Path
    ) -> None:
        """Makes, or opens, the data set in ``data_dir``."""
        self._languages, self._directory, self._tokenised = languages, directory, tokenised
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.Translation(languages=sorted(self._languages)),
            homepage="https://github.com/multi30k/dataset",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {
            split: self._generate_examples(
                {language: self._file(dl_manager, split, language) for language in self._languages}
            )
            for split in splits(self._languages)
        }

    def _generate_examples(self, files: dict[str, Path]) -> Iterator[tuple[int, dict[str, str]]]:
        for number, lines in enumerate(aligned(*files.values())):
            yield number, dict(zip(files, lines, strict=True))

    def _file(self, dl_manager: tfds.download.DownloadManager, split: str, language: str) -> Path:
        if self._directory is not None:
            return local_file(self._directory, split, language, tokenised=self._tokenised)
        folder, suffix = ("tok", "") if self._tokenised else ("raw", ".gz")
        name = _stem(split, language, tokenised=self._tokenised)
        return Path(dl_manager.download(f"{ADDRESS}/{folder}/{name}{suffix}"))


def local_file(directory: str, split: str, language: str, *, tokenised: bool) -> Path:
    """Returns the file of one side of a split; ``UserError`` if the directory has none."""
    place = Path(directory).expanduser()
    stem = _stem(split, language, tokenised=tokenised)
    for suffix in _SUFFIXES:
        for folder in (place, place / ("tok" if tokenised else "raw")):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise UserError(f"{place} has no file {stem} of Multi30k (plain, .gz or .xz); see {ADDRESS}")


def _stem(split: str, language: str, *, tokenised: bool) -> str:
    return f"{_FILES[split]}.lc.norm.tok.{language}" if tokenised else f"{_FILES[split]}.{language}"
