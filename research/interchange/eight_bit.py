"""Runs for sampling, their blocks as 8-bit integers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interchange.runs import ORIGIN, make_run, refuse_run
from research.models.gpt import GPT
from research.training.eight_bit import MARK, quantized
from research.training.trained import Trained


def quantize_run(trained: Trained, out: Path) -> dict[str, Any]:
    """Makes a run of a language model's, with the kernels of its blocks as 8-bit integers and a float32 scale
    for each output; returns what was written, as JSON values.

    Args:
      trained: the run's checkpoint.
      out: run directory to make.

    Raises:
      UserError: the model is none that can be sampled from, or ``out`` is a run already.
    """
    experiment = trained.experiment
    if not isinstance(experiment.model, GPT):
        raise UserError("int8 weights are for sampling, which needs a model of kind 'gpt'")
    refuse_run(out)
    if experiment.initial is not None:  # what was loaded has adapters merged
        experiment = dataclasses.replace(
            experiment, initial=dataclasses.replace(experiment.initial, adapters=None)
        )
    tokenizer = trained.directory.path / Tokenizer.FILE
    files = {
        Tokenizer.FILE: tokenizer.read_text("utf-8"),
        ORIGIN: json.dumps({"source": str(trained.directory), "step": trained.step}),
        MARK: json.dumps({"kernels": "int8", "scale": "absmax of each output"}),
    }
    make_run(out, experiment, files, quantized(trained.params), trained.step)
    return {"run": str(out), "source": str(trained.directory), "step": trained.step, "dtype": "int8"}
