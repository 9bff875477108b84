"""Sessions of a tiny run, killed at random moments and started again: does it end as if nothing had happened?

    python experiments/benchmarks/chaos.py --kills 200 --json chaos.json
    python experiments/benchmarks/chaos.py --kills 200 --workdir chaos    # the same again: it goes on

Each session is a process of its own, forked from one that has only imported the code. It is killed (two in
three by SIGKILL, the others by SIGTERM) at a moment drawn either from the length of an unharmed session, to
hit its start, or from the time after its first new line of metrics, to hit training, evaluation and
saving. A run that ends in spite of that is compared with one that nobody touched: every array of its state
bit for bit, and every line of metrics.jsonl but for times. Then another run begins, until all kills are done.
After every kill, checkpoints must be whole and no older than those of the session before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX  # noqa: F401  # here once, not in every session: it may import torch

from research.data.text import TextData
from research.errors import StoppedError, UserError
from research.models.gpt import GPT
from research.training import checkpoint, run_directory, session
from research.training.experiment import Checkpointing, Evaluation, Experiment
from research.training.optimizer import AdamW
from research.training.program import functions
from research.training.schedule import Linear

TIMES = {"seconds", "tokens_per_second", "model_flops_per_second", "model_flops_per_second_causal"}
"""What differs from run to run."""


def experiment(text: Path, steps: int) -> Experiment:
    """Returns a run with all that a state can hold: moments, an average, dropout, a place in a text."""
    return Experiment(
        name="chaos",
        model=GPT(vocabulary=300, context=32, layers=1, width=32, heads=2, dropout=0.1, depth="unroll"),
        data=TextData(source="files", path=str(text), length=32, batch=8, valid_fraction=0.2),
        optimizer=AdamW(learning_rate=3e-3),
        schedule=Linear(warmup=10),
        steps=steps,
        ema=0.9,
        evaluation=Evaluation(every=40, batches=2),
        checkpointing=Checkpointing(every=8, keep_last=2),
        log_every=3,
    )


def write_text(path: Path) -> None:
    """Writes documents of made-up words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 7))) for _ in range(200)]
    rows = (json.dumps({"text": " ".join(draw.choices(words, k=60))}) for _ in range(400))
    path.write_text("\n".join(rows))


