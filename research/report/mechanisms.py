"""The table of attention mechanisms, from their own declarations."""

from __future__ import annotations

from collections.abc import Mapping

from research.attention.block_choice import MoBA
from research.attention.catalogue import capabilities
from research.attention.devices import Split
from research.attention.engines import LACKS, Request
from research.attention.hashing import Reformer
from research.attention.low_rank import Linformer
from research.attention.masks import Causal, Everything, Mask
from research.attention.mechanisms import Forgetting, Geometry, Latent, Mechanism, Softmax

HOME = {
    "ring": ("cpu", Split(length=8)),
    "cudnn": ("gpu", Split()),
    "splash": ("tpu", Split()),
    "flash": ("cpu", Split()),
    "reference": ("cpu", Split()),
}
"""Where each engine is asked for: the platform and the devices that it was made for."""
_GEOMETRY = Geometry(width=768, heads=12, kv_heads=12, head_dim=64, context=4096)


def engines(mechanism: Mechanism) -> tuple[str, ...]:
    """Returns the engines that can compute a mechanism's training step: one document, bfloat16, causal unless
    only an encoder can have it."""
    mask: Mask = Causal() if mechanism.decoder else Everything()
    softmax, wider, keys = Softmax(), 0, 4096
    if isinstance(mechanism, Softmax):
        softmax, pattern = mechanism, mechanism.pattern(_GEOMETRY, causal=True)
        mask = mask if pattern == Everything() else mask & pattern
    elif isinstance(mechanism, Latent):  # whose keys are wider than its values
        wider = 32
    elif isinstance(mechanism, Linformer):
        keys = mechanism.rank
    else:
        return ()
    return tuple(
        name
        for name, lacks in LACKS.items()
        if lacks(
            Request(
                mask=mask, ordered=True, segments=False, soft_cap=softmax.soft_cap is not None,
                bias=isinstance(mechanism, (Forgetting, MoBA, Reformer)), sink=softmax.sink, dropout=False,
                dtype="bfloat16", batch=1, heads=12, q_len=4096, kv_len=keys, head_dim=64 + wider,
                value_dim=64, backend=HOME[name][0], split=HOME[name][1],
            )
        )
        is None
    )  # fmt: skip


def table(oracles: Mapping[type[Mechanism], str]) -> str:
    """Returns the table as Markdown.

    Args:
      oracles: what tests compare each mechanism with; one that is not there is compared with nothing.
    """
    lines = [
        "| mechanism | oracle | causal, decodes | bidirectional | cross | packed | "
        "state, KiB at 1,024 and 16,384 tokens | engines |",
        "|---|---|---|---|---|---|---:|---|",
    ]
    for cls, can in capabilities().items():
        state = "" if can.state_bytes is None else " / ".join(f"{n / 1024:,.0f}" for n in can.state_bytes)
        flags = ("yes" if flag else "" for flag in (can.decoder, can.encoder, can.cross, can.packed))
        cells = [f"`{cls.__name__}`", oracles.get(cls, ""), *flags, state]
        lines.append("| " + " | ".join([*cells, ", ".join(engines(cls())) or "its own"]) + " |")
    return "\n".join(lines)
