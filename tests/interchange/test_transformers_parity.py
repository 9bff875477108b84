"""Models of `transformers` read in, and ours read by it: the same logits, tokens and greedy text (peers)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizer import Tokenizer
from research.inference.sampling import Decoding, sample
from research.interchange.export import export_run
from research.interchange.runs import import_run
from research.training.trained import load

TEXTS = ["def f(x):\n    return x", "naïve café ☕ 日本", "  two  spaces\t\r\n", "a" * 70, "�\u200b"]
SIZES = {
    "vocab_size": 300, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 80,
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of third parties


def made(name, torch, transformers):
    """A small model with no parameter left 0 or 1."""
    ends = {"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=300, n_positions=80, n_embd=24, n_layer=2, n_head=4, n_inner=40, **ends
        )
        model = transformers.GPT2LMHeadModel(config)
    elif name == "qwen3":
        model = transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                **{**SIZES, "head_dim": 8}, tie_word_embeddings=True, rms_norm_eps=1e-2, **ends
            )
        )
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_theta=5000.0, **ends))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_logits_and_greedy_text_agree_both_ways(name, peers, tmp_path):
    torch, transformers = peers
    theirs = made(name, torch, transformers)
    theirs.save_pretrained(tmp_path / "theirs")
    Tokenizer.train_bpe(TEXTS * 3, 280).save(tmp_path / "theirs" / "tokenizer.json")
    import_run(tmp_path / "theirs", tmp_path / "run", print)
    trained = load(tmp_path / "run")
    model = dataclasses.replace(trained.experiment.model, dropout=0.0)

    tokens = np.random.default_rng(0).integers(0, 300, size=(20, 50))
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens)).logits.numpy()
    got, _ = jax.jit(model.build().apply)({"params": trained.params}, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
    assert np.abs(want).max() > 1 and (np.asarray(got).argmax(-1) == want.argmax(-1)).all()

    prompt = tokens[0, :8].tolist()
    with torch.no_grad():
        drawn = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
    ours = sample(model, trained.params, [prompt], tokens=64, how=Decoding(temperature=0.0))
    assert ours[0] == drawn[0, 8:].tolist()

    export_run(trained, tmp_path / "out", None, print)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    with torch.no_grad():
        back = again.eval()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_array_equal(back, want)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == trained.tokenizer.encode(text)
