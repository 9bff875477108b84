"""Tuning of log-linear weights on a development set: decode, merge n-best lists, choose weights, repeat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.data.replacing import save_arrays
from research.errors import UserError
from research.statistical.bleu_counts import Reference, bleu
from research.statistical.candidate_pool import CandidatePool, empty_pool
from research.statistical.decoding import Translation, decode
from research.statistical.language_model import LanguageModel
from research.statistical.mert import mert
from research.statistical.mira import mira
from research.statistical.phrase_table import PhraseTable
from research.statistical.stack_decoder import Search
from research.statistical.translation_options import (
    DEFAULT_WEIGHTS,
    FEATURES,
    FIXED,
    collect,
    weight_vector,
)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How weights are tuned.

    Attributes:
      method: "mira" (batch MIRA), or "mert" (minimum error rate training).
      n_best: different translations of each sentence in an iteration.
      iterations: most decodings of the development set.
      patience: iterations without a gain after which tuning stops.
      least_gain: gain in BLEU, in percent, that counts as one.
      restarts: random restarts of MERT.
      epochs: passes of MIRA over the sentences.
      largest_step: C of MIRA.
      seed: of all that is random.
    """

    method: Literal["mira", "mert"] = "mira"
    n_best: int = 100
    iterations: int = 10
    patience: int = 2
    least_gain: float = 0.05
    restarts: int = 10
    epochs: int = 30
    largest_step: float = 0.0003
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError where a setting makes no sense."""
        if self.method not in ("mira", "mert"):
            raise UserError(f"unknown method of tuning {self.method!r}; choose from mert, mira")
        for name, least in (
            ("n_best", 2),
            ("iterations", 1),
            ("patience", 1),
            ("restarts", 0),
            ("epochs", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"tuning {name} {getattr(self, name)}: {least} or more")
        if not self.largest_step > 0:
            raise UserError(f"tuning largest_step {self.largest_step:g}: above 0")


@dataclasses.dataclass(frozen=True)
class Iteration:
    """Weights, and BLEU in percent of the development set decoded with them."""

    bleu: float
    weights: dict[str, float]


def tune(
    source: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    table: PhraseTable,
    model: LanguageModel,
    search: Search,
    how: Tuning = Tuning(),
    *,
    start: Mapping[str, float] = DEFAULT_WEIGHTS,
    processes: int | None = None,
    state: Path | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> list[Iteration]:
    """Returns every iteration; its last decoded weights need not be the best: see `best`.

    Args:
      source: words of the sentences of the development set.
      references: words of their translations.
      table: the phrase table.
      model: the language model.
      search: how far the decoder searches.
      how: how to tune.
      start: weights of the first iteration.
      processes: processes that decode; default: as many as there are cores.
      state: file that is written after each iteration; tuning goes on from it if it is there.
      report: called with a line after each iteration.

    Raises:
      UserError: there is nothing to tune on, a setting is wrong, or ``state`` is of another tuning.
    """
    how.validate()
    if len(source) != len(references):
        raise UserError(f"{len(source):,} sentences and {len(references):,} references; they must be as many")
    if not any(source):
        raise UserError("there is nothing to tune on: no sentence has words")
    weight_vector(start)
    ready = [Reference(words) for words in references]
    options = collect(source, table, model)
    begun = {"sentences": len(source), "start": dict(start), "how": dataclasses.asdict(how)}
    begun["search"] = dataclasses.asdict(search)
    history, pool = _read(state, begun)
    while not _finished(history, how):
        weights = _next(history[-1].weights, pool, how, len(history)) if history else dict(start)
        found = decode(source, options, model, weights, search, n_best=how.n_best, processes=processes)
        candidates, reached = _counted(found, ready)
        before, pool = len(pool), pool.merged(candidates)
        history.append(Iteration(reached, weights))
        report(f"tuning, iteration {len(history)}: BLEU {reached:.2f}, {len(pool):,} candidates")
        if state is not None:
            _write(state, begun, history, pool)
        if len(pool) == before:
            break
    return history


def best(history: Sequence[Iteration]) -> Iteration:
    """Returns the iteration with the highest BLEU."""
    return max(history, key=lambda iteration: iteration.bleu)


def _finished(history: list[Iteration], how: Tuning) -> bool:
    if len(history) >= how.iterations:
        return True
    if len(history) <= how.patience:
        return False
    earlier, late = history[: -how.patience], history[-how.patience :]
    return best(late).bleu < best(earlier).bleu + how.least_gain


def _next(weights: dict[str, float], pool: CandidatePool, how: Tuning, iteration: int) -> dict[str, float]:
    """Returns the weights that suit the candidates so far."""
    vector = weight_vector(weights)
    free = np.array([name not in FIXED for name in FEATURES])
    seed = how.seed + iteration
    if how.method == "mert":
        vector = mert(pool, vector, free, restarts=how.restarts, seed=seed)
        # The scale means nothing to the decoder; that of the language model's weight is kept for readers.
        vector[free] /= np.abs(vector[free]).sum() / np.abs(weight_vector(DEFAULT_WEIGHTS)[free]).sum()
    else:
        vector = mira(pool, vector, free, epochs=how.epochs, largest_step=how.largest_step, seed=seed)
    return dict(zip(FEATURES, vector.tolist(), strict=True))


def _counted(
    found: Sequence[Sequence[Translation]], references: Sequence[Reference]
) -> tuple[CandidatePool, float]:
    """Returns the translations as candidates, and BLEU of the best of each sentence."""
    sentence = [number for number, row in enumerate(found) for _ in row]
    features = np.array([one.features for row in found for one in row], np.float32)
    counts = np.array(
        [references[n].counts(one.words) for n, row in enumerate(found) for one in row], np.int32
    )
    first = np.cumsum([0, *(len(row) for row in found[:-1])])
    pool = CandidatePool(np.array(sentence, np.int32), features, counts)
    return pool, float(bleu(counts[first].sum(axis=0)))


def _write(path: Path, begun: dict[str, Any], history: list[Iteration], pool: CandidatePool) -> None:
    iterations = [dataclasses.asdict(iteration) for iteration in history]
    text = json.dumps({"begun": begun, "history": iterations})
    save_arrays(path, {"text": np.array(text), **vars(pool)})


def _read(path: Path | None, begun: dict[str, Any]) -> tuple[list[Iteration], CandidatePool]:
    if path is None or not path.exists():
        return [], empty_pool()
    with np.load(path) as file:
        text = json.loads(str(file["text"]))
        if text["begun"] != begun:
            raise UserError(f"{path} is of a tuning with other settings; remove it to begin anew")
        pool = CandidatePool(file["sentence"], file["features"], file["counts"])
    return [Iteration(**iteration) for iteration in text["history"]], pool
