"""The table of commands."""

from __future__ import annotations

from research.cli import experiments, interchange, language_models
from research.cli.command import Command

COMMANDS = {
    "train": Command(experiments.Train(), "EXPERIMENT", experiments.train),
    "show": Command(experiments.Show(), "EXPERIMENT|RUN", experiments.show),
    "evaluate": Command(
        language_models.Evaluate(),
        "RUN",
        language_models.evaluate,
        overrides=("data.path", "data.field", "data.split"),
    ),
    "sample": Command(language_models.Sample(), "RUN", language_models.sample, overrides=()),
    "import": Command(interchange.Import(), "DIRECTORY", interchange.import_, overrides=()),
    "export": Command(interchange.Export(), "RUN DIRECTORY", interchange.export, overrides=()),
    "diff": Command(interchange.Diff(), "RUN RUN", interchange.diff, overrides=()),
    "average": Command(interchange.Average(), "RUN", interchange.average, overrides=()),
}
"""Every command, by name."""
