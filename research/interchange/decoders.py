"""Decoder-only families: GPT-2, and those of Llama's shape."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from research.attention.mechanisms import Softmax
from research.attention.positions import Rotary
from research.errors import UserError
from research.interchange.family import Config, Family, Layout, only, shared_rate
from research.interchange.layouts import Row, linear, norm, stacked
from research.models.gpt import GPT


def _gpt2_description(config: Config, names: Collection[str]) -> GPT:
    del names
    only(config, "activation_function", ("gelu_new", "gelu_pytorch_tanh"))
    only(config, "scale_attn_weights", (True,))
    only(config, "scale_attn_by_inverse_layer_idx", (False,))
    only(config, "add_cross_attention", (False,))
    only(config, "tie_word_embeddings", (True,))
    return GPT(
        vocabulary=config["vocab_size"],
        context=config["n_positions"],
        layers=config["n_layer"],
        width=config["n_embd"],
        heads=config["n_head"],
        feed_forward_width=config.get("n_inner"),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        dropout=shared_rate(config, "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    )


def _gpt2_config(gpt: GPT) -> dict[str, Any]:
    return {
        "vocab_size": gpt.vocabulary,
        "n_positions": gpt.context,
        "n_layer": gpt.layers,
        "n_embd": gpt.width,
        "n_head": gpt.heads,
        "n_inner": gpt.feed_forward_width,
        "layer_norm_epsilon": gpt.norm_epsilon,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        **{f"{name}_pdrop": gpt.dropout for name in ("attn", "embd", "resid")},
    }


def _gpt2_layout(gpt: GPT) -> Layout:
    name = "transformer.h.{layer}."
    projections = [
        row
        for part, ours in enumerate(("query", "key", "value"))
        for row in (
            Row(f"attention/{ours}/kernel", f"{name}attn.c_attn.weight", part=part, parts=3),
            Row(f"attention/{ours}/bias", f"{name}attn.c_attn.bias", None, part=part, parts=3),
        )
    ]
    block = (
        *norm("attention_norm", f"{name}ln_1"),
        *projections,
        Row("attention/output/kernel", f"{name}attn.c_proj.weight", 2),
        Row("attention/output/bias", f"{name}attn.c_proj.bias", None),
        *norm("feed_forward_norm", f"{name}ln_2"),
        Row("feed_forward/up/kernel", f"{name}mlp.c_fc.weight"),
        Row("feed_forward/up/bias", f"{name}mlp.c_fc.bias", None),
        Row("feed_forward/down/kernel", f"{name}mlp.c_proj.weight"),
        Row("feed_forward/down/bias", f"{name}mlp.c_proj.bias", None),
    )
    return (
        Row("token_embedding/table", "transformer.wte.weight"),
        Row("position_embedding/table", "transformer.wpe.weight"),
        *norm("final_norm", "transformer.ln_f"),
        *stacked("stack", block, gpt.layers),
    )


def _llama_description(config: Config, names: Collection[str]) -> GPT:
    del names
    only(config, "hidden_act", ("silu",))
    only(config, "attention_bias", (False,))
    only(config, "mlp_bias", (False,))
    only(config, "use_sliding_window", (False,))
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim")
    return GPT(
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=None if head_dim is None or head_dim * heads == config["hidden_size"] else head_dim,
        feed_forward="swiglu",
        feed_forward_width=config["intermediate_size"],
        positions=Rotary(base=_rotary_base(config)),
        norm="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        bias=False,
        tied_head=config.get("tie_word_embeddings", False),
        attention=Softmax(qk_norm=config["model_type"] == "qwen3"),
    )


def _rotary_base(config: Config) -> float:
    """Returns the base of the frequencies; `transformers` has kept it in two places."""
    for name in ("rope_parameters", "rope_scaling"):
        scaling = config.get(name) or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise UserError(f"config.json: {name} of type {kind!r} is not supported; only 'default' is")
    return float((config.get("rope_parameters") or config).get("rope_theta", 10000.0))


def _llama_config(gpt: GPT) -> dict[str, Any]:
    base = gpt.positions.base if isinstance(gpt.positions, Rotary) else 10000.0
    return {
        "vocab_size": gpt.vocabulary,
        "max_position_embeddings": gpt.context,
        "num_hidden_layers": gpt.layers,
        "hidden_size": gpt.width,
        "num_attention_heads": gpt.heads,
        "num_key_value_heads": gpt.geometry.kv_heads,
        "head_dim": gpt.geometry.head_dim,
        "intermediate_size": gpt.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": gpt.norm_epsilon,
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": gpt.tied_head,
    }


def _llama_layout(gpt: GPT) -> Layout:
    name = "model.layers.{layer}."
    normed = isinstance(gpt.attention, Softmax) and gpt.attention.qk_norm
    scales = ("query", "q"), ("key", "k")
    attention = ("query", "q", 1), ("key", "k", 1), ("value", "v", 1), ("output", "o", 2)
    block = (
        *norm("attention_norm", f"{name}input_layernorm", bias=False),
        *(
            row
            for ours, theirs, inputs in attention
            for row in linear(f"attention/{ours}", f"{name}self_attn.{theirs}_proj", inputs, bias=False)
        ),
        *(
            Row(f"attention/{ours}_scale", f"{name}self_attn.{theirs}_norm.weight", None)
            for ours, theirs in (scales if normed else ())
        ),
        *norm("feed_forward_norm", f"{name}post_attention_layernorm", bias=False),
        *(
            row
            for part in ("gate", "up", "down")
            for row in linear(f"feed_forward/{part}", f"{name}mlp.{part}_proj", bias=False)
        ),
    )
    return (
        Row("token_embedding/table", "model.embed_tokens.weight"),
        *norm("final_norm", "model.norm", bias=False),
        *(() if gpt.tied_head else linear("head", "lm_head", bias=False)),
        *stacked("stack", block, gpt.layers),
    )


_LLAMA_BUFFERS = r"rotary_emb\.inv_freq$"
GPT2 = Family(
    "gpt2", lambda _: "GPT2LMHeadModel", GPT, _gpt2_description, _gpt2_config, _gpt2_layout,
    prefix="transformer.", ignored=r"\.attn\.(masked_)?bias$",
    tied={"lm_head.weight": "transformer.wte.weight"},
)  # fmt: skip
LLAMA, QWEN3 = (
    Family(
        name, lambda _, kind=kind: kind, GPT, _llama_description, _llama_config, _llama_layout,  # type: ignore[misc]
        prefix="model.", ignored=_LLAMA_BUFFERS, tied={"lm_head.weight": "model.embed_tokens.weight"},
    )
    for name, kind in (("llama", "LlamaForCausalLM"), ("qwen3", "Qwen3ForCausalLM"))
)  # fmt: skip
