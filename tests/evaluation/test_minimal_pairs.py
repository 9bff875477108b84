"""Scores of sentences against a loop one token at a time, and bad files."""

from __future__ import annotations

import gzip
import json
import lzma
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Tokens
from research.data.masked_text import MaskedText
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError
from research.evaluation import minimal_pairs
from research.evaluation.minimal_pairs import (
    Pair,
    accuracies,
    log_likelihoods,
    pseudo_log_likelihoods,
    published,
    read_pairs,
)
from research.models.bert import BERT
from research.models.gpt import GPT
from research.training import grammar
from research.training.grammar import causal_score, masked_score

MASK = 4
SEQUENCES = [
    [2, *ids, 3] for ids in ([7, 8], [9], [5, 6, 7, 8, 9, 10, 11], [12, 5, 5], [6, 7, 8, 9, 11, 10, 5])
]


def trained(model):
    """What scoring needs of a run: random weights, far from uniform."""
    params = jax.jit(model.build().init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: 6 * leaf if leaf.ndim > 1 else leaf, params)
    return SimpleNamespace(
        experiment=SimpleNamespace(model=model), tokenizer=SimpleNamespace(mask=MASK), params=params
    )


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(minimal_pairs, "_TOKENS", 32)  # several batches of a width, the last one filled up


def test_pseudo_log_likelihood_is_that_of_a_loop_one_token_at_a_time(monkeypatch):
    run = trained(BERT(vocabulary=13, context=12, layers=1, width=16, heads=2, dropout=0.0, depth="unroll"))
    apply = jax.jit(run.experiment.model.build().apply)
    expected = []
    for ids in SEQUENCES:
        total = 0.0
        for place in range(1, len(ids) - 1):
            # Padded to one length, so that it compiles once.
            hidden = np.array([[*ids[:place], MASK, *ids[place + 1 :], *[0] * (9 - len(ids))]], np.int32)
            real = Tokens.of_lengths(jnp.array([len(ids)]), 9)
            logits = np.asarray(apply({"params": run.params}, hidden, real)[0], np.float64)[0, place]
            total += logits[ids[place]] - np.log(np.exp(logits).sum())
        expected.append(total)
    monkeypatch.setattr(minimal_pairs, "_TELL", -1.0)
    monkeypatch.setattr(minimal_pairs, "_AHEAD", 1)
    told: list[str] = []
    found = pseudo_log_likelihoods(masked_score(run), SEQUENCES, told.append)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    rows = sum(len(ids) - 2 for ids in SEQUENCES)
    assert len(told) > 1 and told[-1].startswith(f"scored {rows} of {rows} rows")


def test_log_likelihood_is_that_of_a_loop_one_token_at_a_time():
    run = trained(GPT(vocabulary=13, context=12, layers=1, width=16, heads=2, depth="unroll"))
    apply = jax.jit(run.experiment.model.build().apply)
    expected = []
    for ids in SEQUENCES:
        padded = np.array([[*ids, *[0] * (9 - len(ids))]], np.int32)  # a causal model sees none of it
        logits = np.asarray(apply({"params": run.params}, padded)[0], np.float64)[0]
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected.append(sum(scores[at, ids[at + 1]] for at in range(len(ids) - 1)))
    found = log_likelihoods(causal_score(run), SEQUENCES, print)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_pair_of_which_too_little_is_read_is_refused_and_other_cuts_are_counted(tmp_path):
    run = trained(BERT(vocabulary=64, context=5, layers=1, width=16, heads=2, dropout=0.0, depth="unroll"))
    run.tokenizer = MaskingTokenizer.train(["a b c d e"] * 3, 64)
    run.experiment.data, run.directory, run.step = MaskedText(), tmp_path, 1
    file, said = tmp_path / "pairs.jsonl", []
    pairs = [("a b", "b a"), ("a b c d", "b a c d"), ("e e e e", "e e e e")]
    records = [{**RECORD, "sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
    file.write_text("\n".join(map(json.dumps, records)))
    assert grammar.evaluate(run, str(file), report=said.append)["truncated"] == 3
    assert "3 sentences are longer than the model's context, and cut" in said
    records[1] |= {"sentence_good": "a b c d", "sentence_bad": "a b c e"}
    file.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(UserError, match=r"order: 'a b c d' and 'a b c e' differ only behind the 5 tokens"):
        grammar.evaluate(run, str(file), report=said.append)


def test_accuracies_are_means_over_paradigms_and_ties_are_wrong():
    pairs = [Pair("g", "b", *names) for names in (("a", "x"), ("a", "x"), ("b", "x"), ("c", "y"), ("c", "y"))]
    good = np.array([1.0, 0.0, 3.0, 2.0, 2.0])
    found = accuracies(pairs, good, np.array([0.0, 1.0, 2.0, 2.0, 1.0]))
    assert found["paradigms"] == {"a": 0.5, "b": 1.0, "c": 0.5}
    assert found["phenomena"] == {"x": 0.75, "y": 0.5}
    assert found["all"]["mean"] == pytest.approx(2 / 3)


RECORD = {"sentence_good": "a b", "sentence_bad": "b a", "UID": "order", "linguistics_term": "syntax"}


def test_files_are_read_plain_and_compressed_and_published_rows_beside_them(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(RECORD) + "\n\n" + json.dumps(RECORD))
    with lzma.open(tmp_path / "pairs.jsonl.xz", "wt") as file:
        file.write(json.dumps(RECORD))
    one = Pair("a b", "b a", "order", "syntax")
    assert read_pairs(tmp_path / "pairs.jsonl") == read_pairs(tmp_path) == [one, one]
    assert read_pairs(tmp_path / "pairs.jsonl.xz") == [one]
    assert published(tmp_path, [one]) == {}
    summary = [{"UID": "order", "linguistics_term": "syntax", "gpt2": 0.9}, {"UID": "other", "gpt2": 0.1}]
    (tmp_path / "models_summary.jsonl").write_text("\n".join(map(json.dumps, summary)))
    assert published(tmp_path / "pairs.jsonl.xz", [one]) == {"gpt2": {"syntax": 0.9, "mean": 0.9}}
    assert read_pairs(tmp_path) == [one, one]  # the summary has no pairs
    (tmp_path / "pairs.jsonl").unlink()
    assert read_pairs(tmp_path) == [one]  # in BLiMP's directory they are compressed
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.write(json.dumps({**RECORD, "UID": "more"}))
    assert [pair.paradigm for pair in read_pairs(tmp_path)] == ["more", "order"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"pairs.jsonl, line 2: not JSON"),
        ("[1]", r"line 2: a list, where a JSON object should be"),
        (json.dumps({**RECORD, "UID": 3}), r"line 2: field 'UID' is 3, not text"),
        (
            json.dumps({k.replace("bad", "worse"): v for k, v in RECORD.items()}),
            r"line 2: no field 'sentence_bad'; did you mean 'sentence_worse'\?",
        ),
    ],
)
def test_bad_lines_are_named_by_file_line_and_field(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(RECORD) + "\n" + line)
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match="no file of minimal pairs"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "pairs.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"pairs.jsonl is empty"):
        read_pairs(tmp_path / "pairs.jsonl")
