"""Labelled text: the description that names it, and the batches it becomes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.data.labelled_records import GLUE, Example, Fields, glue_labels, read_file, read_glue
from research.data.labelled_rows import LabelledBatches, LabelledRows, LabelledSource
from research.data.object_store import is_file
from research.data.packing import endless, share_of_process
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError, nearest

LABELS = "labels.json"
"""File of a run with the names of its classes, in order."""

MORE_SPLITS = {"glue/mnli": {"mismatched": "validation_mismatched"}}
"""Validation splits that a source has beside its first, by what they are called here."""


@dataclasses.dataclass(frozen=True)
class PreparedLabels:
    """Labelled text as rows.

    Attributes:
      tokenizer: made the tokens.
      names: the labels, in the order of their classes; empty for scores.
      train: training rows.
      valid: validation rows.
      data: the description.
      others: more validation rows, measured at the end alone, by name.
    """

    tokenizer: MaskingTokenizer
    names: tuple[str, ...]
    train: LabelledRows
    valid: LabelledRows
    data: LabelledText
    others: Mapping[str, LabelledRows] = dataclasses.field(default_factory=dict)

    def files(self) -> dict[str, str]:
        """Returns what a run must keep to read its text again: contents by file name."""
        files = self.tokenizer.files({"train": {"rows": len(self.train)}, "valid": {"rows": len(self.valid)}})
        return {**files, LABELS: json.dumps(self.names, ensure_ascii=False) + "\n"}

    def train_batches(self, *, seed: int, process_index: int, process_count: int) -> Any:
        """Returns endless shuffled batches, a Grain iterator."""
        rows = share_of_process(self.data.batch, process_index, process_count)
        return endless(LabelledSource(self.train, batch=self.data.batch, seed=seed, rows=rows))

    def valid_batches(
        self, *, limit: int | None = None, process_index: int, process_count: int
    ) -> Sequence[Any]:
        """Returns the validation batches, in order, at most ``limit``."""
        rows = share_of_process(self.data.batch, process_index, process_count)
        return LabelledBatches(self.valid, batch=self.data.batch, limit=limit, rows=rows)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns validation metrics from a model's sums.

        "loss" and, of labels, "accuracy", of two labels also "f1" (of the second) and "matthews"; of scores
        "pearson".
        """
        weight = sums["weight"]
        found = {name: sums[name] / weight for name in ("loss", "accuracy") if name in sums}
        if "right_1" in sums:
            right, there, called = (sums[name] for name in ("right_1", "class_1", "called_1"))
            spread = there * (weight - there) * called * (weight - called)
            found["f1"] = 2 * right / (there + called) if there + called else 0.0
            found["matthews"] = (right * weight - there * called) / math.sqrt(spread) if spread else 0.0
        if "products" in sums:
            x, y = sums["labels"], sums["scores"]
            spreads = [weight * sums[f"{n}_squared"] - sums[n] ** 2 for n in ("labels", "scores")]
            varies = min(spreads) > 0
            covariance = weight * sums["products"] - x * y
            found["pearson"] = covariance / math.sqrt(spreads[0] * spreads[1]) if varies else 0.0
        return found


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """Texts, or pairs of texts, with a label or a score each, or sentences with a tag for each word."""

    source: str = "files"
    """"files" (needs path), or "glue/TASK": a task of GLUE through TFDS, "glue/cola" say."""
    path: str | None = None
    """Training file: .csv or .tsv (with a header), or .jsonl."""
    valid_path: str | None = None
    """Validation file; default: the training file, told apart by split_field, or valid_fraction of it."""
    valid_fraction: float = 0.1
    """Share of the training file held out where there is neither valid_path nor split_field."""
    task: Literal["labels", "score", "tags"] = "labels"
    """What is predicted: a label of the row, a score of it, or a tag of each word."""
    text: str = "text"
    """Field of the text, or in tagging of the list of words."""
    second: str | None = None
    """Field of the second text of a pair."""
    label: str = "label"
    """Field of the label, the score, or the list of tags."""
    split_field: str | None = None
    """Field that says which split an example is of."""
    train_split: str = "train"
    """Its value for training examples."""
    valid_split: str = "valid"
    """Its value for validation examples."""
    classes: int = 2
    """Different labels; 1 for a score."""
    train_fraction: float = 1.0
    """Share of the training examples of each label that is used, the same for every seed."""
    tokenizer: str = "wordpiece"
    """"wordpiece" (trained on the training text), or the path of a tokenizer.json; --from RUN sets the
    run's."""
    length: int = 64
    """Most tokens in a row; longer texts are cut, and counted."""
    batch: int = 32
    """Rows in a step, over all devices."""

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and dtype of the arrays of a batch of the longest rows, over all devices."""
        rows = (self.batch, self.length)
        labelled = rows if self.task == "tags" else rows[:1]
        names = ("tokens", "positions", "segments", "types")
        labels = (labelled, "float32" if self.task == "score" else "int32")
        return {**dict.fromkeys(names, (rows, "int32")), "labels": labels, "weights": (labelled, "float32")}

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch of the longest rows, over all devices."""
        return self.batch * self.length

    def load_tokenizer(self, directory: Path) -> MaskingTokenizer:
        """Returns the tokenizer that a run keeps in ``directory``."""
        return MaskingTokenizer.load(directory / MaskingTokenizer.FILE)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        task = self.source.removeprefix("glue/")
        if self.source != "files" and (task == self.source or task not in GLUE):
            yield f"data.source {self.source!r} is unknown{nearest(task, ('files', *GLUE))}"
        for name in ("path", "valid_path"):
            if getattr(self, name) is not None and self.source != "files":
                yield (
                    f"data.{name} is for data.source 'files', not for {self.source!r}; "
                    "add --data.source files"
                )
        if self.source != "files" and task in GLUE:
            right = "score" if task == "stsb" else "labels"
            if self.task != right:
                yield f'data.source {self.source!r} needs data.task "{right}", not "{self.task}"'
        if self.task == "score" and self.classes != 1:
            yield f'data.task "score" needs data.classes 1, not {self.classes}'
        if self.task == "tags" and self.second is not None:
            yield 'data.task "tags" reads one text: leave out data.second'
        if self.length < 4:
            yield f"data.length is {self.length}; it should be at least 4"

    def prepare(
        self,
        *,
        vocabulary: int,
        tokenizer: MaskingTokenizer | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> PreparedLabels:
        """Returns the text as rows.

        Args:
          vocabulary: rows of the model's embedding; a tokenizer trained here is trained to fit.
          tokenizer: use this one (a run's own) instead of the one described.
          report: receives how much there is, and how many texts were cut.

        Raises:
          UserError: a file cannot be read, a label is not among those of the training text, there are more
            or fewer labels than data.classes, or the tokenizer does not fit.
        """
        train, valid, *more = self._examples()
        names = self._names(train)
        if self.task != "score" and len(names) != self.classes:
            raise UserError(
                f"the training text has {len(names)} different labels, data.classes is {self.classes}; "
                f"use --data.classes {len(names)} --model.classes {len(names)}"
            )
        train = self._part(train)
        made_by = tokenizer or self._tokenizer(train, vocabulary)
        if made_by.vocabulary > vocabulary:
            raise UserError(
                f"the tokenizer has {made_by.vocabulary} tokens, the model's vocabulary only {vocabulary}; "
                "a run's tokenizer goes with the run's model: --from RUN"
            )
        rows = [self._rows(examples, made_by, names) for examples in (train, valid, *more)]
        report(f"{len(train):,} training and {len(valid):,} validation examples, {len(names)} labels")
        self._report_cut(sum(part.truncated for part in rows), report)
        others = dict(zip(MORE_SPLITS.get(self.source, {}), rows[2:], strict=True))
        return PreparedLabels(made_by, names, rows[0], rows[1], self, others)

    def rows_of_file(
        self, tokenizer: MaskingTokenizer, names: tuple[str, ...], report: Callable[[str], None]
    ) -> LabelledRows:
        """Returns the examples of ``path`` (with split_field, those of valid_split) as rows, to be measured.

        Args:
          tokenizer: a run's.
          names: the run's labels, in the order of their classes; empty for scores.
          report: receives how many texts were cut.

        Raises:
          UserError: the file cannot be read, has no examples, or a label that is not among ``names``.
        """
        assert self.path is not None
        split = None if self.split_field is None else self.valid_split
        examples = list(read_file(self.path, self._fields, split, tags=self.task == "tags"))
        if not examples:
            raise UserError(f"there are no examples in {self.path}")
        rows = self._rows(examples, tokenizer, names)
        self._report_cut(rows.truncated, report)
        return rows

    @property
    def _fields(self) -> Fields:
        return Fields(self.text, self.second, self.label, self.split_field)

    def _report_cut(self, truncated: int, report: Callable[[str], None]) -> None:
        if truncated:
            report(f"{truncated:,} texts are longer than data.length {self.length} tokens, and cut")

    def _examples(self) -> list[list[Example]]:
        """Returns training and validation examples, of which there are some, and those of `MORE_SPLITS`."""
        if self.source != "files":
            task = self.source.removeprefix("glue/")
            more = MORE_SPLITS.get(self.source, {}).values()
            found = [list(read_glue(task, split)) for split in ("train", "validation", *more)]
        elif self.path is None:
            raise UserError('data.source "files" needs --data.path FILE: a .csv, .tsv or .jsonl')
        else:
            fields, path, tags = self._fields, self.path, self.task == "tags"
            found = [list(read_file(path, fields, self.train_split, tags=tags))]
            if self.valid_path is not None or self.split_field is not None:
                other = self.valid_path or path
                found.append(list(read_file(other, fields, self.valid_split, tags=tags)))
            else:
                order = np.random.default_rng(0).permutation(len(found[0]))
                held_out = math.ceil(self.valid_fraction * len(order))
                found = [[found[0][i] for i in part] for part in (order[held_out:], order[:held_out])]
        for purpose, examples in zip(("training", "validation"), found, strict=False):
            if not examples:
                raise UserError(f"there are no examples for {purpose} in {self.path or self.source}")
        return found

    def _names(self, train: list[Example]) -> tuple[str, ...]:
        """Returns the labels in the order of their classes: GLUE's own, or sorted; none for scores."""
        if self.task == "score":
            return ()
        if self.source != "files":
            return glue_labels(self.source.removeprefix("glue/"))
        return tuple(sorted({label for example in train for label in example.labels}))

    def _part(self, examples: list[Example]) -> list[Example]:
        """Returns ``train_fraction`` of the examples of each label, rounded up."""
        if self.train_fraction == 1.0:
            return examples
        order = np.random.default_rng(0).permutation(len(examples))
        groups: dict[str, list[int]] = {}
        for i in order.tolist():
            groups.setdefault(examples[i].labels[0] if self.task == "labels" else "", []).append(i)
        kept = (members[: math.ceil(self.train_fraction * len(members))] for members in groups.values())
        return [examples[i] for i in sorted(i for members in kept for i in members)]

    def _tokenizer(self, examples: list[Example], vocabulary: int) -> MaskingTokenizer:
        if self.tokenizer == "wordpiece":
            return MaskingTokenizer.train([" ".join(e.texts) for e in examples], vocabulary)
        if not is_file(self.tokenizer):
            raise UserError(f"data.tokenizer {self.tokenizer!r} is no file and no kind of tokenizer")
        return MaskingTokenizer.load(self.tokenizer)

    def _rows(
        self, examples: list[Example], tokenizer: MaskingTokenizer, names: tuple[str, ...]
    ) -> LabelledRows:
        shape = (len(examples), self.length)
        tags = self.task == "tags"
        tokens, types = np.full(shape, tokenizer.padding, np.int32), np.zeros(shape, np.int32)
        lengths, truncated = np.zeros(len(examples), np.int64), 0
        labels = np.zeros(shape if tags else shape[:1], np.float32 if self.task == "score" else np.int32)
        weights = np.zeros(labels.shape, np.float32) if tags else np.ones(labels.shape, np.float32)
        classes = {name: i for i, name in enumerate(names)}
        encoded = iter(tokenizer.encode_batch([text for example in examples for text in example.texts]))
        for row, example in enumerate(examples):
            parts = [next(encoded) for _ in example.texts]
            found = [self._label(label, classes, example.where) for label in example.labels]
            if tags:
                starts = np.cumsum([1, *map(len, parts[:-1])])
                parts = [[i for part in parts for i in part]]
                # A word of which nothing is left (white space, say) has no token to carry its tag.
                for start, label, size in zip(
                    starts, found, np.diff([*starts, len(parts[0]) + 1]), strict=True
                ):
                    if size and start < self.length - 1:
                        labels[row, start], weights[row, start] = label, 1.0
            else:
                labels[row] = found[0]
            truncated += _shorten(parts, self.length - 1 - len(parts))
            at = 1
            tokens[row, 0] = tokenizer.first
            for kind, part in enumerate(parts):
                end = at + len(part) + 1
                tokens[row, at:end], types[row, at:end] = [*part, tokenizer.separator], kind
                at = end
            lengths[row] = at
        return LabelledRows(tokens, lengths, types, labels, weights, truncated)

    def _label(self, label: str, classes: dict[str, int], where: str) -> float:
        if self.task == "score":
            try:
                score = float(label)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise UserError(f"{where}: field {self.label!r} is {label!r}, not a number")
            return score
        if label not in classes:
            raise UserError(
                f"{where}: field {self.label!r} is {label!r}, which no training example has"
                + nearest(label, classes)
            )
        return classes[label]


def _shorten(parts: list[list[int]], room: int) -> bool:
    """Cuts tokens off the end of the longer part until all fit into ``room``; returns whether any was cut."""
    cut = False
    while sum(map(len, parts)) > room:
        max(parts, key=len).pop()
        cut = True
    return cut
