"""The table of commands."""

from __future__ import annotations

from research.cli import (
    ablation,
    alignment,
    experiments,
    interchange,
    language_models,
    masked_language_models,
    planning,
    translation,
)
from research.cli.command import Command

COMMANDS = {
    "train": Command(experiments.Train(), "EXPERIMENT", experiments.train),
    "show": Command(experiments.Show(), "EXPERIMENT|RUN", experiments.show),
    "evaluate": Command(
        language_models.Evaluate(),
        "RUN",
        language_models.evaluate,
        overrides=("data.path", "data.field", "data.split", "data.source", "data.target", "data.tokenised"),
    ),
    "plan": Command(planning.Plan(), "EXPERIMENT", planning.plan),
    "sample": Command(language_models.Sample(), "RUN", language_models.sample, overrides=()),
    "translate": Command(translation.Translate(), "RUN", translation.translate, overrides=()),
    "compare": Command(
        translation.Compare(),
        "RUN RUN",
        translation.compare,
        overrides=("data.source", "data.target", "data.tokenised"),
    ),
    "fill": Command(masked_language_models.Fill(), "RUN TEXT", masked_language_models.fill, overrides=()),
    "align": Command(alignment.Align(), "SOURCE TARGET", alignment.align, overrides=()),
    "import": Command(interchange.Import(), "DIRECTORY|HUB_ID", interchange.import_, overrides=()),
    "export": Command(interchange.Export(), "RUN DIRECTORY", interchange.export, overrides=()),
    "diff": Command(interchange.Diff(), "RUN RUN", interchange.diff, overrides=()),
    "average": Command(interchange.Average(), "RUN", interchange.average, overrides=()),
    "report": Command(ablation.Report(), "RUN...", ablation.report, overrides=()),
    "ablate": Command(
        ablation.Ablate(),
        "ABLATION",
        ablation.ablate,
        overrides=ablation.FIELDS,
    ),
}
"""Every command, by name."""
