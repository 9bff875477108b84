"""Logits of every family of checkpoints beside those of `transformers`, in float32 and bfloat16.

    python experiments/benchmarks/parity.py --json parity.json

Needs the extra "peers". A small model of each family with seeded random weights, none of them 0 or 1, is
written by `transformers` and imported. Both read the same 2 rows of 600 tokens, which flash cuts into several
tiles. Errors are the largest |difference| to the float32 logits of `transformers` over all positions,
computed by its plain ("eager") attention; in brackets the share of positions with the same likeliest token.
The last column is the error of `transformers` in bfloat16 itself, which ours in bfloat16 compares with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from research.attention.masks import Tokens
from research.data.tokenizer import Tokenizer
from research.data.wordpiece import MaskingTokenizer
from research.interchange.runs import import_run
from research.models.transformer import Transformer
from research.training.trained import Trained, load

ROWS, LENGTH, VOCABULARY = 2, 600, 300
Logits = Callable[[Any, Any], np.ndarray]

_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 640,
    **_ENDS,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 640,
}  # fmt: skip
_T5 = {"vocab_size": VOCABULARY, "d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 96}
_BOTH = {"pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
_SIDES = {
    f"{side}_{field}": value
    for side in ("encoder", "decoder")
    for field, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 96))
}
_SPECIAL = {f"{name}_token_id": 2 for name in ("cls", "sep", "bos", "eos")}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", "LMHeadModel", {"vocab_size": VOCABULARY, "n_positions": 640, "n_embd": 64,
                                      "n_layer": 2, "n_head": 4, **_ENDS}),
    "Llama": ("Llama", "ForCausalLM", _DECODER),
    "Qwen3": ("Qwen3", "ForCausalLM", _DECODER),
    "BERT": ("Bert", "ForMaskedLM", _ENCODER),
    "BERT, rows": ("Bert", "ForSequenceClassification", {**_ENCODER, "num_labels": 5}),
    "RoBERTa": ("Roberta", "ForMaskedLM", {**_ENCODER, "pad_token_id": 0, "type_vocab_size": 1,
                                           "max_position_embeddings": 641}),
    "ModernBERT": ("ModernBert", "ForMaskedLM", {**_ENCODER, "num_hidden_layers": 4, "local_attention": 10,
                                                 "pad_token_id": 0, **_SPECIAL}),
    "Marian": ("Marian", "MTModel", {"vocab_size": VOCABULARY, "d_model": 64, "max_position_embeddings": 640,
                                     "scale_embedding": True, "activation_function": "swish",
                                     "forced_eos_token_id": None, **_SIDES, **_BOTH}),
    "T5": ("T5", "ForConditionalGeneration", {**_T5, **_BOTH}),
    "T5 1.1": ("T5", "ForConditionalGeneration", {**_T5, **_BOTH, "feed_forward_proj": "gated-gelu",
                                                  "tie_word_embeddings": False}),
}  # fmt: skip
"""Family -> prefix and suffix of the class in `transformers`, and its configuration."""


def made(name: str, place: Path) -> tuple[Any, Trained]:
    """Returns a random model of `transformers`, and the run that it was imported as."""
    prefix, suffix, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**fields, attn_implementation="eager")
    model = getattr(transformers, prefix + suffix)(config)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "embed_positions" not in label:  # Marian's are sinusoids
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval().save_pretrained(place / "checkpoint")
    texts = ["a small text", "abcdefghijklmnopqrstuvwxyz"]
    masked = "Bert" in prefix or "bert" in prefix
    tokenizer = MaskingTokenizer.train(texts, 120) if masked else Tokenizer.train_bpe(texts, 270)
    tokenizer.save(place / "checkpoint" / Tokenizer.FILE)
    import_run(place / "checkpoint", place / "run", lambda message: None)
    return model, load(place / "run")


def theirs(model: Any, tokens: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Returns the logits of a model of `transformers`."""
    inputs = torch.from_numpy(tokens)
    more = {"decoder_input_ids": inputs.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.to(dtype)(inputs, **more).logits.float().numpy()


def ours(run: Trained, tokens: np.ndarray, dtype: str, engine: str) -> np.ndarray:
    """Returns the logits of the imported run."""
    changed: dict[str, Any] = {"dtype": dtype, "engine": engine}
    model: Any = run.model
    if hasattr(model, "bert"):
        model = dataclasses.replace(model, bert=dataclasses.replace(model.bert, **changed))
    else:
        model = dataclasses.replace(model, **changed)
    inputs = jnp.asarray(tokens, jnp.int32)
    place = Tokens(jnp.arange(LENGTH, dtype=jnp.int32)[None], jnp.ones(inputs.shape, jnp.int32))
    arguments = (inputs, inputs[:, ::-1], place, place) if isinstance(model, Transformer) else (inputs, place)
    found = jax.jit(model.build().apply)({"params": run.params}, *arguments)
    return np.asarray(found[0] if isinstance(found, tuple) else found, np.float32)


def measure(name: str) -> dict[str, Any]:
    """Returns the errors of one family."""
    with tempfile.TemporaryDirectory() as place:
        model, run = made(name, Path(place))
        tokens = np.random.default_rng(0).integers(5, VOCABULARY, (ROWS, LENGTH))
        want = theirs(model, tokens, torch.float32)
        row: dict[str, Any] = {"family": name, "largest_logit": float(np.abs(want).max())}
        for dtype in ("float32", "bfloat16"):
            for engine in ("reference", "flash"):
                got = ours(run, tokens, dtype, engine)
                row[f"{engine} {dtype}"] = float(np.abs(got - want).max())
                row[f"{engine} {dtype} top"] = float((got.argmax(-1) == want.argmax(-1)).mean())
        own = theirs(model, tokens, torch.bfloat16)
        row["transformers bfloat16"] = float(np.abs(own - want).max())
        row["transformers bfloat16 top"] = float((own.argmax(-1) == want.argmax(-1)).mean())
        return row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    rows = [measure(name) for name in options.family or MODELS]
    columns = [f"{engine} {dtype}" for dtype in ("float32", "bfloat16") for engine in ("reference", "flash")]
    columns.append("transformers bfloat16")
    print(f"| family | largest logit | {' | '.join(columns)} |")
    print("|---|" + "---:|" * (len(columns) + 1))
    for row in rows:
        cells = [f"{row[name]:.1e} ({row[f'{name} top']:.1%})" for name in columns]
        print(f"| {row['family']} | {row['largest_logit']:.1f} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
