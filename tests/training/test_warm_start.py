"""Warm starts: what is taken by which rule, tables that grow, models of other kinds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.models.gpt import GPT
from research.models.transformer import Transformer
from research.objectives.masked_lm import MaskedLM
from research.objectives.translation import Translation
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Bitext, Checkpointing, Experiment
from research.training.initial import LoRA, WarmStart
from research.training.paths import path_name
from research.training.program import functions
from research.training.run_directory import claim
from research.training.state import State
from research.training.trained import load
from research.training.validity import validate
from research.training.warm_start import started_from, warm_start

OLD = Experiment(
    name="old", model=GPT(vocabulary=260, context=8, layers=2, width=8, heads=2), data=TextData(length=8)
)
TOKENS, POSITIONS = "token_embedding/table", "position_embedding/table"


def by_path(params):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def drawn(experiment, seed):
    """A state with random parameters, of shapes that nothing was compiled for."""
    rng = np.random.default_rng(seed)
    shapes = functions(experiment).abstract_state.params
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    return State(jnp.zeros((), jnp.int32), params, None, None, jnp.ones((), bool))


def saved(path, experiment, tokenizer):
    """A run with one checkpoint; returns its parameters."""
    state = drawn(experiment, 0)
    with claim(path, to_json(experiment)) as run:
        run.keep({Tokenizer.FILE: tokenizer.to_json()})
        with Checkpoints(run, Checkpointing()) as checkpoints:
            checkpoints.save(3, {"params": state.params}, None, {}, {})
    return by_path(state.params)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "old"
    return str(path), saved(path, OLD, Tokenizer.characters(["abc"]))


def start(experiment):
    """The parameters before and after a warm start, and what was reported."""
    said = []
    fresh = drawn(experiment, 1)
    return by_path(fresh.params), by_path(warm_start(experiment, fresh, said.append).params), said


def test_everything_is_taken_and_said(old):
    run, there = old
    experiment = started_from(dataclasses.replace(OLD, model=GPT()), run)
    assert experiment.model == OLD.model and experiment.data.tokenizer == f"{run}/tokenizer.json"
    _, after, said = start(experiment)
    assert after.keys() == there.keys() and all(np.array_equal(after[name], there[name]) for name in there)
    assert said[0].startswith(f"from {run} at step 3: {len(there)} arrays, ")
    assert said[1:] == ["new: none", "of the run's, not used: none"]


def test_rows_of_tokens_stay_those_of_the_same_tokens(old):
    run, there = old
    more, other = Tokenizer.characters(["abcz"]), Tokenizer.characters(["abd"])
    experiment = dataclasses.replace(OLD, initial=WarmStart(run))
    state = drawn(experiment, 1)
    kept = by_path(warm_start(experiment, state, lambda line: None, more).params)
    assert np.array_equal(kept[TOKENS], there[TOKENS])
    with pytest.raises(
        UserError, match=r"token 3 is 'c' in .*, and 'd' to data.tokenizer: use the run's"
    ) as error:
        warm_start(experiment, state, lambda line: None, other)
    assert str(error.value).endswith(f"--initial.rules 'fresh {TOKENS}'")
    without = dataclasses.replace(experiment, initial=WarmStart(run, rules=(f"fresh {TOKENS}",)))
    assert TOKENS in by_path(warm_start(without, state, lambda line: None, other).params)


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_the_runs(tmp_path):
    small = dataclasses.replace(OLD, model=dataclasses.replace(OLD.model, vocabulary=4, layers=1))
    saved(tmp_path / "run", small, Tokenizer.characters(["abc"]))
    assert load(tmp_path / "run").tokenizer.vocabulary == 4
    Tokenizer.characters(["abcd"]).save(tmp_path / "run" / "tokenizer.json")
    with pytest.raises(
        UserError, match=r"tokenizer.json has 5 tokens, the model's vocabulary only 4: it is not"
    ):
        load(tmp_path / "run")


def test_rules_in_their_order(old):
    run, there = old
    rules = (
        r"take layers?/none", r"rename final_norm kept_norm", "rename kept_norm final_norm",
        "take attention/query", "skip stack/.*attention/", "skip position", "fresh final_norm/bias",
    )  # fmt: skip
    experiment = dataclasses.replace(OLD, initial=WarmStart(run, rules))
    validate(experiment)
    before, after, said = start(experiment)
    for name in there:
        dropped = ("attention/" in name and "query" not in name) or name in (POSITIONS, "final_norm/bias")
        assert np.array_equal(after[name], (before if dropped else there)[name]), name
    unused = said[-1]
    assert "final_norm/bias" in unused and POSITIONS in unused and "attention/query" not in unused
    assert "stack/blocks/attention/output/bias" in said[-2]


def test_tokens_and_positions_may_be_more_or_fewer(old):
    run, there = old
    wider = dataclasses.replace(OLD.model, vocabulary=300, context=15)
    before, after, said = start(dataclasses.replace(OLD, model=wider, initial=WarmStart(run)))
    np.testing.assert_array_equal(after[TOKENS], np.concatenate([there[TOKENS], before[TOKENS][260:]]))
    # 8 rows spread over 15: every other one is the run's, and the others lie halfway.
    np.testing.assert_allclose(after[POSITIONS][::2], there[POSITIONS], atol=1e-6)
    between = (there[POSITIONS][1:] + there[POSITIONS][:-1]) / 2
    np.testing.assert_allclose(after[POSITIONS][1::2], between, atol=1e-6)
    assert said[1] == (f"resized: {POSITIONS} from 8 x 8 to 15 x 8, {TOKENS} from 260 x 8 to 300 x 8")
    narrow = dataclasses.replace(OLD.model, vocabulary=200, context=3)
    _, after, _ = start(dataclasses.replace(OLD, model=narrow, initial=WarmStart(run)))
    np.testing.assert_array_equal(after[TOKENS], there[TOKENS][:200])
    np.testing.assert_array_equal(after[POSITIONS], there[POSITIONS][:3])
    other = dataclasses.replace(OLD.model, width=12)
    with pytest.raises(UserError, match=r"final_norm/bias is 12 here and 8 in .*the model must be the run's"):
        start(dataclasses.replace(OLD, model=other, initial=WarmStart(run)))


def test_gpt_blocks_become_a_decoder_or_an_encoder(old):
    run, there = old
    model = Transformer(
        vocabulary=260, layers=2, width=8, heads=2, feed_forward="gelu", placement="pre", positions=None
    )
    experiment = Experiment(
        name="new", model=model, data=Bitext(corpus="files", length=16), objective=Translation()
    )
    started = started_from(experiment, run)
    assert started.model == model
    before, after, said = start(started)
    name = "blocks/feed_forward/up/kernel"
    np.testing.assert_array_equal(after[f"decoder/{name}"], there[f"stack/{name}"])
    np.testing.assert_array_equal(after["decoder_norm/scale"], there["final_norm/scale"])
    np.testing.assert_array_equal(after[f"encoder/{name}"], before[f"encoder/{name}"])
    assert "decoder/blocks/cross_attention/key/bias" in said[-2] and POSITIONS in said[-1]
    rules = ("rename ^stack/ encoder/",)
    _, after, _ = start(dataclasses.replace(started, initial=WarmStart(run, rules)))
    np.testing.assert_array_equal(after[f"encoder/{name}"], there[f"stack/{name}"])


def test_an_encoder_and_a_classifier(tmp_path):
    bert = BERT(vocabulary=100, context=16, layers=1, width=8, heads=2)
    tokenizer = MaskingTokenizer.train(["abc"], 64)
    experiment = Experiment(name="b", model=bert, data=MaskedText(length=16), objective=MaskedLM())
    there = saved(tmp_path / "b", experiment, tokenizer)
    tuned = dataclasses.replace(
        experiment, model=Classifier(bert=bert), initial=WarmStart(str(tmp_path / "b"))
    )
    fresh = drawn(experiment, 1)
    params = {"bert": dict(fresh.params), "class_head": {"bias": jnp.ones(2)}}
    del params["bert"]["token_head"]
    said = []
    after = warm_start(tuned, dataclasses.replace(fresh, params=params), said.append).params
    found = by_path(after)
    assert all(
        np.array_equal(found[name], there[name.removeprefix("bert/")]) for name in found if "b" < name < "c"
    )
    assert said[1] == "new: class_head/bias" and "bert/token_head/bias" in said[2]


@pytest.mark.parametrize(
    ("initial", "line"),
    [
        (WarmStart("x", ("leave it",)), "'leave it' is no rule: take PATTERN, skip PATTERN, fresh PATTERN"),
        (WarmStart("x", ("skip (",)), "'skip (' has no regular expression: missing )"),
        (WarmStart(), "initial.run is empty; --from RUN names the run"),
        (WarmStart("x", adapters=LoRA(rank=0)), "initial.adapters.rank is 0; it must be at least 1"),
        (WarmStart("x", adapters=LoRA(targets="[")), "initial.adapters.targets '[' is no regular expression"),
    ],
)
def test_a_warm_start_that_is_none_is_one_line(initial, line):
    with pytest.raises(UserError) as error:
        validate(dataclasses.replace(OLD, initial=initial))
    assert line in str(error.value)


def test_nothing_in_common(old):
    with pytest.raises(UserError, match="has no parameter in common with this model"):
        start(dataclasses.replace(OLD, initial=WarmStart(old[0], ("skip .*",))))
    with pytest.raises(UserError, match="two parameters of the run are called x"):
        start(dataclasses.replace(OLD, initial=WarmStart(old[0], ("rename .* x",))))
