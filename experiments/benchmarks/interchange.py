"""Weights in and out beside `transformers`' own: time and peak memory.

    python experiments/benchmarks/interchange.py --model gpt2-1558m --json interchange.json

Needs the extra "peers". A checkpoint of random weights in the shape of the model is written once by
`transformers`. Import, our load of the imported run, export, `from_pretrained` (of the checkpoint, with every
weight read), and that with `save_pretrained` then run in processes of their own, by turns, and each tells its
wall-clock seconds after its imports, and its peak resident memory (mapped pages of files count) above
what it had then. Before that, it takes as much memory as the checkpoint has and gives it back: the host of a
virtual machine may be slow to give memory that it was given back. What is read has been read before, or, with
--cold, is not in the page cache. Medians over the rounds. Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODELS = {
    "tiny": {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 1024, "n_positions": 256},
    "gpt2-124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-1558m": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}


def write(model: str, directory: Path) -> None:
    """Writes the checkpoint that everything reads."""
    import transformers

    from research.data.tokenizer import Tokenizer

    config = transformers.GPT2Config(**MODELS[model], bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    Tokenizer.train_bpe(["Some text."], 260).save(directory / "tokenizer.json")


def prepare(model: str, place: Path) -> None:
    """Writes the checkpoint, and imports it as a run."""
    from research.interchange.runs import import_run

    write(model, place / "checkpoint")
    import_run(place / "checkpoint", place / "run", print)


def resident(which: str) -> int:
    """Returns the resident memory of this process, in bytes: "VmRSS" now, "VmHWM" the highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs Linux: /proc/self/status says how much memory was used")


def import_(place: Path) -> Callable[[], None]:
    """Imports the checkpoint into a run."""
    import orbax.checkpoint  # noqa: F401  # as the others' libraries, before the time begins

    from research.interchange.runs import import_run

    out = Path(tempfile.mkdtemp(dir=place)) / "run"

    def work() -> None:
        import_run(place / "checkpoint", out, lambda message: None)

    return work


def load(place: Path) -> Callable[[], None]:
    """Loads the imported run."""
    import jax
    import orbax.checkpoint  # noqa: F401

    import research
    import research.training.trained

    return lambda: jax.block_until_ready(research.load(place / "run").params)


def export(place: Path) -> Callable[[], None]:
    """Loads the imported run and exports it."""
    import orbax.checkpoint  # noqa: F401

    import research
    from research.interchange.export import export_run

    out = Path(tempfile.mkdtemp(dir=place)) / "out"
    return lambda: export_run(research.load(place / "run"), out, None, lambda message: None)  # type: ignore[return-value]


def theirs(place: Path) -> Callable[[], None]:
    """Loads the checkpoint with `transformers`; reads every weight, which it maps into memory."""
    import torch
    import transformers

    def work() -> None:
        model = transformers.GPT2LMHeadModel.from_pretrained(place / "checkpoint", dtype=torch.float32)
        sum(float(parameter.sum()) for parameter in model.parameters())

    return work


def theirs_saved(place: Path) -> Callable[[], None]:
    """Loads the checkpoint with `transformers`, and saves it."""
    import torch
    import transformers

    out = tempfile.mkdtemp(dir=place)

    def work() -> None:
        model = transformers.GPT2LMHeadModel.from_pretrained(place / "checkpoint", dtype=torch.float32)
        model.save_pretrained(out)

    return work


WORK = {
    "import": import_,
    "load": load,
    "export": export,
    "transformers load": theirs,
    "transformers load and save": theirs_saved,
}


def known(place: Path, cold: bool) -> None:
    """Reads all large files of the checkpoint and the run, or puts them out of the page cache."""
    for path in (*(place / "checkpoint").rglob("*"), *(place / "run").rglob("*")):
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass


def child(name: str, place: Path) -> None:
    """Does one piece of work and prints its cost."""
    work = WORK[name](place)
    # Takes from the machine's host what the work will need, which is not what is timed.
    memory = np.empty((place / "checkpoint" / "model.safetensors").stat().st_size, np.uint8)
    memory[::4096] = 0
    del memory
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is from now on
    before, begin = resident("VmRSS"), time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "bytes": resident("VmHWM") - before}))


def in_a_process(name: str, place: Path) -> dict[str, float]:
    """Returns what a process of its own says."""
    command = [sys.executable, __file__, "--child", name, "--place", str(place)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="put what is read out of the page cache first")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help="directory to keep the checkpoint and the run in")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.place)
        return
    with tempfile.TemporaryDirectory() as name:
        place = options.place or Path(name)
        if not (place / "run").exists():
            prepare(options.model, place)
        size = (place / "checkpoint" / "model.safetensors").stat().st_size
        found = {name: [] for name in WORK}
        for _ in range(options.rounds):
            for name in WORK:
                known(place, options.cold)
                found[name].append(in_a_process(name, place))
                for made in place.glob("tmp*"):  # what it wrote
                    shutil.rmtree(made)
        result = {"model": options.model, "checkpoint_bytes": size, "costs": {}}
        for name, costs in found.items():
            result["costs"][name] = {key: statistics.median(c[key] for c in costs) for key in costs[0]}
            cost = result["costs"][name]
            print(f"{name:26} {cost['seconds']:7.2f} s  {cost['bytes'] / size:5.2f} x the checkpoint's bytes")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
