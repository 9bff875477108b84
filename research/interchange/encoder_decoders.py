"""Encoder-decoder families: Marian and T5."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from research.attention.mechanisms import Softmax
from research.attention.positions import RelativeBias, Sinusoidal
from research.errors import UserError
from research.interchange.family import Config, Family, Layout, chosen, only
from research.interchange.layouts import Row, linear, norm, stacked
from research.models.transformer import Transformer

_LOGITS_BIAS = "final_logits_bias"
_ACTIVATIONS = {
    "swish": "silu", "silu": "silu", "relu": "relu", "gelu": "exact-gelu", "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
}  # fmt: skip
_NAMES = {"silu": "swish", "relu": "relu", "exact-gelu": "gelu", "gelu": "gelu_new"}


def _marian_description(config: Config, names: Collection[str]) -> Transformer:
    for name in ("normalize_before", "normalize_embedding", "add_final_layer_norm", "add_bias_logits"):
        only(config, name, (False,))
    only(config, "static_position_embeddings", (True,))
    only(config, "share_encoder_decoder_embeddings", (True,))
    only(config, "tie_word_embeddings", (True,))
    for name in ("attention_heads", "ffn_dim"):
        only(config, f"decoder_{name}", (config[f"encoder_{name}"],))
    only(config, "decoder_vocab_size", (config["vocab_size"], None))
    return Transformer(
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        width=config["d_model"],
        heads=config["encoder_attention_heads"],
        feed_forward_width=config["encoder_ffn_dim"],
        feed_forward=chosen(config, "activation_function", _ACTIVATIONS, "gelu"),  # type: ignore[arg-type]
        positions=Sinusoidal(layout="half"),
        head_bias=_LOGITS_BIAS in names,
        embedding_scale="input" if config.get("scale_embedding", False) else "none",
        dropout=float(config.get("dropout", 0.1)),
        attention_dropout=float(config.get("attention_dropout", 0.0)),
    )


def _marian_config(model: Transformer) -> dict[str, Any]:
    sides = "encoder", "decoder"
    return {
        "vocab_size": model.vocabulary,
        "decoder_vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "encoder_layers": model.layers,
        "decoder_layers": model.decoder_depth,
        "d_model": model.width,
        **{f"{side}_attention_heads": model.heads for side in sides},
        **{f"{side}_ffn_dim": model.hidden for side in sides},
        "activation_function": _NAMES.get(model.feed_forward, "gelu"),
        "scale_embedding": model.embedding_scale == "input",
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
    }


def _marian_layout(model: Transformer) -> Layout:
    def attention(ours: str, theirs: str) -> Iterator[Row]:
        for part, name, inputs in (
            ("query", "q_proj", 1),
            ("key", "k_proj", 1),
            ("value", "v_proj", 1),
            ("output", "out_proj", 2),
        ):
            yield from linear(f"{ours}/{part}", f"{theirs}.{name}", inputs)

    def block(side: str) -> tuple[Row, ...]:
        name = f"model.{side}.layers.{{layer}}."
        cross = (
            *attention("cross_attention", f"{name}encoder_attn"),
            *norm("cross_attention_norm", f"{name}encoder_attn_layer_norm"),
        )
        return (
            *attention("attention", f"{name}self_attn"),
            *norm("attention_norm", f"{name}self_attn_layer_norm"),
            *(cross if side == "decoder" else ()),
            *linear("feed_forward/up", f"{name}fc1"),
            *linear("feed_forward/down", f"{name}fc2"),
            *norm("feed_forward_norm", f"{name}final_layer_norm"),
        )

    return (
        Row("token_embedding/table", "model.shared.weight"),
        *stacked("encoder", block("encoder"), model.layers),
        *stacked("decoder", block("decoder"), model.decoder_depth),
        *((Row("head_bias", _LOGITS_BIAS, 0),) if model.head_bias else ()),
    )


def _t5_description(config: Config, names: Collection[str]) -> Transformer:
    kinds = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
    # What `transformers` calls scaling the output goes with tied embeddings, in the configurations of old.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    heads, head_dim = config["num_heads"], config["d_kv"]
    return Transformer(
        vocabulary=config["vocab_size"],
        context=config.get("n_positions", 512),
        layers=config["num_layers"],
        decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        width=config["d_model"],
        heads=heads,
        head_dim=None if head_dim * heads == config["d_model"] else head_dim,
        attention=Softmax(scale=1.0),
        feed_forward_width=config["d_ff"],
        feed_forward=chosen(config, "feed_forward_proj", kinds, "relu"),  # type: ignore[arg-type]
        positions=RelativeBias(
            config.get("relative_attention_num_buckets", 32),
            config.get("relative_attention_max_distance", 128),
            shared=True,
        ),
        norm="rms",
        norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
        placement="pre",
        bias=False,
        tied_head="lm_head.weight" not in names,
        embedding_scale="output" if scaled else "none",
        dropout=float(config.get("dropout_rate", 0.1)),
        attention_dropout=float(config.get("dropout_rate", 0.1)),
    )


def _t5_config(model: Transformer) -> dict[str, Any]:
    positions = model.positions if isinstance(model.positions, RelativeBias) else RelativeBias()
    kinds = {"geglu": "gated-gelu", "swiglu": "gated-silu"}
    return {
        "vocab_size": model.vocabulary,
        "n_positions": model.context,
        "num_layers": model.layers,
        "num_decoder_layers": model.decoder_depth,
        "d_model": model.width,
        "num_heads": model.heads,
        "d_kv": model.geometry.head_dim,
        "d_ff": model.hidden,
        "feed_forward_proj": kinds.get(model.feed_forward, "relu"),
        "relative_attention_num_buckets": positions.buckets,
        "relative_attention_max_distance": positions.max_distance,
        "layer_norm_epsilon": model.norm_epsilon,
        "scale_decoder_outputs": model.embedding_scale == "output",
        "tie_word_embeddings": model.embedding_scale == "output",
        "dropout_rate": model.dropout,
    }


def _t5_layout(model: Transformer) -> Layout:
    gated = model.feed_forward in ("geglu", "swiglu")
    hidden = (("gate", "wi_0"), ("up", "wi_1")) if gated else (("up", "wi"),)

    def attention(ours: str, theirs: str) -> Iterator[Row]:
        for part, name, inputs in (("query", "q", 1), ("key", "k", 1), ("value", "v", 1), ("output", "o", 2)):
            yield from linear(f"{ours}/{part}", f"{theirs}.{name}", inputs, bias=False)

    def block(side: str) -> tuple[Row, ...]:
        name = f"{side}.block.{{layer}}.layer."
        last = 2 if side == "decoder" else 1
        cross = (
            *norm("cross_attention_norm", f"{name}1.layer_norm", bias=False),
            *attention("cross_attention", f"{name}1.EncDecAttention"),
        )
        return (
            *norm("attention_norm", f"{name}0.layer_norm", bias=False),
            *attention("attention", f"{name}0.SelfAttention"),
            *(cross if side == "decoder" else ()),
            *norm("feed_forward_norm", f"{name}{last}.layer_norm", bias=False),
            *(
                row
                for ours, theirs in (*hidden, ("down", "wo"))
                for row in linear(f"feed_forward/{ours}", f"{name}{last}.DenseReluDense.{theirs}", bias=False)
            ),
        )

    tables = (
        Row(f"{side}/relative_bias", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        for side in ("encoder", "decoder")
    )
    return (
        Row("token_embedding/table", "shared.weight"),
        *tables,
        *stacked("encoder", block("encoder"), model.layers),
        *stacked("decoder", block("decoder"), model.decoder_depth),
        *norm("encoder_norm", "encoder.final_layer_norm", bias=False),
        *norm("decoder_norm", "decoder.final_layer_norm", bias=False),
        *(() if model.tied_head else linear("head", "lm_head", bias=False)),
    )


def start_token(config: Config) -> int:
    """Returns the id of the token that every target begins with; UserError if the configuration has none."""
    found = config.get("decoder_start_token_id", config.get("pad_token_id"))
    if found is None:
        raise UserError("config.json: neither decoder_start_token_id nor pad_token_id says how targets begin")
    return int(found)


_SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
MARIAN = Family(
    "marian", lambda _: "MarianMTModel", Transformer, _marian_description, _marian_config, _marian_layout,
    ignored=r"embed_positions\.weight$",
    tied={name: "model.shared.weight" for name in ("lm_head.weight", *(f"model.{x}" for x in _SHARED))},
)  # fmt: skip
T5 = Family(
    "t5", lambda _: "T5ForConditionalGeneration", Transformer, _t5_description, _t5_config, _t5_layout,
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
    tied=dict.fromkeys(_SHARED, "shared.weight"),
)  # fmt: skip
