"""BERT, RoBERTa and ModernBERT of `transformers` read in, and ours read by it (peers)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.attention.masks import Tokens
from research.data.wordpiece import MaskingTokenizer
from research.interchange.export import export_run
from research.interchange.runs import import_run
from research.training.trained import load

NASTY = [
    "the cat sat on the mat", "Naïve café ☕ 日本語", "  two  spaces\t\r\n", "a" * 150, "�\u200b\x00é́",
    "don't—stop…", "", "İstanbul ǅ ß", "x=1;y[2]", "👩‍👩‍👧 emoji", "ﬁ ligature", "١٢٣",
]  # fmt: skip
SIZES = {
    "vocab_size": 300, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
BASES = {"full_attention": 700.0, "sliding_attention": 70.0}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of third parties


def made(name, torch, transformers):
    """A small model with no parameter left 0 or 1."""
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager"}
    if name.startswith("bert"):
        config = transformers.BertConfig(**SIZES, **eager)
        model = transformers.BertForPreTraining if "pairs" in name else transformers.BertForMaskedLM
    elif name == "roberta":
        sizes = {**SIZES, "max_position_embeddings": 65}
        config = transformers.RobertaConfig(**sizes, type_vocab_size=1, pad_token_id=0, **eager)
        model = transformers.RobertaForMaskedLM
    else:
        sizes = {**SIZES, "num_hidden_layers": 4, "local_attention": 10}
        rope = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in BASES.items()}
        special = {f"{name}_token_id": 2 for name in ("cls", "sep", "bos", "eos")}
        config = transformers.ModernBertConfig(
            **sizes, rope_parameters=rope, pad_token_id=0, **special, **eager
        )
        model = transformers.ModernBertForMaskedLM
    model = model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", ["bert", "bert with pairs", "roberta", "modernbert"])
def test_logits_and_tokens_agree_both_ways(name, peers, tmp_path):
    torch, transformers = peers
    theirs = made(name, torch, transformers)
    theirs.save_pretrained(tmp_path / "theirs")
    MaskingTokenizer.train([*(text.lower() for text in NASTY), "abcdefghijklmnopqrstuvwxyz"], 200).save(
        tmp_path / "theirs" / "tokenizer.json"
    )
    import_run(tmp_path / "theirs", tmp_path / "run", print)
    trained = load(tmp_path / "run")
    assert trained.model.pooler == ("pairs" in name)

    tokens = np.random.default_rng(0).integers(5, 300, size=(20, 50))
    lengths = np.full(20, 50)
    lengths[3] = 17  # the rest of this row is padding
    tokens[3, 17:] = 0
    inputs = {"attention_mask": torch.from_numpy((np.arange(50) < lengths[:, None]).astype(int))}
    types = None
    if name.startswith("bert"):
        types = (np.arange(50) > 20).astype(int)[None].repeat(20, 0)
        inputs["token_type_ids"] = torch.from_numpy(types)
    with torch.no_grad():
        found = theirs(torch.from_numpy(tokens), **inputs)
    want = (found.prediction_logits if "pairs" in name else found.logits).numpy()
    real = np.arange(50) < lengths[:, None]
    place = Tokens.of_lengths(jnp.asarray(lengths, jnp.int32), 50)
    arguments = (
        jnp.asarray(tokens, jnp.int32),
        place,
        None if types is None else jnp.asarray(types, jnp.int32),
    )
    for engine in ("reference", "flash"):
        model = dataclasses.replace(trained.model, dropout=0.0, engine=engine)
        got, pair = jax.jit(model.build().apply)({"params": trained.params}, *arguments)
        np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=1e-4, rtol=1e-4)
        assert (np.asarray(got).argmax(-1) == want.argmax(-1))[real].all() and np.abs(want).max() > 1
    if "pairs" in name:
        np.testing.assert_allclose(pair, found.seq_relationship_logits.numpy(), atol=1e-4, rtol=1e-4)

    export_run(trained, tmp_path / "out", None, print)
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    again, report = type(theirs).from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        back = again.eval()(torch.from_numpy(tokens), **inputs)
    back = (back.prediction_logits if "pairs" in name else back.logits).numpy()
    np.testing.assert_array_equal(back[real], want[real])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in NASTY:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == trained.tokenizer.encode(text)
    assert tokenizer.mask_token_id == trained.tokenizer.mask
    ours = trained.tokenizer
    one, two = ours.encode_batch(["the cat", "sat"])
    framed = tokenizer("the cat", "sat")["input_ids"]
    assert framed == [ours.first, *one, ours.separator, *two, ours.separator]
