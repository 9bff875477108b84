"""What mechanisms say of themselves: visible keys, state, capabilities, and what they refuse."""

from __future__ import annotations

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np
import pytest

import research.attention
from research.attention import Causal, Tokens
from research.attention.block_choice import MoBA
from research.attention.catalogue import Interleaved, Single, capabilities
from research.attention.hashing import Reformer
from research.attention.low_rank import Linformer
from research.attention.mechanisms import (
    Differential,
    Forgetting,
    Geometry,
    Latent,
    Mechanism,
    SlidingWindow,
    Softmax,
)
from research.attention.native_sparse import NSA
from research.attention.positions import Alibi, RelativeBias, Rotary
from research.attention.rwkv import RWKV7
from research.attention.sparse_mechanisms import BigBird, Longformer, SparseTransformer

GEOMETRY = Geometry(width=24, heads=6, kv_heads=6, head_dim=4, context=40)
FLOAT32 = jnp.dtype("float32")
PATTERNS = [
    Softmax(), SlidingWindow(window=1), SlidingWindow(window=5), SlidingWindow(window=90),
    Longformer(window=6, dilation=1, global_tokens=3), Longformer(window=5, dilation=3, global_tokens=2),
    Longformer(window=4, global_tokens=0), Longformer(window=3, global_tokens=90),
    BigBird(block=4), BigBird(block=7, window=1, global_blocks=0, random_blocks=2, seed=5),
    BigBird(block=8, window=2, global_blocks=1, random_blocks=0),
    SparseTransformer(stride=4), SparseTransformer(stride=50),
    SparseTransformer(factors="fixed", stride=6, summary=2),
    SparseTransformer(factors="fixed", stride=4, summary=4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mechanism", "causal"),
    [
        (mechanism, causal)
        for mechanism in PATTERNS
        for causal in (True, False)
        if causal or mechanism.encoder
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 17, 40])
def test_visible_keys_are_those_that_the_pattern_admits(mechanism, causal, length):
    tokens = Tokens(np.arange(length, dtype=np.int32)[None])
    mask = mechanism.pattern(GEOMETRY, causal=causal)
    allowed = np.asarray((mask & Causal() if causal else mask)(tokens, tokens))
    allowed = np.broadcast_to(allowed, (1, length, length))
    assert allowed[0].diagonal().all()
    want = allowed.sum() / length
    assert mechanism.visible_keys(GEOMETRY, length, causal=causal) == pytest.approx(want)
    flops = mechanism.flops_per_token(GEOMETRY, length, causal=causal, visible=True)
    assert flops == pytest.approx(want * 2 * 2 * 24)


def test_state_bytes_are_what_the_paper_promises():
    def bytes_of(mechanism, length):
        return mechanism.state_bytes(GEOMETRY, length, FLOAT32)

    assert bytes_of(Softmax(), 100) == 100 * 2 * 24 * 4
    assert bytes_of(Differential(), 100) == 100 * 2 * 24 * 4
    assert bytes_of(Forgetting(), 100) == 100 * (2 * 24 + 6) * 4
    assert bytes_of(Latent(rank=10, rotary_dim=2), 100) == 100 * 12 * 4
    window = 8 * (2 * 24 * 4 + 4)  # and a position
    assert [bytes_of(SlidingWindow(window=8), length) for length in (8, 100, 10_000)] == [window] * 3
    assert bytes_of(SlidingWindow(window=8), 4) == window // 2
    reach = 2 + (4 - 1) * 3 + 1
    assert bytes_of(Longformer(window=4, dilation=3, global_tokens=2), 1000) == reach * (2 * 24 * 4 + 4)
    nsa = NSA(summary=8, stride=4, block=8, top=3, window=16)
    token = 2 * 24 * 4
    assert bytes_of(nsa, 100) == (100 + 25) * token + (7 + 16) * (token + 4)
    assert bytes_of(RWKV7(), 1) == bytes_of(RWKV7(), 100) == (6 * 4 * 4 + 24) * 4


def test_flops_of_what_is_not_plain():
    plain = Softmax().flops_per_token(GEOMETRY, 10, causal=True, visible=False)
    assert plain == 10 * 4 * 24
    assert Differential().flops_per_token(GEOMETRY, 10, causal=True, visible=False) == 10 * (2 + 4) * 24
    sparse = NSA(summary=4, stride=2, block=4, top=3, window=5)
    read = 0
    for t in range(40):
        summaries = sum(m + 4 <= t + 1 for m in range(0, 40, 2))
        chosen = sum(i // 4 in {0, t // 4 - 1, t // 4} for i in range(t + 1))
        read += summaries + chosen + min(t + 1, 5)
    mlps = 2 * 20 / 40 * 6 * 2 * (4 * 4 * 4 + 4 * 4)
    flops = sparse.flops_per_token(GEOMETRY, 40, causal=True, visible=True)
    assert flops == pytest.approx(read / 40 * 4 * 24 + mlps)
    latent = Latent(rank=10, rotary_dim=2)
    assert latent.flops_per_token(GEOMETRY, 10, causal=True, visible=False) == 10 * 2 * 6 * (4 + 2 + 4)


def test_capabilities_cover_the_catalogue():
    found = capabilities()
    assert list(found) == list(typing.get_args(Single))
    assert found[Softmax].decoder and found[Softmax].encoder and found[Softmax].cross
    assert not found[SparseTransformer].encoder and not found[Forgetting].encoder
    assert not found[Linformer].decoder and not found[Linformer].packed
    assert found[Linformer].state_bytes is None
    grows = {cls.__name__: row.state_bytes for cls, row in found.items() if row.state_bytes is not None}
    assert grows["Softmax"] == (1024 * 2 * 768 * 2, 16_384 * 2 * 768 * 2)
    assert grows["SlidingWindow"][0] == grows["SlidingWindow"][1] == 128 * (2 * 768 * 2 + 4)
    assert grows["Latent"][1] * 4 < grows["Softmax"][1]


@pytest.mark.parametrize("cls", [*typing.get_args(Single), Interleaved])
def test_every_mechanism_is_exported_and_cites_its_paper(cls: type[Mechanism]):
    assert getattr(research.attention, cls.__name__) is cls
    years = [str(year) for year in range(2017, 2027)]
    assert cls is Interleaved or any(year in (cls.__doc__ or "") for year in years)


def problems(mechanism, causal=True, positions=None, **sizes):
    geometry = dataclasses.replace(GEOMETRY, **sizes)
    return " | ".join(mechanism.problems(geometry, positions, causal=causal))


def test_what_cannot_be_is_refused_in_one_line():
    assert "even number of model.heads, not 5" in problems(Differential(), heads=5, kv_heads=2)
    assert "even number of model.kv_heads, not 3" in problems(Differential(), kv_heads=3)
    assert "choose 'softmax' with model.positions 'alibi'" in problems(Forgetting(), causal=False)
    assert "leave model.kv_heads out" in problems(Latent(), kv_heads=2)
    assert "rotary_dim 3 is odd" in problems(Latent(rotary_dim=3))
    assert "choose 'longformer' or 'big-bird'" in problems(SparseTransformer(), causal=False)
    fixed = SparseTransformer(factors="fixed", stride=4, summary=5)
    assert "summary 5 is more than the model.attention.stride 4" in problems(fixed)
    assert "chooses among the blocks before" in problems(MoBA(), causal=False)
    assert problems(NSA(), causal=False).startswith("model.attention 'nsa' chooses among the blocks before")
    assert "summary 24 is no multiple of the model.attention.stride 16" in problems(NSA(summary=24))
    assert "block 8 is no multiple of the model.attention.stride 16" in problems(NSA(block=8))
    assert "top 2: at least 3" in problems(NSA(top=2))
    assert "choose 'rotary', 'learned'" in problems(NSA(), positions=Alibi())
    assert not problems(NSA(), positions=Rotary(), kv_heads=2)
    assert "in a decoder choose 'linear-transformer'" in problems(Linformer())
    for positions in (Rotary(), Alibi(), RelativeBias()):
        assert "choose 'learned' or 'sinusoidal'" in problems(Linformer(), False, positions)
    assert "leave model.kv_heads out" in problems(Reformer(), kv_heads=3)
    assert "leave model.attention.qk_norm out" in problems(Reformer(qk_norm=True))
    assert "buckets 5 is odd" in problems(Reformer(buckets=5))
    assert "model.kv_heads must be model.heads (6), not 2" in problems(RWKV7(), kv_heads=2)
    for positions in (Rotary(), Alibi(), RelativeBias()):
        assert "choose 'none', 'learned' or 'sinusoidal'" in problems(RWKV7(), True, positions)
    mixed = Interleaved(Softmax(), 1, SparseTransformer(), 1)
    assert "causal patterns only" in problems(mixed, causal=False)
    nested = Interleaved(Latent(rotary_dim=3), 1, NSA(block=8), 1)
    assert "model.attention.first.rotary_dim 3 is odd" in problems(nested)
    assert "model.attention.second.block 8 is no multiple of the model.attention.second" in problems(nested)
    assert not problems(mixed, positions=Rotary())
