"""BERT and RoBERTa of `transformers` with the head of a task, read in, and ours read by it (peers)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.attention.masks import Tokens
from research.data.wordpiece import MaskingTokenizer
from research.interchange.export import export_run
from research.interchange.runs import import_run
from research.training.trained import load

SIZES = {
    "vocab_size": 200, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "attn_implementation": "eager",
}  # fmt: skip
CASES = {
    "Bert rows": ("Bert", "ForSequenceClassification", ["no", "yes", "maybe"]),
    "Bert score": ("Bert", "ForSequenceClassification", ["LABEL_0"]),
    "Bert words": ("Bert", "ForTokenClassification", ["O", "B", "I", "E", "S"]),
    "Roberta rows": ("Roberta", "ForSequenceClassification", ["LABEL_0", "LABEL_1"]),
    "Roberta words": ("Roberta", "ForTokenClassification", ["O", "B", "I"]),
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of third parties


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_both_ways(name, peers, tmp_path):
    torch, transformers = peers
    family, task, labels = CASES[name]
    roberta = family == "Roberta"
    places = {"max_position_embeddings": 33, "type_vocab_size": 1} if roberta else {}
    config = getattr(transformers, f"{family}Config")(
        **{**SIZES, "max_position_embeddings": 32, **places},
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, family + task)(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = theirs.eval()
    theirs.save_pretrained(tmp_path / "theirs")
    MaskingTokenizer.train(["a small text", "abcdefghijklmnopqrstuvwxyz"], 120).save(
        tmp_path / "theirs" / "tokenizer.json"
    )
    import_run(tmp_path / "theirs", tmp_path / "run", print)
    trained = load(tmp_path / "run")
    assert trained.model.classes == len(labels) and trained.model.per_token == (task[3] == "T")

    tokens = np.random.default_rng(0).integers(5, 200, size=(60, 20))
    lengths = np.full(60, 20)
    lengths[3] = 7  # the rest of this row is padding
    tokens[3, 7:] = 0
    real = np.arange(20) < lengths[:, None]
    inputs = {"attention_mask": torch.from_numpy(real.astype(int))}
    types = None
    if not roberta:
        types = (np.arange(20) > 9).astype(np.int32)[None].repeat(60, 0)
        inputs["token_type_ids"] = torch.from_numpy(types.astype(int))
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens), **inputs).logits.numpy()
    place = Tokens.of_lengths(jnp.asarray(lengths, jnp.int32), 20)
    got = np.asarray(
        trained(jnp.asarray(tokens, jnp.int32), place, None if types is None else jnp.asarray(types))
    )
    kept = real if trained.model.per_token else np.full(60, True)
    assert got.shape == want.shape and np.abs(want).max() > 0.5
    np.testing.assert_allclose(got[kept], want[kept], atol=1e-4, rtol=1e-4)

    export_run(trained, tmp_path / "out", None, print)
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    again, report = type(theirs).from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()) and again.config.id2label == config.id2label
    with torch.no_grad():
        back = again.eval()(torch.from_numpy(tokens), **inputs).logits.numpy()
    np.testing.assert_array_equal(back[kept], want[kept])
