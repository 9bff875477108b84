"""Encoder families: BERT, RoBERTa and ModernBERT."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from research.attention.catalogue import Attention, Interleaved
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Learned, Rotary
from research.errors import UserError
from research.interchange.family import Config, Family, Layout, only, shared_rate
from research.interchange.layouts import Row, linear, norm, stacked
from research.models.bert import BERT

_PAIR_HEAD = "cls.seq_relationship.weight"


def _bert_description(config: Config, names: Collection[str]) -> BERT:
    only(config, "hidden_act", ("gelu",))
    only(config, "position_embedding_type", ("absolute",))
    only(config, "is_decoder", (False,))
    only(config, "tie_word_embeddings", (True,))
    roberta = config["model_type"] == "roberta"
    offset = config["pad_token_id"] + 1 if roberta else 0
    return BERT(
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"] - offset,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        feed_forward_width=config["intermediate_size"],
        positions=Learned(offset),
        token_types=config["type_vocab_size"],
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        pooler=_PAIR_HEAD in names,
        dropout=shared_rate(config, "hidden_dropout_prob", "attention_probs_dropout_prob"),
    )


def _bert_config(bert: BERT) -> dict[str, Any]:
    offset = bert.positions.offset if isinstance(bert.positions, Learned) else 0
    return {
        "vocab_size": bert.vocabulary,
        "max_position_embeddings": bert.context + offset,
        "num_hidden_layers": bert.layers,
        "hidden_size": bert.width,
        "num_attention_heads": bert.heads,
        "intermediate_size": bert.hidden,
        "hidden_act": "gelu",
        "type_vocab_size": bert.token_types,
        "layer_norm_eps": bert.norm_epsilon,
        "hidden_dropout_prob": bert.dropout,
        "attention_probs_dropout_prob": bert.dropout,
        "tie_word_embeddings": True,
    }


def _roberta_config(bert: BERT) -> dict[str, Any]:
    # Positions count from the row after the padding token's.
    offset = bert.positions.offset if isinstance(bert.positions, Learned) else 0
    return {**_bert_config(bert), "pad_token_id": offset - 1}


def body(bert: BERT, prefix: str) -> Iterator[Any]:
    """Yields the rows of BERT's body."""
    name = f"{prefix}encoder.layer.{{layer}}."
    block = (
        *(
            row
            for part in ("query", "key", "value")
            for row in linear(f"attention/{part}", f"{name}attention.self.{part}")
        ),
        *linear("attention/output", f"{name}attention.output.dense", 2),
        *norm("attention_norm", f"{name}attention.output.LayerNorm"),
        *linear("feed_forward/up", f"{name}intermediate.dense"),
        *linear("feed_forward/down", f"{name}output.dense"),
        *norm("feed_forward_norm", f"{name}output.LayerNorm"),
    )
    embeddings = f"{prefix}embeddings."
    yield Row("token_embedding/table", f"{embeddings}word_embeddings.weight")
    yield Row("input/position_embedding/table", f"{embeddings}position_embeddings.weight")
    yield Row("input/type_embedding/table", f"{embeddings}token_type_embeddings.weight")
    yield from norm("input/norm", f"{embeddings}LayerNorm")
    yield from stacked("stack", block, bert.layers)


def _bert_layout(bert: BERT) -> Layout:
    head = "cls.predictions."
    pair = (
        *linear("pooler", "bert.pooler.dense"),
        *linear("pair_head", _PAIR_HEAD.removesuffix(".weight")),
    )
    return (
        *body(bert, "bert."),
        *linear("token_head/transform", f"{head}transform.dense"),
        *norm("token_head/norm", f"{head}transform.LayerNorm"),
        Row("token_head/bias", f"{head}bias", None),
        *(pair if bert.pooler else ()),
    )


def _roberta_layout(bert: BERT) -> Layout:
    return (
        *body(bert, "roberta."),
        *linear("token_head/transform", "lm_head.dense"),
        *norm("token_head/norm", "lm_head.layer_norm"),
        Row("token_head/bias", "lm_head.bias", None),
    )


def _modernbert_description(config: Config, names: Collection[str]) -> BERT:
    del names
    only(config, "hidden_activation", ("gelu",))
    only(config, "classifier_activation", ("gelu",))
    only(config, "tie_word_embeddings", (True,))
    only(config, "decoder_bias", (True,))
    biases = [bool(config.get(f"{name}_bias", False)) for name in ("attention", "mlp", "norm", "classifier")]
    if len(set(biases)) > 1:
        raise UserError("config.json: biases in some maps and norms but not in others; we have all or none")
    bases = _rotary_bases(config)
    return BERT(
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        attention=_pattern(config),
        feed_forward_width=config["intermediate_size"],
        feed_forward="exact-geglu",
        positions=Rotary(base=bases[0], local_base=bases[1]),
        token_types=0,
        norm_epsilon=config.get("norm_eps", 1e-5),
        lead=True,
        placement="pre",
        bias=biases[0],
        pooler=False,
        dropout=shared_rate(
            {"attention_dropout": 0.0, "mlp_dropout": 0.0, "embedding_dropout": 0.0, **config},
            "attention_dropout", "mlp_dropout", "embedding_dropout",
        ),
    )  # fmt: skip


