"""The training loop: drives a program, whatever its step computes, and keeps what it has reached.

It knows nothing of models or optimizers. The step at hand is never waited for: what step k measured is
fetched when step k+1 has been dispatched, so the device always has work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research.errors import NonFiniteError, StoppedError, UserError
from research.training.checkpoint import Checkpoints
from research.training.interrupt import Interrupt
from research.training.metrics import MetricsWriter, Stopwatch, Window
from research.training.progress import Display
from research.training.run_directory import RunDirectory, ranking
from research.training.stragglers import Stragglers
from research.training.watchdog import Watchdog

if TYPE_CHECKING:
    from research.training.experiment import Experiment
    from research.training.program import Program


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run hands back."""

    state: Any
    """The final state, on the program's mesh."""
    step: int
    """Steps taken, over all sessions."""
    validation: dict[str, float]
    """Validation metrics of the final state."""
    seconds: float
    """Wall-clock seconds in the loop, over all sessions."""
    tokens_per_second: float
    """Mean over this session, without compilation, evaluation and saving; 0 for less than two steps."""


def train(
    program: Program,
    experiment: Experiment,
    directory: RunDirectory,
    *,
    display: Display,
    profile: tuple[int, int] | None = None,
    patience: float | None = None,
) -> Outcome:
    """Trains to ``experiment.steps``, from the newest checkpoint of the run if it has one.

    Metrics go to metrics.jsonl every ``log_every`` steps: "train/..." are means over the steps since the line
    before (but the learning rate: its last value); tokens_per_second and model_flops_per_second (causal
    attention in full, and halved) leave out compilation, evaluation and saving; seconds is wall-clock time in
    the loop, over all sessions. Rows with "valid/..." are evaluations.

    Args:
      program: what to run.
      experiment: steps, and when to evaluate, save and log.
      directory: the run directory, claimed.
      display: shows progress.
      profile: (first, end): steps first to end - 1 are traced into the run directory's folder profile/.
      patience: seconds without a finished step, evaluation or save after which the process ends with code 4.

    Raises:
      NonFiniteError: loss or gradient of a step was not finite; its batch is saved, its update not applied.
      StoppedError: SIGTERM or Ctrl-C; everything is saved.
      UserError: the disk is full, or the checkpoint to go on from does not fit.
    """
    with (
        Watchdog(patience) as watchdog,
        Checkpoints(directory, experiment.checkpointing, experiment.evaluation.best) as checkpoints,
        Interrupt() as interrupt,
    ):
        loop = _Loop(program, experiment, directory, display, checkpoints, interrupt, watchdog, profile)
        try:
            with jax.transfer_guard("disallow"):
                loop.run()
            return loop.outcome()
        finally:
            loop.close()


