"""Marian and T5 of `transformers` read in, and ours read by it: logits, greedy and beam search (peers)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.attention.masks import Tokens
from research.data.tokenizer import Tokenizer
from research.inference.beam import Beam, beam_search
from research.interchange.export import export_run
from research.interchange.runs import import_run
from research.training.trained import load

PAD, END = 290, 0

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of third parties


def made(name, torch, transformers):
    """A small model with no parameter left 0 or 1."""
    torch.manual_seed(0)
    ends = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
    eager = {"attn_implementation": "eager"}
    if name == "marian":
        sides = {
            f"{side}_{field}": value
            for side in ("encoder", "decoder")
            for field, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 40))
        }
        config = transformers.MarianConfig(
            vocab_size=300, d_model=24, max_position_embeddings=128, scale_embedding=True,
            activation_function="swish", forced_eos_token_id=None, **sides, **ends, **eager,
        )  # fmt: skip
        model = transformers.MarianMTModel(config)
        with torch.no_grad():
            model.final_logits_bias.copy_(0.1 * torch.randn(1, 300))
            model.final_logits_bias[0, END] = 4.0  # targets of several lengths
    else:
        newer = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 8}
        config = transformers.T5Config(
            vocab_size=300, d_model=24, num_layers=2, num_heads=4, d_ff=40,
            **(newer if name == "t5 1.1" else {"d_kv": 6}), **ends, **eager,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "embed_positions" not in label:
                parameter.add_((0.2 if name == "marian" else 0.1) * torch.randn_like(parameter))
    return model.eval()


def last_is_end(torch, transformers):
    """What lets the 64th token be the end alone, at its own probability (theirs would make that 1)."""

    class LastIsEnd(transformers.LogitsProcessor):
        def __call__(self, ids, scores):
            if ids.shape[1] < 64:
                return scores
            only = torch.full_like(scores, -torch.inf)
            only[:, END] = scores[:, END]
            return only

    return LastIsEnd()


@pytest.mark.parametrize("name", ["marian", "t5", "t5 1.1"])
def test_logits_and_searches_agree_both_ways(name, peers, tmp_path):
    torch, transformers = peers
    theirs = made(name, torch, transformers)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer = Tokenizer.train_bpe(["a quick brown fox"] * 3, 270)
    tokenizer._backend.add_special_tokens([f"<extra {i}>" for i in range(PAD - tokenizer.vocabulary)])
    tokenizer._backend.add_special_tokens(["<pad>"])
    tokenizer.save(tmp_path / "theirs" / "tokenizer.json")
    import_run(tmp_path / "theirs", tmp_path / "run", print)
    trained = load(tmp_path / "run")
    assert (trained.tokenizer.start, trained.tokenizer.end_of_text) == (PAD, END)

    rng = np.random.default_rng(0)
    source, target = rng.integers(1, 280, size=(20, 13)), rng.integers(1, 280, size=(20, 50))
    lengths = np.full(20, 13)
    lengths[3], source[3, 7:] = 7, PAD
    mask = torch.from_numpy((np.arange(13) < lengths[:, None]).astype(int))
    with torch.no_grad():
        want = theirs(
            torch.from_numpy(source), attention_mask=mask, decoder_input_ids=torch.from_numpy(target)
        ).logits.numpy()
    place = Tokens.of_lengths(jnp.asarray(lengths, jnp.int32), 13)
    ours = dataclasses.replace(trained.model, dropout=0.0)
    for engine in ("reference", "flash") if name == "t5" else ("reference",):
        arrays = (jnp.asarray(side, jnp.int32) for side in (source, target))
        model = dataclasses.replace(ours, engine=engine)
        segments = jnp.ones((20, 50), jnp.int32)
        there = Tokens(jnp.arange(50, dtype=jnp.int32)[None], segments)
        got = jax.jit(model.build().apply)({"params": trained.params}, *arrays, place, there)
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
        assert np.abs(want).max() > 1 and (np.asarray(got).argmax(-1) == want.argmax(-1)).all()

    rows = 6
    for beams in {"marian": (1, 4), "t5": (4,), "t5 1.1": (1,)}[name]:
        with torch.no_grad():
            drawn = theirs.generate(
                torch.from_numpy(source[:rows]), attention_mask=mask[:rows], max_new_tokens=64, min_length=0,
                do_sample=False, num_beams=beams, length_penalty=0.0, early_stopping=False,
                bad_words_ids=[[PAD]], logits_processor=[last_is_end(torch, transformers)],
            ).numpy()[:, 1:]  # fmt: skip
        search = beam_search(ours.decoder(), Beam(beams, length_penalty=0.0), slots=64, end=END, start=PAD)
        limits = jnp.full(rows, 64, jnp.int32)
        found = search(
            trained.params,
            jnp.asarray(source[:rows], jnp.int32),
            jnp.asarray(lengths[:rows], jnp.int32),
            limits,
        )
        best = np.asarray(found.tokens[:, 0])
        if beams > 1:
            assert len({tuple(row) for row in drawn.tolist()}) > 1
        for row in range(rows):
            said = [int(token) for token in drawn[row] if token != PAD]
            assert best[row, : len(said)].tolist() == said and (best[row, len(said) :] == END).all()

    export_run(trained, tmp_path / "out", None, print)
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    again = type(theirs).from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    with torch.no_grad():
        back = again(
            torch.from_numpy(source), attention_mask=mask, decoder_input_ids=torch.from_numpy(target)
        ).logits.numpy()
    np.testing.assert_array_equal(back, want)
    assert again.generation_config.decoder_start_token_id == PAD
