"""The description of an experiment: everything a run depends on, in one frozen dataclass.

An experiment file is a Python file with a function ``experiment() -> Experiment``. The description is saved
as JSON in the run directory and beside every checkpoint, so a run directory is enough to load the model.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from research.data.associative_recall import AssociativeRecall
from research.data.bitext import Bitext
from research.data.induction import Induction
from research.data.labelled_text import LabelledText
from research.data.list_operations import ListOperations
from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.models.seq2seq import Seq2Seq
from research.models.transformer import Transformer
from research.objectives.causal_lm import CausalLM
from research.objectives.classification import Classification
from research.objectives.masked_lm import MaskedLM
from research.objectives.recall import Recall
from research.objectives.translation import Translation
from research.training.initial import WarmStart
from research.training.optimizer import AdamW, Optimizer
from research.training.schedule import Cosine, Schedule

Model = GPT | BERT | Classifier | Transformer | Seq2Seq
"""Networks that can be trained."""
Data = TextData | MaskedText | LabelledText | Bitext | AssociativeRecall | Induction | ListOperations
"""What they can be trained on."""
Objective = CausalLM | MaskedLM | Classification | Translation | Recall
"""What they can learn."""
LEARNABLE: dict[type, tuple[tuple[type, ...], tuple[type, ...]]] = {
    CausalLM: ((GPT,), (TextData,)),
    MaskedLM: ((BERT,), (MaskedText,)),
    Classification: ((Classifier,), (LabelledText,)),
    Recall: ((GPT,), (AssociativeRecall, Induction, ListOperations)),
    Translation: ((Transformer, Seq2Seq), (Bitext,)),
}
"""For each objective: the models that can learn it, and the data that it can be learned from."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How arrays lie on devices: a strategy (a table of path patterns) and the mesh it is resolved on."""

    strategy: Literal["replicated", "fsdp", "fsdp+tensor"] = "fsdp"
    """Table that gives each parameter its PartitionSpec."""
    data: int = 1
    """Mesh axis of plain data parallelism (parameters replicated). Of several slices it runs between them; 1
    with fsdp -1: their number."""
    fsdp: int = -1
    """Mesh axis over which batch and parameters are split; -1: all remaining devices."""
    tensor: int = 1
    """Mesh axis over which heads and hidden units are split."""
    sequence: int = 1
    """Mesh axis over which the length of activations is split."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Validation during training."""

    every: int = 500
    """Steps between evaluations; the last step is always evaluated."""
    batches: int | None = None
    """Batches of the validation split to read; default: all of it."""
    best: Literal["loss", "accuracy", "f1", "matthews", "pearson"] = "loss"
    """What makes a checkpoint the best: the lowest loss (bits per byte, of text), or the highest accuracy, or
    of labelled text what else its validation measures: F1 and Matthews of two labels, Pearson of scores."""
    patience: int | None = None
    """Evaluations without a better one after which training ends, with the best checkpoint as its result."""


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """What is saved, and what is kept."""

    every: int = 500
    """Steps between saves; the last step is always saved."""
    keep_last: int = 2
    """Newest checkpoints to keep (the best one is kept as well)."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this for good."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run, described completely."""

    name: str
    """Name of the experiment; the default run directory is runs/NAME."""
    model: Model = dataclasses.field(default_factory=GPT)
    data: Data = dataclasses.field(default_factory=TextData)
    objective: Objective = dataclasses.field(default_factory=CausalLM)
    """What is learned from the data."""
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    schedule: Schedule = dataclasses.field(default_factory=Cosine)
    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Seed of everything random: initialisation, data order, dropout."""
    accumulate: int = 1
    """Micro-batches that a batch is cut into, one after another, to save memory."""
    clip: float | None = 1.0
    """Largest global norm of the gradient."""
    initial: WarmStart | None = None
    """What training starts from, instead of fresh parameters; --from RUN sets it."""
    ema: float | None = None
    """Decay of an exponential moving average of the parameters, used for evaluation and sampling."""
    sharding: Sharding = dataclasses.field(default_factory=Sharding)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    checkpointing: Checkpointing = dataclasses.field(default_factory=Checkpointing)
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    baselines: bool = False
    """Print baselines on the validation split at the end: n-grams, and xz where text is predicted whole."""
    samples: int = 0
    """Samples to draw at the end; the first is printed."""