class _Loop:
    """One session of training: the variables that change from step to step."""

    def __init__(
        self,
        program: Program,
        experiment: Experiment,
        directory: RunDirectory,
        display: Display,
        checkpoints: Checkpoints,
        interrupt: Interrupt,
        watchdog: Watchdog,
        profile: tuple[int, int] | None,
    ) -> None:
        self.program, self.experiment, self.directory = program, experiment, directory
        self.display, self.checkpoints, self.interrupt = display, checkpoints, interrupt
        self.watchdog = watchdog
        self.batches = program.batches()
        restored = checkpoints.restore_newest(program.abstract_state, self.batches, display.note)
        record = restored.record if restored else {}
        self.step = self.first = self.saved = restored.step if restored else 0
        self.state = restored.state if restored else program.init()
        self.profile = _profile_window(profile, self.step, experiment.steps)
        self.window = Window(record.get("window"))
        self.seconds_before: float = record.get("seconds", 0.0)
        self.started = time.monotonic()
        self.validation: tuple[int, dict[str, float]] = (self.step, self._validation_there())
        rows = (row for row in directory.rows() if row["step"] <= self.step and "valid/loss" in row)
        self.ranks = [ranking(row, experiment.evaluation.best) for row in rows]
        self.writer = MetricsWriter(directory, self.step)
        self.pending: tuple[int, dict[str, np.ndarray], dict[str, jax.Array]] | None = None
        self.watch, self.stragglers = Stopwatch(), Stragglers()
        self.work = 0.0  # steps of this process's life, each counted by its batch's share of a full one
        self.logged: tuple[float, float] = (0.0, 0.0)  # work and training seconds at the last line
        self.warm = self.step + 1  # the step that compiles: clocks start when it is done
        self.warmed = 0.0  # work until then
        if restored:
            display.note(f"resumed from step {self.step}")
        display.begin(
            self.step,
            experiment.steps,
            program.tokens_per_step,
            program.flops_per_step,
            program.flops_per_step_causal,
        )

    def run(self) -> None:
        """Steps until the end, a signal, or an error."""
        program, last = self.program, self.experiment.steps
        while self.step < last and not self._exhausted() and not self._stopping():
            if self.profile and self.step + 1 == self.profile[0]:
                self._settle()
                jax.profiler.start_trace(str(self.directory.path / "profile"))
            # To place a batch is to transfer it.
            with self.stragglers.own(), jax.transfer_guard_host_to_device("allow"):
                batch = next(self.batches)
                placed = program.place(batch)
            self.state, metrics = program.step(self.state, placed)
            self.step += 1
            before, self.pending = self.pending, (self.step, batch, metrics)
            if before:
                self._collect(*before)
            self._after_step()
        self._settle()
        if self.step < last and not self._exhausted():
            self._save(self.validation[1] if self.validation[0] == self.step else {})
            self.checkpoints.wait()
            cause = self.interrupt.received or "a signal to another process"
            raise StoppedError(
                f"stopped by {cause} at step {self.step} of {last}; saved in {self.directory}:"
                " the same command goes on from there"
            )
        if self.step < last:
            said = f"{self.experiment.evaluation.patience} evaluations without a better one"
            self.display.note(f"ended at step {self.step} of {last}: {said}")
        if self.validation[0] != self.step or not self.validation[1]:
            self._evaluate()
        if self.saved != self.step:
            self._save(self.validation[1])

    def _stopping(self) -> bool:
        """Returns whether a signal asks to stop; several processes agree on it, at the steps that log.

        There they tell one another how long their own work takes as well.
        """
        asked = self.interrupt.received is not None
        if jax.process_count() == 1:
            return asked
        if self.step % self.experiment.log_every:
            return False
        with jax.transfer_guard("allow"):
            said = np.array([asked, *self.stragglers.interval()], np.float32)
            everywhere = multihost_utils.process_allgather(said)
        for line in self.stragglers.named(everywhere[:, 1:].tolist()):
            self.display.note(line)
        return bool(everywhere[:, 0].any())

    def _exhausted(self) -> bool:
        """Returns whether the last evaluations, as many as the experiment's patience, brought nothing."""
        patience = self.experiment.evaluation.patience
        if patience is None or len(self.ranks) <= patience:
            return False
        return min(self.ranks[-patience:]) >= min(self.ranks[:-patience])

    def outcome(self) -> Outcome:
        """Waits for the last save and sums up."""
        with self.watch.paused():
            self.checkpoints.wait()
        timed = self.work - self.warmed
        rate = timed * self.program.tokens_per_step / self.watch.seconds() if timed > 0 else 0.0
        return Outcome(self.state, self.step, self.validation[1], self._seconds(), rate)

    def close(self) -> None:
        """Closes files, the trace and the display."""
        if self.profile and self.profile[0] <= self.step < self.profile[1] - 1:
            jax.profiler.stop_trace()
        self.writer.close()
        self.display.close()

    def _after_step(self) -> None:
        """What falls due at some steps only."""
        step, experiment = self.step, self.experiment
        evaluate = step % experiment.evaluation.every == 0 or step == experiment.steps
        save = step % experiment.checkpointing.every == 0 or step == experiment.steps
        traced = self.profile is not None and step == self.profile[1] - 1
        if not (evaluate or save or traced):
            return
        self._settle()
        if traced:
            jax.profiler.stop_trace()
        if evaluate:
            self._evaluate()
        if save:
            self._save(self.validation[1] if evaluate else {})

    def _settle(self) -> None:
        """Waits for the step at hand and takes in its metrics."""
        if self.pending:
            before, self.pending = self.pending, None
            self._collect(*before)

    def _collect(self, step: int, batch: dict[str, np.ndarray], metrics: dict[str, jax.Array]) -> None:
        """Takes in the metrics of a step, waiting for it to be done."""
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.watchdog.alive(f"taking step {step + 1}")
        if not values.pop("ok", True):
            self._not_finite(step, batch)
        self.window.add(values)
        self.work += self.program.share(batch)
        if step == self.warm:
            self.writer.open_events()
            self.watch = Stopwatch()
            self.warmed, self.logged = self.work, (self.work, 0.0)
        seconds = self.watch.seconds()
        self.display.update(step, values["train/loss"], seconds, self.work)
        if step % self.experiment.log_every == 0 or step == self.experiment.steps:
            self._log(step, seconds)

    def _log(self, step: int, seconds: float) -> None:
        """Writes a line of metrics."""
        (since, then), self.logged = self.logged, (self.work, seconds)
        row = self.window.take()
        if self.work > since and seconds > then:
            rate = (self.work - since) / (seconds - then)
            row["tokens_per_second"] = rate * self.program.tokens_per_step
            row["model_flops_per_second"] = rate * self.program.flops_per_step
            row["model_flops_per_second_causal"] = rate * self.program.flops_per_step_causal
        row["seconds"] = self._seconds()
        self.writer.write(step, row)
        self.checkpoints.check()

    def _evaluate(self) -> None:
        """Evaluates the state at hand."""
        self.watchdog.alive(f"evaluating step {self.step}")
        with self.watch.paused(), jax.transfer_guard("allow"):
            metrics = self.program.evaluate(self.state)
            self.validation = (self.step, metrics)
            self.ranks.append(ranking(metrics, self.experiment.evaluation.best))
            self.writer.write(self.step, {**metrics, "seconds": self._seconds()})
            self.display.evaluation(self.step, metrics)
        self.watchdog.alive(f"taking step {self.step + 1}")

    def _save(self, validation: dict[str, float]) -> None:
        """Starts to save the state at hand, unless it is saved already."""
        if self.saved == self.step:
            return
        self.watchdog.alive(f"saving step {self.step}")
        with self.watch.paused(), jax.transfer_guard("allow"):
            record = {
                "experiment": self.directory.description(),
                "window": self.window.to_json(),
                "seconds": self._seconds(),
            }
            self.writer.flush()
            self.checkpoints.save(self.step, self.state, self.batches, record, validation)
            self.saved = self.step
        self.watchdog.alive(f"taking step {self.step + 1}")

    def _not_finite(self, step: int, batch: dict[str, np.ndarray]) -> None:
        """Saves the bad batch and raises. The state is that before the step: later steps were no-ops."""
        with jax.transfer_guard("allow"):
            path = self.program.diagnose(self.state, self.program.place(batch))
            process = f"-process{jax.process_index()}" if jax.process_count() > 1 else ""
            file = self.directory.path / f"batch-step{step}{process}.npz"
            with contextlib.suppress(OSError):  # the error below matters more
                np.savez(file, **batch)  # type: ignore[arg-type]
        raise NonFiniteError(step, path, str(file))

    def _validation_there(self) -> dict[str, float]:
        """Returns the validation metrics of the restored step, if the run has them."""
        for row in self.directory.rows():
            found = {name: value for name, value in row.items() if name.startswith("valid/")}
            if row["step"] == self.step and found:
                return found
        return {}

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _profile_window(profile: tuple[int, int] | None, step: int, steps: int) -> tuple[int, int] | None:
    """Returns the window; ``UserError`` if the steps to come do not hold it."""
    if profile and not step < profile[0] < profile[1] <= steps + 1:
        raise UserError(
            f"--profile {profile[0]}:{profile[1]} is no window of the steps to come: choose FIRST:END with"
            f" {step} < FIRST < END <= {steps + 1}"
        )
    return profile
