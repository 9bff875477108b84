"""TPU slices, by the names that Google's services give them (cloud.google.com/tpu/docs)."""

from __future__ import annotations

import dataclasses
import math
import re

from research.errors import UserError
from research.scale.chips import CHIPS


@dataclasses.dataclass(frozen=True)
class _Names:
    """What a chip is called."""

    accelerator: str
    """Label cloud.google.com/gke-tpu-accelerator of GKE's nodes."""
    gcloud: str
    """Type, as gcloud takes it."""
    runtime: str
    """Software of a TPU VM."""


_NAMES = {
    "v4": _Names("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base"),
    "v5e": _Names("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": _Names("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": _Names("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice to rent."""

    topology: str
    """4x4, say."""
    chips: int
    names: _Names

    @property
    def chips_per_host(self) -> int:
        """Four; of the chips in a plane, a slice of up to eight is one host."""
        return self.chips if self.chips < 4 or (self.chips == 8 and self.topology.count("x") == 1) else 4

    @property
    def hosts(self) -> int:
        """Hosts, and processes."""
        return self.chips // self.chips_per_host

    @property
    def gcloud(self) -> str:
        """Options of gcloud that name the slice."""
        if self.topology.count("x") == 1:
            return f"--accelerator-type={self.names.gcloud}-{self.chips}"
        return f"--type={self.names.gcloud} --topology={self.topology}"


def slice_of(topology: str | None) -> Slice:
    """Returns the slice of a name as ``headway plan`` takes it: v5e:4x4.

    Raises:
      UserError: it is none.
    """
    chip, _, sides = (topology or "").partition(":")
    if chip not in _NAMES:
        found = f", found {topology!r}" if topology else ""
        raise UserError(f"needs --topology CHIP:AxB, such as v5e:4x4{found}; chips: {', '.join(_NAMES)}")
    dimensions = CHIPS[chip].dimensions
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides) or sides.count("x") + 1 != dimensions:
        example = "x".join("4" * dimensions)
        raise UserError(f"--topology {topology}: slices of {chip} have {dimensions} sides: {chip}:{example}")
    return Slice(sides, math.prod(map(int, sides.split("x"))), _NAMES[chip])


def bucket_of(bucket: str | None) -> str:
    """Returns gs://NAME, without a slash at its end.

    Raises:
      UserError: it is no such thing.
    """
    found = re.fullmatch(r"(gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])/?", bucket or "")
    if not found:
        given = f", found {bucket!r}" if bucket else ""
        raise UserError(
            f"needs --bucket gs://NAME for the runs{given}; made by: gcloud storage buckets create gs://NAME"
            " --uniform-bucket-level-access"
        )
    return found[1]
