"""Positional encodings against their closed forms in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.positions import (
    NTK,
    Interpolation,
    Rotary,
    YaRN,
    learned,
    rotary,
    rotary_frequencies,
    sinusoidal,
)

POSITIONS = np.array([[0, 1, 2, 7], [5, 5, 100, 1023]], np.int32)


def test_sinusoidal_is_the_papers_formula():
    width = 10
    want = np.zeros((2, 4, width))
    for b, t, i in np.ndindex(2, 4, width // 2):
        angle = POSITIONS[b, t] / 10000 ** (2 * i / width)
        want[b, t, 2 * i], want[b, t, 2 * i + 1] = np.sin(angle), np.cos(angle)
    got = sinusoidal(jnp.asarray(POSITIONS), width)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-4)  # sin of 1023 radians in float32


def turned(x, positions, base):
    """Rotates each pair (i, i + half) as a complex number."""
    half = x.shape[-1] // 2
    angles = positions[..., None] / base ** (2 * np.arange(half) / x.shape[-1])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, :, None, :]
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("base", [10000.0, 50.0])
def test_rotary_turns_the_pair_of_channels_half_a_head_apart(base):
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 8)).astype(np.float32)
    got = rotary(jnp.asarray(x), jnp.asarray(POSITIONS), Rotary(base))
    np.testing.assert_allclose(got, turned(x.astype(np.float64), POSITIONS, base), atol=3e-4)
    unit = np.zeros((1, 1, 1, 8), np.float32)
    unit[..., 1] = 1.0
    got = np.asarray(rotary(jnp.asarray(unit), jnp.array([[3]], jnp.int32)))[0, 0, 0]
    angle = 3 / 10000 ** (2 / 8)
    np.testing.assert_allclose(got[[1, 5]], [np.cos(angle), np.sin(angle)], rtol=1e-6)
    assert not got[[0, 2, 3, 4, 6, 7]].any()


def test_interleaved_layout_turns_neighbouring_channels():
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 8)).astype(np.float32)
    got = rotary(jnp.asarray(x), jnp.asarray(POSITIONS), Rotary(layout="interleaved"))
    halves = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1).astype(np.float64)
    want = turned(halves, POSITIONS, 10000.0)
    np.testing.assert_allclose(got[..., 0::2], want[..., :4], atol=3e-4)
    np.testing.assert_allclose(got[..., 1::2], want[..., 4:], atol=3e-4)


@pytest.mark.slow
def test_interleaved_layout_is_gpt_js():
    torch = pytest.importorskip("torch")
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    x = np.random.default_rng(0).normal(size=(1, 6, 3, 8)).astype(np.float32)
    table = gptj.create_sinusoidal_positions(6, 8)
    sin, cos = (part[None] for part in torch.split(table, 4, dim=-1))
    want = gptj.apply_rotary_pos_emb(torch.tensor(x), sin, cos).numpy()
    got = rotary(jnp.asarray(x), jnp.arange(6, dtype=jnp.int32)[None], Rotary(layout="interleaved"))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_interpolation_divides_the_positions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 8)), jnp.float32)
    far, near = jnp.array([[8, 40, 100]], jnp.int32), jnp.array([[2, 10, 25]], jnp.int32)
    got = rotary(x, far, Rotary(scaling=Interpolation(4.0)))
    np.testing.assert_allclose(got, rotary(x, near), atol=1e-5)


def test_ntk_leaves_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    plain, scaled = (rotary_frequencies(Rotary(scaling=how), 16) for how in (None, NTK(8.0)))
    np.testing.assert_allclose(plain[0], scaled[0])
    np.testing.assert_allclose(plain[-1] / scaled[-1], 8.0, rtol=1e-5)
    assert (np.diff(plain / scaled) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scaling", "kind"), [(Interpolation(4.0), "linear"), (NTK(4.0), "dynamic"), (YaRN(16.0, 512), "yarn")]
)
@pytest.mark.parametrize("head_dim", [8, 64])
def test_scaled_frequencies_are_those_of_hugging_face(scaling, kind, head_dim):
    ropes = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers.models.llama.configuration_llama")
    # Their dynamic form, given a factor of 1, is NTK's of how many times longer than the context the text is.
    rope = {"rope_type": kind, "factor": 1.0 if kind == "dynamic" else scaling.factor, "rope_theta": 10000.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 512
    config = llama.LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=512, rope_theta=10000.0,
        rope_scaling=rope,
    )  # fmt: skip
    function = ropes.ROPE_INIT_FUNCTIONS[kind]
    want, attention_factor = function(config, "cpu", seq_len=2048 if kind == "dynamic" else None)
    encoding = Rotary(scaling=scaling)
    np.testing.assert_allclose(rotary_frequencies(encoding, head_dim), want.numpy(), rtol=1e-5)
    np.testing.assert_allclose(encoding.temperature, attention_factor**2, rtol=1e-6)


def test_yarn_at_64_channels_is_the_papers_ramp():
    """Pairs that turn 32 times or more in 4,096 positions stay, those below once are slowed by the factor."""
    plain, scaled = (rotary_frequencies(Rotary(scaling=how), 64) for how in (None, YaRN(8.0, 4096)))
    turns = 4096 * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns >= 40], plain[turns >= 40], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns <= 0.5], plain[turns <= 0.5] / 8, rtol=1e-6)
    between = (turns < 16) & (turns > 2)
    assert between.any() and (scaled < plain)[between].all() and (scaled > plain / 8)[between].all()


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 6, 2, 8)), jnp.float32)
    scores = []
    for shift in (0, 11, 200):
        positions = jnp.arange(6, dtype=jnp.int32)[None] + shift
        scores.append(jnp.einsum("bqhd,bkhd->bhqk", rotary(q, positions), rotary(k, positions)))
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-5)
    np.testing.assert_allclose(scores[2], scores[0], atol=2e-4)


def test_rotary_keeps_lengths_and_dtype():
    x = np.random.default_rng(2).normal(size=(2, 4, 3, 8)).astype(np.float32)
    got = rotary(jnp.asarray(x), jnp.asarray(POSITIONS))
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert rotary(jnp.asarray(x, jnp.bfloat16), jnp.asarray(POSITIONS)).dtype == jnp.bfloat16


def test_learned_are_rows_of_the_table():
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    got = learned(jnp.array([[0, 5, 2], [9, 1, 1]], jnp.int32), jnp.asarray(table))
    np.testing.assert_array_equal(got, table[[[0, 5, 2], [5, 1, 1]]])


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even width, not 7"):
        sinusoidal(jnp.zeros((1, 1), jnp.int32), 7)
    with pytest.raises(ValueError, match="even head width, not 5"):
        rotary(jnp.zeros((1, 1, 1, 5)), jnp.zeros((1, 1), jnp.int32))
