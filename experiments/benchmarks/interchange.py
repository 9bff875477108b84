"""Weights in and out beside `transformers`' own: time, peak memory, and tokens per second of sampling.

    python experiments/benchmarks/interchange.py --model gpt2-1558m --json interchange.json

Needs the extra "peers". A checkpoint of random weights in the shape of the model is written once by
`transformers`. Import, our load of the imported run, export, and `from_pretrained` (of the checkpoint, with
every weight read) then run in processes of their own, by turns, and each tells its wall-clock seconds after
its imports, and its peak resident memory above what it had then. Sampling is greedy, from prompts of 32
tokens, after a call that compiles; `generate` has its key/value cache. Medians over the rounds. Run it on a
machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = {
    "tiny": {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 1024, "n_positions": 256},
    "gpt2-124m": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-1558m": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
PROMPT = 32


def write(model: str, directory: Path) -> None:
    """Writes the checkpoint that everything reads."""
    import transformers

    from research.data.tokenizer import Tokenizer

    config = transformers.GPT2Config(**MODELS[model], bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    Tokenizer.train_bpe(["Some text."], 260).save(directory / "tokenizer.json")


def resident(which: str) -> int:
    """Returns the resident memory of this process, in bytes: "VmRSS" now, "VmHWM" the highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs Linux: /proc/self/status says how much memory was used")


def import_(place: Path) -> Callable[[], None]:
    """Imports the checkpoint into a run."""
    from research.interchange.runs import import_run

    out = Path(tempfile.mkdtemp(dir=place)) / "run"

    def work() -> None:
        import_run(place / "checkpoint", out, lambda message: None)

    return work


def load(place: Path) -> Callable[[], None]:
    """Loads the imported run."""
    import jax

    import research

    return lambda: jax.block_until_ready(research.load(place / "run").params)


def export(place: Path) -> Callable[[], None]:
    """Loads the imported run and exports it."""
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


WORK = {"import": import_, "load": load, "export": export, "transformers load": theirs}


def child(name: str, place: Path) -> None:
    """Does one piece of work and prints its cost."""
    work = WORK[name](place)
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


def sampling(place: Path, batch: int, tokens: int, rounds: int) -> dict[str, float]:
    """Returns tokens per second of both, by turns."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import transformers

    import research
    from research.inference.sampling import Decoding, sampler

    run = research.load(place / "run")
    peer = transformers.GPT2LMHeadModel.from_pretrained(place / "checkpoint", dtype=torch.float32).eval()
    prompts = np.random.default_rng(0).integers(1, run.model.vocabulary, (batch, PROMPT))
    generate = sampler(
        run.model.build().apply, run.model.empty_cache,
        tokens=tokens, how=Decoding(temperature=0.0), stop=(),
    )  # fmt: skip
    placed, lengths = jnp.asarray(prompts, jnp.int32), jnp.full(batch, PROMPT, jnp.int32)

    def ours() -> Any:
        return np.asarray(generate(run.params, placed, lengths, jax.random.key(0))).tolist()

    def other() -> Any:
        with torch.no_grad():
            return peer.generate(
                torch.from_numpy(prompts), attention_mask=torch.ones(batch, PROMPT, dtype=torch.long),
                max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0,
            )[:, PROMPT:].tolist()  # fmt: skip

    same = ours() == other()
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(rounds):
        for name, draw in (("ours", ours), ("transformers", other)):
            begin = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - begin)
    rates = {name: batch * tokens / statistics.median(times) for name, times in seconds.items()}
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {"batch": batch, **rates, "ratio": statistics.median(ratios), "same_tokens": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.place)
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write(options.model, place / "checkpoint")
        from research.interchange.runs import import_run

        import_run(place / "checkpoint", place / "run", print)
        size = (place / "checkpoint" / "model.safetensors").stat().st_size
        found = {name: [] for name in WORK}
        for _ in range(options.rounds):
            for name in WORK:
                found[name].append(in_a_process(name, place))
        result = {"model": options.model, "checkpoint_bytes": size, "costs": {}, "sampling": []}
        for name, costs in found.items():
            result["costs"][name] = {key: statistics.median(c[key] for c in costs) for key in costs[0]}
            cost = result["costs"][name]
            print(f"{name:18} {cost['seconds']:7.2f} s  {cost['bytes'] / size:5.2f} x the checkpoint's bytes")
        for batch in (1, 8):
            row = sampling(place, batch, options.tokens, options.rounds)
            result["sampling"].append(row)
            print(
                f"sampling, batch {batch}: {row['ours']:.0f} tokens/s, generate {row['transformers']:.0f}, "
                f"ratio {row['ratio']:.2f}, the same tokens: {row['same_tokens']}"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
