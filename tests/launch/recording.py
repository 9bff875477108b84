"""``headway`` that writes down which rows it trains on, and pauses or hangs where a test wants it to."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax

from research.cli.main import main
from research.training import session
from research.training.program import Program

_build = session.build


def recording(*arguments: Any) -> Program:
    program = _build(*arguments)
    path = Path(os.environ["RECORD"]) / f"rows-{os.getpid()}.jsonl"
    taken = 0

    def place(batch: dict[str, Any]) -> Any:
        nonlocal taken
        taken += 1
        time.sleep(float(os.environ.get("PAUSE", "0")))
        if os.environ.get("HANG") == f"{jax.process_index()}:{taken}":
            time.sleep(600)
        line = {
            "process": jax.process_index(),
            "taken": taken,
            "ids": [zlib.crc32(row.tobytes()) for row in batch["tokens"]],
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return program.place(batch)

    return dataclasses.replace(program, place=place)


session.build = recording
sys.exit(main())
