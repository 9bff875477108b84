"""GPT-2 beside Hugging Face's implementation, with the same weights (extra ``peers``)."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.gpt import GPT

LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 3, 24, 4, 53, 20


def converted(state):
    """Returns the weights of ``GPT2LMHeadModel`` as our parameters; its kernels are [inputs, outputs]."""
    weights = {
        name.removeprefix("transformer."): jnp.asarray(tensor.numpy()) for name, tensor in state.items()
    }

    def stacked(name):
        return jnp.stack([weights[f"h.{index}.{name}"] for index in range(LAYERS)])

    def norm(name):
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    def linear(name, shape=None):
        kernel = stacked(f"{name}.weight")
        return {
            "kernel": kernel.reshape(LAYERS, *(shape or kernel.shape[1:])),
            "bias": stacked(f"{name}.bias"),
        }

    kernels = jnp.split(stacked("attn.c_attn.weight"), 3, axis=2)
    biases = jnp.split(stacked("attn.c_attn.bias"), 3, axis=1)
    head_dim = WIDTH // HEADS
    attention = {
        name: {
            "kernel": k.reshape(LAYERS, WIDTH, HEADS, head_dim),
            "bias": b.reshape(LAYERS, HEADS, head_dim),
        }
        for name, k, b in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    blocks = {
        "attention_norm": norm("ln_1"),
        "attention": attention | {"output": linear("attn.c_proj", (HEADS, head_dim, WIDTH))},
        "feed_forward_norm": norm("ln_2"),
        "feed_forward": {"up": linear("mlp.c_fc"), "down": linear("mlp.c_proj")},
    }
    return {
        "token_embedding": {"table": weights["wte.weight"]},
        "position_embedding": {"table": weights["wpe.weight"]},
        "stack": {"blocks": blocks},
        "final_norm": {"scale": weights["ln_f.weight"], "bias": weights["ln_f.bias"]},
    }


@pytest.mark.filterwarnings("ignore")  # of third parties, on import
def test_logits_equal_those_of_hugging_face():
    with warnings.catch_warnings(action="ignore"):
        torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
        transformers = pytest.importorskip("transformers", reason="needs the extra 'peers'")
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            bos_token_id=0, eos_token_id=0, attn_implementation="eager",
        )  # fmt: skip
        torch.manual_seed(0)
        theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # nothing stays 0 or 1
            parameter.add_(0.2 * torch.randn_like(parameter))
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, size=(2, CONTEXT))
        want = theirs(torch.from_numpy(tokens)).logits.numpy()
    gpt = GPT(vocabulary=VOCABULARY, context=CONTEXT, layers=LAYERS, width=WIDTH, heads=HEADS)
    params = converted(
        {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    )
    got, _ = jax.jit(gpt.build().apply)({"params": params}, jnp.asarray(tokens, jnp.int32))
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
