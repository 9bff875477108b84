"""The capability table: an engine asked for by name refuses what it lacks, "auto" takes one that can."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import Causal, Everything, SameSegment, Tokens, attend
from research.attention.engines import Request, choose
from research.errors import UserError

SERVED = Request(
    mask=Causal(),
    segments=False,
    explicit_positions=False,
    soft_cap=False,
    bias=False,
    sink=False,
    dropout=False,
    dtype="bfloat16",
    head_dim=64,
    value_dim=64,
    backend="gpu",
)
LACKING = {
    "a GPU (this is cpu)": {"backend": "cpu"},
    "bfloat16 or float16 (this is float32)": {"dtype": "float32"},
    "a head width that is a multiple of 8 and at most 128 (this is 60)": {"head_dim": 60, "value_dim": 60},
    "at most 128 (this is 256)": {"head_dim": 256, "value_dim": 256},
    "at most 128 (this is 64)": {"value_dim": 32},
    "no attention dropout": {"dropout": True},
    "no soft cap, score bias or sink": {"soft_cap": True},
    "no soft cap, score bias": {"bias": True},
    "score bias or sink": {"sink": True},
    "the mask Causal() or Everything()": {"mask": Causal() & SameSegment()},
    "one document per row": {"segments": True},
    "in order, without padding": {"explicit_positions": True},
}


def test_what_cudnn_serves_is_given_to_it():
    assert choose("cudnn", SERVED) == "cudnn" and choose("auto", SERVED) == "cudnn"
    assert choose("cudnn", dataclasses.replace(SERVED, mask=Everything(), dtype="float16")) == "cudnn"


@pytest.mark.parametrize("need", LACKING)
def test_what_cudnn_lacks_is_named_and_auto_falls_back(need):
    request = dataclasses.replace(SERVED, **LACKING[need])
    with pytest.raises(UserError) as error:
        choose("cudnn", request)
    assert need in str(error.value) and "'reference' serves everything" in str(error.value)
    assert "\n" not in str(error.value)
    assert choose("auto", request) == choose("reference", request) == "reference"


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="this machine has a GPU")
def test_asked_for_without_a_gpu():
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 4, 2, 8)), jnp.float32)
    with pytest.raises(UserError, match="attention engine 'cudnn' needs a GPU"):
        attend(q, k, v, engine="cudnn")
    np.testing.assert_array_equal(
        attend(q, k, v, mask=Causal()), attend(q, k, v, mask=Causal(), engine="reference")
    )


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("mask", [Causal(), Everything()])
def test_cudnn_equals_the_reference(mask):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 64), "bfloat16")
    got = attend(q, k[:, :, :2], v[:, :, :2], mask=mask, engine="cudnn")
    want = attend(q, k[:, :, :2], v[:, :, :2], mask=mask, engine="reference", q_tokens=Tokens.arange(128))
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), atol=2e-2)