@dataclasses.dataclass(frozen=True)
class Session:
    """One session of the run, in a process of its own."""

    directory: Path
    pid: int

    @classmethod
    def start(cls, description: Experiment, directory: Path, log: Path) -> Session:
        """Forks a process that trains or goes on."""
        pid = os.fork()
        if pid:
            return cls(directory, pid)
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            session.run(description, directory)
            code = 0
        except (StoppedError, UserError) as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self, seconds: float) -> int | None:
        """Returns the exit code (of a signal: minus its number) once it ends; None after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= end:
                return None
            time.sleep(0.002)  # waitpid knows no time limit

    def stepped(self, seconds: float) -> int | None:
        """Waits for a new line of metrics, ``seconds`` at most; returns the exit code if it ends before."""
        file = self.directory / "metrics.jsonl"

        def lines() -> int:
            return file.stat().st_size if file.exists() else 0

        before, end = lines(), time.monotonic() + seconds
        while lines() <= before and time.monotonic() < end:
            if (code := self.ended(0.0)) is not None:
                return code
            time.sleep(0.002)  # a line in a file, or the end: nothing waits for either
        return None

    def kill(self, number: int) -> int:
        """Sends a signal and returns the exit code."""
        os.kill(self.pid, number)
        code = self.ended(120.0)
        assert code is not None, f"a session does not end on signal {number}"
        return code


def check(directory: Path, saved: int) -> int:
    """Returns the newest checkpoint's step.

    Raises:
      AssertionError: a checkpoint that is to be kept is damaged, or the newest is older than ``saved``.
    """
    if not (directory / "experiment.json").exists():
        return saved
    run = run_directory.open_run(directory)
    # An older one may have been half deleted when the kill came.
    damaged = [step for step in run.steps()[-2:] if checkpoint.damage(run, step) is not None]
    assert not damaged, f"{directory}: checkpoints of steps {damaged} are damaged"
    newest = run.newest() if run.steps() else 0
    assert newest >= saved, f"{directory}: step {saved} had been saved, and now the newest is {newest}"
    return newest


def result(description: Experiment, directory: Path) -> dict[str, Any]:
    """Returns the arrays of a finished run's state, and its metrics without times."""
    run = run_directory.open_run(directory)
    state = functions(description).abstract_state
    names = [field.name for field in dataclasses.fields(state)]
    restored = checkpoint.restore(run, {name: getattr(state, name) for name in names}, run.newest()).state
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in run.rows()]
    return {"state": {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, "metrics": rows}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the paths of arrays that are not the same bit for bit, and the steps of lines that differ."""
    found = [
        path for path, array in one["state"].items() if array.tobytes() != other["state"][path].tobytes()
    ]
    if one["metrics"] != other["metrics"]:
        found.append("metrics.jsonl")
    return found


def compare_in_a_process(description: Experiment, straight: Path, killed: Path) -> list[str]:
    """Returns the differences of two finished runs, found in another process: this one forks."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found = differences(result(description, straight), result(description, killed))
        except BaseException:
            found = [traceback.format_exc()]
        os.write(write, json.dumps(found).encode()[:60000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return found


@dataclasses.dataclass
class Tally:
    """What has come of it so far; kept in a file, so that chaos itself may be stopped and go on."""

    sigkill: int = 0
    sigterm: int = 0
    fruitless: int = 0
    """Killed sessions that saved nothing new."""
    runs: int = 0
    """That ended identically."""
    saved: int = 0
    """Newest checkpoint of the run at hand."""
    usual: float = 0.0
    """Seconds that an unharmed session takes; 0: not measured yet."""
    seconds: float = 0.0
    """Of all that is counted here."""

    @property
    def kills(self) -> int:
        """Of both kinds."""
        return self.sigkill + self.sigterm

    @classmethod
    def load(cls, file: Path) -> Tally:
        """Reads what ``save`` wrote; nothing yet if there is no file."""
        return cls(**json.loads(file.read_text())) if file.exists() else cls()

    def save(self, file: Path) -> None:
        """Writes it to a file, in one move."""
        new = file.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(self)))
        new.replace(file)


def strike(now: Session, draw: random.Random, usual: float) -> tuple[int, int | None]:
    """Kills a session at a random moment; returns its exit code, and the signal unless it ended before."""
    if draw.random() < 0.5:
        code = now.stepped(120.0)
        code = now.ended(draw.uniform(0.0, 0.5 * usual)) if code is None else code
    else:
        code = now.ended(draw.uniform(0.0, usual))
    if code is not None:
        return code, None
    number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    return now.kill(number), number


def unharmed(description: Experiment, work: Path) -> float:
    """Makes the run that nobody touches, and returns the seconds that another like it takes, all compiled.

    Raises:
      AssertionError: the two differ.
    """
    for name in ("straight", "second"):
        started = time.monotonic()
        expect(work, Session.start(description, work / name, work / "log").ended(600.0), 0)
    usual = time.monotonic() - started
    found = compare_in_a_process(description, work / "straight", work / "second")
    assert not found, f"two runs that nobody touched differ: {found}"
    return usual


def expect(work: Path, code: int | None, *codes: int) -> None:
    """Raises AssertionError with the end of the log unless ``code`` is one of ``codes``."""
    assert code in codes, f"a session ended with {code}:\n{(work / 'log').read_text()[-3000:]}"


def chaos(kills: int, steps: int, seed: int, work: Path) -> Tally:
    """Kills sessions until there have been ``kills``; returns what came of it.

    Raises:
      AssertionError: a session failed, a checkpoint was lost or damaged, or a run ended differently.
    """
    text, kept = work / "text.jsonl", work / "tally.json"
    if not text.exists():
        write_text(text)
    description, tally = experiment(text, steps), Tally.load(kept)
    tally.usual = tally.usual or unharmed(description, work)
    finished = False
    while tally.kills < kills or not finished:
        started, directory = time.monotonic(), work / f"run-{tally.runs}"
        now, last = Session.start(description, directory, work / "log"), tally.kills >= kills
        # A moment is a function of how many there have been, so that chaos goes on where it was stopped.
        draw = random.Random(f"{seed} {tally.kills} {tally.runs}")
        code, number = (now.ended(600.0), None) if last else strike(now, draw, tally.usual)
        expect(work, code, 0, StoppedError.exit_code, -signal.SIGKILL, -signal.SIGTERM)
        if number is not None:
            tally.sigkill += number == signal.SIGKILL
            tally.sigterm += number == signal.SIGTERM
            newest = check(directory, tally.saved)
            tally.fruitless += newest == tally.saved
            tally.saved = newest
        finished = code == 0
        if finished:
            found = compare_in_a_process(description, work / "straight", directory)
            assert not found, f"{directory} ended differently: {found}"
            tally.runs, tally.saved = tally.runs + 1, 0
        tally.seconds += time.monotonic() - started
        tally.save(kept)
        print(f"{tally.kills} kills, {tally.runs} runs, step {tally.saved}", file=sys.stderr, flush=True)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=120, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="directory to keep everything in, and to go on from")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work: Path = (arguments.workdir or Path(directory)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["HEADWAY_CACHE"] = str(work / "cache")
        jax.config.update("jax_compilation_cache_dir", str(work / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        tally = chaos(arguments.kills, arguments.steps, arguments.seed, work)
    found = {
        "kills": tally.kills,
        "SIGKILL": tally.sigkill,
        "SIGTERM": tally.sigterm,
        "sessions that saved nothing new": tally.fruitless,
        "runs that ended identically": tally.runs,
        "seconds": round(tally.seconds, 1),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
