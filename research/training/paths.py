"""Names of the leaves of a parameter tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax


def path_name(path: Sequence[Any]) -> str:
    """Returns the path of a leaf as "stack/blocks/attention/query/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
