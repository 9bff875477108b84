"""What training begins with, other than fresh parameters: descriptions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

_RULE = re.compile(r"(?P<verb>take|skip|fresh)\s+(?P<of>\S+)|rename\s+(?P<old>\S+)\s+(?P<new>\S+)")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: W + (alpha / rank) A B with W frozen (Hu et al., 2022)."""

    rank: int = 8
    """Columns of A, rows of B."""
    alpha: float = 16.0
    """Scale of the product, together with the rank."""
    targets: str = r"attention/(query|value)/kernel$"
    """Kernels of the blocks that get an adapter: a regular expression, searched for in their paths."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule of a warm start."""

    verb: str
    """"take", "skip", "fresh" or "rename"."""
    pattern: re.Pattern[str]
    """Searched for in a path."""
    replacement: str = ""
    """What "rename" puts in its place."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Parameters of a finished run, as far as the models have them in common.

    Rules, in order, are "rename OLD NEW", "take PATTERN" and "skip PATTERN" for the run's paths, and "fresh
    PATTERN" for paths of the new model. A path is renamed as it passes each rename; the first take or skip
    that it matches decides, and without one it is taken. What is fresh keeps its initial values.
    """

    run: str = ""
    """Run directory."""
    rules: tuple[str, ...] = ()
    """Rules, with regular expressions: "skip token_head", "rename ^stack/ encoder/"."""
    adapters: LoRA | None = None
    """Train low-rank adapters only, everything taken stays as it is; default: train all."""

    def parsed(self) -> tuple[Rule, ...]:
        """Returns the rules; ValueError, with what is wrong, for one that is none."""
        found = []
        for text in self.rules:
            match = _RULE.fullmatch(text.strip())
            if match is None:
                raise ValueError(
                    f"{text!r} is no rule: take PATTERN, skip PATTERN, fresh PATTERN or rename OLD NEW"
                )
            try:
                pattern = re.compile(match["of"] or match["old"])
            except re.error as error:
                raise ValueError(f"{text!r} has no regular expression: {error}") from None
            found.append(Rule(match["verb"] or "rename", pattern, match["new"] or ""))
        return tuple(found)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if not self.run:
            yield "initial.run is empty; --from RUN names the run to start from"
        try:
            self.parsed()
        except ValueError as error:
            yield f"initial.rules: {error}"
        if self.adapters is not None:
            try:
                re.compile(self.adapters.targets)
            except re.error as error:
                yield f"initial.adapters.targets {self.adapters.targets!r} is no regular expression: {error}"
