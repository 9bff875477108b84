"""The capability table: an engine asked for by name refuses what it lacks, "auto" takes one that can."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from research.attention import (
    Causal,
    Everything,
    Present,
    SameSegment,
    Strided,
    Tokens,
    Window,
    attend,
)
from research.attention.devices import Split, split_of
from research.attention.engines import Request, choose
from research.attention.splash import splash
from research.errors import UserError
from research.scale.mesh import AXES

SERVED = Request(
    mask=Causal(),
    ordered=True,
    segments=False,
    soft_cap=False,
    bias=False,
    sink=False,
    dropout=False,
    dtype="bfloat16",
    batch=2,
    heads=4,
    q_len=256,
    kv_len=256,
    head_dim=64,
    value_dim=64,
    backend="gpu",
)
ON_TPU = dataclasses.replace(SERVED, backend="tpu")
LACKING = {
    "a GPU (this is cpu)": {"backend": "cpu", "split": Split(rows=8)},
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
    "in order, without padding": {"ordered": False},
}
LACKING_ON_TPU = {
    "a TPU (this is gpu)": {"backend": "gpu", "dtype": "float32"},
    "a batch that divides over 8 devices (this is 2)": {"split": Split(rows=8)},
    "heads that divide over 3 devices (these are 4)": {"split": Split(heads=3)},
    "mesh axes data, fsdp, tensor and sequence (5 devices lie along others)": {"split": Split(unknown=5)},
    "lengths that are multiples of 128 (these are 100 and 256)": {"q_len": 100},
    "no attention dropout": {"dropout": True},
    "no score bias": {"bias": True},
    "a mask of positions and of SameSegment() or Present()": {"mask": Causal() | SameSegment()},
    "tokens in order (Tokens.in_order)": {"ordered": False},
    "a mask by which every token sees itself": {"mask": ~Window(0)},
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


def test_what_splash_serves_is_given_to_it():
    packed = Causal() & SameSegment() & Window(9)
    for change in (
        {},
        {"dtype": "float32", "sink": True, "soft_cap": True},
        {"mask": packed, "segments": True},
    ):
        assert choose("auto", dataclasses.replace(ON_TPU, **change)) == "splash"
    anywhere = dataclasses.replace(ON_TPU, mask=Everything() & Present(), segments=True, ordered=False)
    assert choose("splash", anywhere) == "splash"


@pytest.mark.parametrize("need", LACKING_ON_TPU)
def test_what_splash_lacks_is_named_and_auto_falls_back(need):
    request = dataclasses.replace(ON_TPU, **LACKING_ON_TPU[need])
    with pytest.raises(UserError) as error:
        choose("splash", request)
    assert need in str(error.value) and "'reference' serves everything" in str(error.value)
    assert choose("auto", request) == "reference"


AROUND = dataclasses.replace(SERVED, split=Split(rows=2, heads=4, length=8))
LACKING_AROUND = {
    "a mesh whose axis sequence has several devices (here it has 1)": {"split": Split(2, 4)},
    "a batch that divides over 2 devices (this is 3)": {"batch": 3},
    "heads that divide over 4 devices (these are 6)": {"heads": 6},
    "lengths that divide into 16 parts (these are 256 and 264)": {"kv_len": 264},
    "no attention dropout": {"dropout": True},
    "no score bias": {"bias": True},
    "mesh axes data, fsdp, tensor and sequence (3 devices lie along others)": {"split": Split(2, 4, 8, 3)},
}


def test_what_a_ring_serves_goes_round_on_any_platform():
    for change in (
        {},
        {"backend": "tpu"},
        {"backend": "cpu", "dtype": "float32", "sink": True, "soft_cap": True, "ordered": False},
        {"mask": Everything(), "kv_len": 264},  # not balanced: 8 parts, not 16
        {"mask": Causal() & SameSegment(), "segments": True, "head_dim": 60, "value_dim": 30},
    ):
        assert choose("auto", dataclasses.replace(AROUND, **change)) == "ring"


@pytest.mark.parametrize("need", LACKING_AROUND)
def test_what_a_ring_lacks_is_named_and_auto_falls_back(need):
    request = dataclasses.replace(AROUND, dtype="float32", **LACKING_AROUND[need])
    with pytest.raises(UserError) as error:
        choose("ring", request)
    assert need in str(error.value) and "'reference' serves everything" in str(error.value)
    assert choose("auto", request) == "reference"


def test_splash_is_for_whole_sequences():
    request = dataclasses.replace(ON_TPU, split=Split(length=8))
    with pytest.raises(
        UserError, match=r"whole sequences on a device \(these lie over 8; 'ring' serves such"
    ):
        choose("splash", request)
    assert choose("auto", dataclasses.replace(ON_TPU, split=Split(rows=2, heads=4))) == "splash"


def test_meshes_split_calls_by_our_axes():
    auto, manual = AxisType.Auto, AxisType.Manual
    assert split_of(AbstractMesh((2, 3, 4, 5), AXES, (auto,) * 4)) == Split(6, 4, 5)
    assert split_of(AbstractMesh((2, 3), ("tensor", "x"), (auto,) * 2)) == Split(heads=2, unknown=3)
    # Inside shard_map a device has a call of its own.
    assert split_of(AbstractMesh((2, 3, 4, 5), AXES, (manual,) * 4)) == Split()
    assert split_of(AbstractMesh((2, 4), ("data", "tensor"), (manual, auto))) == Split(unknown=4)


def test_auto_takes_flash_where_it_pays():
    on_cpu = dataclasses.replace(SERVED, backend="cpu", dtype="float32", q_len=512, kv_len=512)
    assert choose("auto", on_cpu) == "flash"
    assert choose("auto", dataclasses.replace(on_cpu, q_len=64, kv_len=64)) == "reference"
    decoding = dataclasses.replace(on_cpu, q_len=1, kv_len=2**17)
    assert choose("auto", decoding) == "reference"
    assert choose("auto", dataclasses.replace(on_cpu, split=Split(rows=8))) == "reference"
    long = dataclasses.replace(SERVED, dtype="float32", q_len=32768, kv_len=32768)
    assert choose("auto", long) == "flash"  # 32 GiB of scores


@pytest.mark.parametrize(
    "mask",
    [
        Causal(),
        Everything(),
        Causal() & Window(40) & Window(200, 3),
        Causal() & SameSegment(),
        Strided(17),
        Everything() & Present(),
    ],
)
def test_splash_equals_the_reference_interpreted(mask):
    q, k, v = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 256, 4, 128)), jnp.float32)
    segments = np.ones((2, 256), np.int32)
    segments[0, 100:], segments[1, 200:] = 2, 0
    tokens = Tokens.arange(256)
    if mask.documents:
        tokens = Tokens(tokens.positions, jnp.asarray(segments))
    options = {"mask": mask, "q_tokens": tokens, "kv_tokens": tokens, "sink": jnp.arange(4.0)}
    got = splash(q, k[:, :, :2], v[:, :, :2], scale=0.1, interpret=True, **options)
    want = attend(q, k[:, :, :2], v[:, :, :2], scale=0.1, engine="reference", **options)
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="this machine has a GPU")
def test_asked_for_without_a_gpu():
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 4, 2, 8)), jnp.float32)
    with pytest.raises(UserError, match="attention engine 'cudnn' needs a GPU"):
        attend(q, k, v, engine="cudnn")
    np.testing.assert_array_equal(
        attend(q, k, v, mask=Causal()), attend(q, k, v, mask=Causal(), engine="flash")
    )


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("mask", [Causal(), Everything()])
def test_cudnn_equals_the_reference(mask):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 128, 4, 64), "bfloat16")
    got = attend(q, k[:, :, :2], v[:, :, :2], mask=mask, engine="cudnn")
    want = attend(q, k[:, :, :2], v[:, :, :2], mask=mask, engine="reference", q_tokens=Tokens.arange(128))
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), atol=2e-2)
