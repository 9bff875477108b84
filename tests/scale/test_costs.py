"""Costs against counts made another way."""

from __future__ import annotations

import pytest

from research.attention.mechanisms import SlidingWindow, Softmax
from research.models.gpt import GPT
from research.scale.costs import matmul_rate, peak_flops


def test_gpt2_124m_has_its_published_matrices():
    # 124,439,808 parameters, of which the position table, the biases and the LayerNorms multiply nothing.
    model = GPT(vocabulary=50257)
    positions, norms = 1024 * 768, 25 * 2 * 768
    biases = 12 * (3 * 768 + 768 + 4 * 768 + 768)
    assert model.matmul_parameters() == 124_439_808 - positions - norms - biases


@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
def test_attention_counts_every_visible_pair(window):
    model = GPT(
        vocabulary=11,
        layers=3,
        width=8,
        heads=2,
        attention=Softmax() if window is None else SlidingWindow(window=window),
    )
    length = 16
    pairs = sum(
        1 for q in range(length) for k in range(length) if k <= q and (window is None or q - k < window)
    )
    head_width, forward_and_backward = 4, 3
    per_pair = 2 * (2 * head_width) * model.heads * model.layers * forward_and_backward  # q.k and p.v
    matrices = 6 * model.matmul_parameters()
    assert model.training_flops_per_token(length, visible=True) == pytest.approx(
        matrices + per_pair * pairs / length
    )
    assert model.training_flops_per_token(length, visible=False) == pytest.approx(
        matrices + per_pair * length
    )


def test_grouped_heads_and_gated_feed_forward():
    plain = GPT(vocabulary=10, layers=1, width=8, heads=4)
    grouped = GPT(
        vocabulary=10, layers=1, width=8, heads=4, kv_heads=1, feed_forward="swiglu", feed_forward_width=5
    )
    assert plain.matmul_parameters() == 4 * 64 + 2 * 8 * 32 + 80
    assert grouped.matmul_parameters() == (64 + 64 + 2 * 8 * 2) + 3 * 8 * 5 + 80


def test_peaks_by_device_kind():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None


def test_matmul_rate_is_plausible():
    assert 1e8 < matmul_rate(size=256, repeats=2) < 1e17
