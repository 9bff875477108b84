"""What the tests beside other libraries share."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="session")
def peers():
    """PyTorch and transformers."""
    with warnings.catch_warnings(action="ignore"):
        torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
        torch.set_num_threads(1)  # the models are tiny
        return torch, pytest.importorskip("transformers", reason="needs the extra 'peers'")