def _rotary_bases(config: Config) -> tuple[float, float]:
    """Returns the bases of global and local layers; `transformers` has kept them in two places."""
    found = []
    for kind, older, default in (
        ("full_attention", "global_rope_theta", 160_000.0),
        ("sliding_attention", "local_rope_theta", 10_000.0),
    ):
        rope = (config.get("rope_parameters") or {}).get(kind) or {}
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"config.json: rope_parameters of type {rope['rope_type']!r}; only 'default' is")
        value = rope.get("rope_theta", config.get(older, default))
        found.append(default if value is None else float(value))
    return found[0], found[1]


def _pattern(config: Config) -> Attention:
    """Returns the layers after the first as a repeating pattern."""
    layers, every = config["num_hidden_layers"], config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    every = next((i for i in range(1, layers) if kinds[i] == "full_attention"), layers)
    regular = all((kind == "full_attention") == (i % every == 0) for i, kind in enumerate(kinds))
    if not regular or (layers - 1) % every:
        raise UserError(
            f"config.json: {layers} layers with global attention in {kinds.count('full_attention')} of them; "
            "supported: a global one, and then groups of some local and one global"
        )
    if every == 1:
        return Softmax()
    window = 2 * (config.get("local_attention", 128) // 2) + 1
    return Interleaved(first=SlidingWindow(window=window), firsts=every - 1, second=Softmax(), seconds=1)


def _modernbert_config(bert: BERT) -> dict[str, Any]:
    attention, positions = bert.attention, bert.positions
    every, window = 1, 129
    if isinstance(attention, Interleaved):
        every = attention.firsts + attention.seconds
        window = attention.first.window if isinstance(attention.first, SlidingWindow) else window
    base = positions.base if isinstance(positions, Rotary) else 0.0
    local = positions.local_base if isinstance(positions, Rotary) else None
    bases = {"full_attention": base, "sliding_attention": base if local is None else local}
    kinds = ["sliding_attention" if i % every else "full_attention" for i in range(bert.layers)]
    return {
        "vocab_size": bert.vocabulary,
        "max_position_embeddings": bert.context,
        "num_hidden_layers": bert.layers,
        "hidden_size": bert.width,
        "num_attention_heads": bert.heads,
        "intermediate_size": bert.hidden,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_eps": bert.norm_epsilon,
        "global_attn_every_n_layers": every,
        "layer_types": kinds,
        "local_attention": window - 1,
        "global_rope_theta": bases["full_attention"],
        "local_rope_theta": bases["sliding_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
        },
        **{f"{name}_bias": bert.bias for name in ("attention", "mlp", "norm", "classifier")},
        "decoder_bias": True,
        **{f"{name}_dropout": bert.dropout for name in ("attention", "mlp", "embedding")},
        "tie_word_embeddings": True,
    }


def _modernbert_layout(bert: BERT) -> Layout:
    name, bias = "model.layers.{layer}.", bert.bias

    def parts(ours: tuple[str, ...], theirs: str) -> Iterator[Row]:
        for part, path in enumerate(ours):
            yield Row(f"{path}/kernel", f"{theirs}.weight", 1, True, part, len(ours))
            if bias:
                yield Row(f"{path}/bias", f"{theirs}.bias", None, False, part, len(ours))

    block = (
        *parts(("attention/query", "attention/key", "attention/value"), f"{name}attn.Wqkv"),
        *linear("attention/output", f"{name}attn.Wo", 2, bias=bias),
        *norm("feed_forward_norm", f"{name}mlp_norm", bias=bias),
        *parts(("feed_forward/gate", "feed_forward/up"), f"{name}mlp.Wi"),
        *linear("feed_forward/down", f"{name}mlp.Wo", bias=bias),
    )
    normed = (*norm("attention_norm", f"{name}attn_norm", bias=bias), *block)
    return (
        Row("token_embedding/table", "model.embeddings.tok_embeddings.weight"),
        *norm("input/norm", "model.embeddings.norm", bias=bias),
        *stacked("lead", block, 1),
        *stacked("stack", normed, bert.layers - 1, period=len(bert.attention.layers()), first=1),
        *norm("final_norm", "model.final_norm", bias=bias),
        *linear("token_head/transform", "head.dense", bias=bias),
        *norm("token_head/norm", "head.norm", bias=bias),
        Row("token_head/bias", "decoder.bias", None),
    )


# Of checkpoints from before 2019, and masks and poolers that no head here reads.
_OLD_NORMS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
_UNUSED = r"embeddings\.(position|token_type)_ids$|pooler\.dense\.(weight|bias)$"
BERT_ = Family(
    "bert", lambda bert: "BertForPreTraining" if bert.pooler else "BertForMaskedLM", BERT,
    _bert_description, _bert_config, _bert_layout, ignored=_UNUSED, renamed=_OLD_NORMS,
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)  # fmt: skip
ROBERTA = Family(
    "roberta", lambda _: "RobertaForMaskedLM", BERT, _bert_description, _roberta_config, _roberta_layout,
    ignored=_UNUSED, renamed=_OLD_NORMS,
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
)  # fmt: skip
MODERNBERT = Family(
    "modernbert", lambda _: "ModernBertForMaskedLM", BERT, _modernbert_description, _modernbert_config,
    _modernbert_layout, tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)  # fmt: skip
