"""Families of checkpoints: configurations as descriptions of ours and back, and the names of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from research.attention.mechanisms import Softmax
from research.attention.positions import Learned, Rotary
from research.errors import UserError
from research.interchange.layouts import Row
from research.models.gpt import GPT

Config = Mapping[str, Any]
"""The values of a ``config.json``."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that is known of one kind of checkpoint."""

    model_type: str
    """Its ``model_type`` in ``config.json``."""
    architecture: str
    """The class in `transformers` that it loads into."""
    describe: Callable[[Config], GPT]
    """config -> description; UserError for what the model here cannot do."""
    configure: Callable[[GPT], dict[str, Any]]
    """description -> config, for the descriptions that ``describe`` can give back."""
    root: Callable[[GPT], tuple[Row, ...]]
    """Rows of the parameters that occur once."""
    block: Callable[[GPT], tuple[Row, ...]]
    """Rows of the parameters of a layer."""
    prefix: str
    """Begins the names of the body's tensors; files of the bare body lack it."""
    ignored: str
    """Tensors that hold no parameter (masks kept in the file), as a regular expression."""


def _gpt2_description(config: Config) -> GPT:
    _only(config, "activation_function", ("gelu_new", "gelu_pytorch_tanh"))
    _only(config, "scale_attn_weights", (True,))
    _only(config, "scale_attn_by_inverse_layer_idx", (False,))
    _only(config, "add_cross_attention", (False,))
    _only(config, "tie_word_embeddings", (True,))
    rates = {config.get(f"{name}_pdrop", 0.1) for name in ("attn", "embd", "resid")}
    return GPT(
        vocabulary=config["vocab_size"],
        context=config["n_positions"],
        layers=config["n_layer"],
        width=config["n_embd"],
        heads=config["n_head"],
        feed_forward_width=config.get("n_inner"),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        dropout=rates.pop() if len(rates) == 1 else 0.0,
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


def _gpt2_root(gpt: GPT) -> tuple[Row, ...]:
    del gpt
    return (
        Row("token_embedding/table", "transformer.wte.weight"),
        Row("position_embedding/table", "transformer.wpe.weight"),
        Row("final_norm/scale", "transformer.ln_f.weight", 0),
        Row("final_norm/bias", "transformer.ln_f.bias", 0),
    )


def _gpt2_block(gpt: GPT) -> tuple[Row, ...]:
    del gpt
    name = "transformer.h.{layer}."
    projections = [
        row
        for part, ours in enumerate(("query", "key", "value"))
        for row in (
            Row(f"attention/{ours}/kernel", f"{name}attn.c_attn.weight", part=part, parts=3),
            Row(f"attention/{ours}/bias", f"{name}attn.c_attn.bias", 0, part=part, parts=3),
        )
    ]
    return (
        *_norm("attention_norm", f"{name}ln_1"),
        *projections,
        Row("attention/output/kernel", f"{name}attn.c_proj.weight", 2),
        Row("attention/output/bias", f"{name}attn.c_proj.bias", 0),
        *_norm("feed_forward_norm", f"{name}ln_2"),
        Row("feed_forward/up/kernel", f"{name}mlp.c_fc.weight"),
        Row("feed_forward/up/bias", f"{name}mlp.c_fc.bias", 0),
        Row("feed_forward/down/kernel", f"{name}mlp.c_proj.weight"),
        Row("feed_forward/down/bias", f"{name}mlp.c_proj.bias", 0),
    )


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
    return Row(f"{ours}/scale", f"{theirs}.weight", 0), Row(f"{ours}/bias", f"{theirs}.bias", 0)


def _llama_description(config: Config) -> GPT:
    _only(config, "hidden_act", ("silu",))
    _only(config, "attention_bias", (False,))
    _only(config, "mlp_bias", (False,))
    _only(config, "use_sliding_window", (False,))
    heads = config["num_attention_heads"]
    _only(config, "head_dim", (None, config["hidden_size"] // heads))
    return GPT(
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
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


def _llama_root(gpt: GPT) -> tuple[Row, ...]:
    rows = (
        Row("token_embedding/table", "model.embed_tokens.weight"),
        Row("final_norm/scale", "model.norm.weight", 0),
    )
    return rows if gpt.tied_head else (*rows, Row("head/kernel", "lm_head.weight", transposed=True))


def _llama_block(gpt: GPT) -> tuple[Row, ...]:
    name = "model.layers.{layer}."
    normed = isinstance(gpt.attention, Softmax) and gpt.attention.qk_norm
    scales = ("query", "q"), ("key", "k")
    attention = ("query", "q", 1), ("key", "k", 1), ("value", "v", 1), ("output", "o", 2)
    return (
        Row("attention_norm/scale", f"{name}input_layernorm.weight", 0),
        *(
            Row(f"attention/{ours}/kernel", f"{name}self_attn.{theirs}_proj.weight", inputs, transposed=True)
            for ours, theirs, inputs in attention
        ),
        *(
            Row(f"attention/{ours}_scale", f"{name}self_attn.{theirs}_norm.weight", 0)
            for ours, theirs in (scales if normed else ())
        ),
        Row("feed_forward_norm/scale", f"{name}post_attention_layernorm.weight", 0),
        *(
            Row(f"feed_forward/{part}/kernel", f"{name}mlp.{part}_proj.weight", transposed=True)
            for part in ("gate", "up", "down")
        ),
    )


def _only(config: Config, name: str, admitted: tuple[Any, ...]) -> None:
    if name in config and config[name] not in admitted:
        raise UserError(
            f"config.json: {name} is {config[name]!r}; supported: {', '.join(map(repr, admitted))}"
        )


_GPT2_BUFFERS = r"\.attn\.(masked_)?bias$"
_LLAMA_BUFFERS = r"rotary_emb\.inv_freq$"
FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "gpt2", "GPT2LMHeadModel", _gpt2_description, _gpt2_config, _gpt2_root, _gpt2_block,
            "transformer.", _GPT2_BUFFERS,
        ),
        Family(
            "llama", "LlamaForCausalLM", _llama_description, _llama_config, _llama_root, _llama_block,
            "model.", _LLAMA_BUFFERS,
        ),
        Family(
            "qwen3", "Qwen3ForCausalLM", _llama_description, _llama_config, _llama_root, _llama_block,
            "model.", _LLAMA_BUFFERS,
        ),
    )
}  # fmt: skip
"""Every family, by ``model_type``."""


def of_config(config: Config) -> Family:
    """Returns the family of a ``config.json``; UserError, naming the supported ones, if there is none."""
    found = config.get("model_type")
    if found not in FAMILIES:
        raise UserError(f"model_type {found!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[found]


def of_model(model: Any) -> tuple[Family, dict[str, Any]]:
    """Returns the family that can express a model, and the model's configuration in it.

    Raises:
      UserError: none can; the message names the field that stands in the way.
    """
    reasons = []
    for family in FAMILIES.values() if isinstance(model, GPT) else ():
        config = {
            "model_type": family.model_type,
            "architectures": [family.architecture],
            **family.configure(model),
        }
        wanted, there = _essence(model), _essence(family.describe(config))
        differing = next((name for name in wanted if wanted[name] != there.get(name)), None)
        if differing is None:
            return family, config
        reasons.append(f"{family.model_type} has no {differing} {wanted[differing]!r}")
    why = "; ".join(reasons) or f"a {type(model).__name__} fits none of {', '.join(FAMILIES)}"
    raise UserError(f"this model cannot be exported: {why}")


def _essence(gpt: GPT) -> dict[str, Any]:
    """Returns what a description's function depends on, defaults resolved."""
    fields = {field.name: getattr(gpt, field.name) for field in dataclasses.fields(gpt)}
    for name in ("dropout", "depth", "remat", "engine", "dtype"):
        del fields[name]
    if not isinstance(gpt.positions, Learned):
        del fields["context"]
    return {**fields, "kv_heads": gpt.geometry.kv_heads, "feed_forward_width": gpt.hidden}
