"""Recurrent attention layers: beside Hugging Face's, their sizes, their memory, and what they refuse."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Tokens
from research.attention.mechanisms import Geometry, Softmax
from research.attention.positions import Alibi, Rotary
from research.attention.recurrent_mechanisms import (
    GLA,
    Based,
    DeltaNet,
    GatedDeltaNet,
    KimiDelta,
    LinearTransformer,
    Mamba2,
    Performer,
    Recurrent,
    Retention,
)
from research.modules.attention import AttentionSpec
from research.modules.recurrent import RecurrentAttention

EVERY = (LinearTransformer, Performer, Based, Retention, GLA, Mamba2, DeltaNet, GatedDeltaNet, KimiDelta)
GPT2 = Geometry(768, 12, 12, 64, context=1024)


def layer(mechanism: Recurrent, geometry: Geometry, *, causal: bool = True, **fields) -> RecurrentAttention:
    return RecurrentAttention(AttentionSpec(geometry, mechanism, causal=causal, bias=False, **fields))


@pytest.mark.parametrize("convolution", [None, 4])
@pytest.mark.parametrize("form", EVERY)
def test_sizes_are_those_of_the_description_and_near_softmax(form, convolution):
    mechanism = form(convolution=convolution)
    init = layer(mechanism, GPT2).init
    params = jax.eval_shape(lambda: init(jax.random.key(0), jnp.zeros((1, 2, 768))))["params"]
    leaves = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(params)}
    kernels = sum(size for path, size in leaves.items() if "kernel" in path)
    assert kernels == mechanism.matmul_parameters(GPT2)
    assert 0.6 < sum(leaves.values()) / Softmax().matmul_parameters(GPT2) < 1.05
    assert any("convolution" in path for path in leaves) == (convolution is not None)
    # The state has one size for any length.
    sizes = {mechanism.state_bytes(GPT2, length, jnp.dtype("bfloat16")) for length in (1, 100_000)}
    assert len(sizes) == 1
    assert mechanism.flops_per_token(GPT2, 4096, causal=True, visible=True) == mechanism.flops_per_token(
        GPT2, 65_536, causal=True, visible=False
    )


@pytest.mark.parametrize("form", EVERY)
def test_what_does_not_fit_is_refused_in_one_sentence(form):
    def problems(geometry=GPT2, positions=None, **fields):
        return list(form(**fields).problems(geometry, positions, causal=True))

    assert not problems() and not problems(positions=Rotary())
    for found, lack in (
        (problems(positions=Alibi()), "has no scores that model.positions could be added to"),
        (problems(dataclasses.replace(GPT2, kv_heads=4)), "model.kv_heads must be model.heads (12), not 4"),
        (problems(positions=Rotary(), key_dim=5), "needs an even model.attention.key_dim, not 5"),
        (problems(convolution=0), "model.attention.convolution 0: at least 1"),
    ):
        assert len(found) == 1 and lack in found[0] and "\n" not in found[0]


def test_a_linear_transformer_reads_a_memory():
    """Cross-attention with elu + 1, by its definition; padding of the memory may hold NaN."""
    rng = np.random.default_rng(0)
    module = layer(LinearTransformer(), Geometry(8, 2, 2, 4, context=16))
    x, memory = (rng.normal(size=(2, n, 8)).astype(np.float32) for n in (3, 5))
    params = jax.jit(module.init)(jax.random.key(0), jnp.asarray(x))
    tokens = Tokens.of_lengths(jnp.array([5, 3]), 5)
    memory[1, 3:] = np.nan
    out, _ = jax.jit(module.apply)(params, jnp.asarray(x), memory=jnp.asarray(memory), memory_tokens=tokens)
    weights = {name: np.asarray(part["kernel"], np.float64) for name, part in params["params"].items()}

    def phi(x):
        return np.where(x > 0, x + 1, np.exp(x))

    for row, count in enumerate((5, 3)):
        q = phi(np.einsum("lw,whd->lhd", x[row], weights["query"]))
        k = phi(np.einsum("lw,whd->lhd", memory[row, :count], weights["key"]))
        v = np.einsum("lw,whd->lhd", memory[row, :count], weights["value"])
        scores = np.einsum("ihd,jhd->hij", q, k)
        read = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v)
        want = np.einsum("ihd,hdw->iw", read, weights["output"])
        np.testing.assert_allclose(out[row], want, atol=1e-6)


@pytest.mark.parametrize(("head_dim", "scale"), [(64, 1.0), (64, 3.0), (128, 1.0), (256, 1.0)])
def test_performers_gradients_are_finite_whatever_the_width_and_size_of_its_keys(head_dim, scale):
    mixer = layer(Performer(random_features=32), Geometry(head_dim, 1, 1, head_dim, context=16))
    x = jax.random.normal(jax.random.key(0), (1, 16, head_dim))
    params = mixer.init(jax.random.key(1), x)
    # Unit kernels: the variance of queries and keys is that of x, times scale^2.
    grown = jax.tree.map(lambda w: w * (scale / w.std() / head_dim**0.5), params)

    def loss(params):
        return jnp.square(mixer.apply(params, x)[0] - x).sum()

    for found in (params, grown):
        for path, gradient in jax.tree.leaves_with_path(jax.grad(loss)(found)):
            assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_performer_redraws_only_when_asked_and_given_a_key():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 8)), jnp.float32)
    geometry = Geometry(8, 2, 2, 4, context=16)
    fixed, drawn = (layer(Performer(redraw=redraw), geometry) for redraw in (False, True))
    params = jax.jit(fixed.init)(jax.random.key(0), x)
    calls = [
        jax.jit(module.apply)(params, x, key=key)[0]
        for module in (fixed, drawn)
        for key in (None, jax.random.key(1), jax.random.key(2))
    ]
    for same in calls[1:4]:
        np.testing.assert_array_equal(same, calls[0])
    assert (calls[4] != calls[0]).any() and (calls[5] != calls[4]).any()


@pytest.mark.slow
def test_kimi_delta_equals_hugging_face():
    """Its whole layer, with the low-rank projection of its gate multiplied out."""
    torch = pytest.importorskip("torch")
    kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    from transformers import KimiLinearConfig

    width, heads, head_dim, length = 16, 2, 8, 70
    config = KimiLinearConfig(
        hidden_size=width, linear_num_heads=heads, linear_head_dim=head_dim, rms_norm_eps=1e-6,
        num_hidden_layers=1, layer_types=["linear_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = kimi.KimiLinearDeltaAttention(config, 0).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(0.5 if "norm" in name else 0.0, 0.6)
    state = {name: value.detach().double().numpy() for name, value in theirs.named_parameters()}

    def split(name):  # [heads * dim, inputs] -> [inputs, heads, dim]
        return state[name].T.reshape(-1, heads, head_dim)

    taps = state["conv1d.weight"][:, 0].T.reshape(4, 3, heads, head_dim)
    gate = (state["g_b_proj.weight"] @ state["g_a_proj.weight"]).T.reshape(width, heads, head_dim)
    params = {
        "query": {"kernel": split("q_proj.weight")},
        "key": {"kernel": split("k_proj.weight")},
        "value": {"kernel": split("v_proj.weight")},
        "query_convolution": taps[:, 0], "key_convolution": taps[:, 1], "value_convolution": taps[:, 2],
        "strength": {"kernel": state["b_proj.weight"].T},
        "decay_latent": {"kernel": state["forget_gate.f_a_proj.weight"].T},
        "decay": {"kernel": split("forget_gate.f_b_proj.weight")},
        "decay_bias": state["forget_gate.dt_bias"].reshape(heads, head_dim),
        "decay_scale": state["forget_gate.A_log"].reshape(heads),
        "output_norm": {"scale": state["o_norm.weight"]},
        "output_gate": {"kernel": gate},
        "output": {"kernel": state["o_proj.weight"].T.reshape(heads, head_dim, width)},
    }  # fmt: skip
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    x = np.random.default_rng(0).normal(size=(2, length, width)).astype(np.float32)
    module = layer(KimiDelta(key_dim=head_dim), Geometry(width, heads, heads, head_dim, context=16))
    ours, _ = jax.jit(module.apply)({"params": params}, jnp.asarray(x))
    with torch.no_grad():
        want = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, want, atol=2e-5 * np.abs(want).max())
