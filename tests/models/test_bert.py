"""BERT against Hugging Face's, its sizes, and its modern choices."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.catalogue import Interleaved, capabilities
from research.attention.masks import Tokens
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Rotary
from research.models.bert import BERT

TINY = BERT(
    vocabulary=61, context=16, layers=2, width=32, heads=4, feed_forward_width=48, dropout=0.0, depth="unroll"
)
MODERN = dataclasses.replace(
    TINY, positions=Rotary(), placement="pre", feed_forward="geglu", bias=False, token_types=0, pooler=False,
    attention=Interleaved(first=SlidingWindow(window=4), firsts=1, second=Softmax(), seconds=1),
)  # fmt: skip

BIDIRECTIONAL = [mechanism() for mechanism in capabilities() if mechanism.encoder]


def draw(model, length=9):
    tokens = jax.random.randint(jax.random.key(1), (2, length), 0, model.vocabulary)
    apply = jax.jit(model.build().apply)
    return apply, jax.jit(model.build().init)(jax.random.key(0), tokens), tokens


def parameters(model):
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(model.build().init, jax.random.key(0), tokens)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_bert_base_has_its_published_number_of_parameters():
    # transformers: sum(p.numel() for p in BertForPreTraining(BertConfig()).parameters())
    assert parameters(BERT()) == 110_106_428
    assert parameters(BERT(pooler=False)) == 110_106_428 - 768 * 768 - 768 - 2 * 768 - 2


def converted(state, model):
    """Parameters of Hugging Face's BertForPreTraining in our layout."""
    get = {name: jnp.asarray(tensor.numpy()) for name, tensor in state.items()}
    heads, head_dim = model.heads, model.width // model.heads

    def norm(name):
        return {"scale": get[f"{name}.weight"], "bias": get[f"{name}.bias"]}

    def linear(name):
        return {"kernel": get[f"{name}.weight"].T, "bias": get[f"{name}.bias"]}

    def layer(i):
        at = f"bert.encoder.layer.{i}"
        attention = {
            name: {
                "kernel": get[f"{at}.attention.self.{name}.weight"].T.reshape(model.width, heads, head_dim),
                "bias": get[f"{at}.attention.self.{name}.bias"].reshape(heads, head_dim),
            }
            for name in ("query", "key", "value")
        }
        output = linear(f"{at}.attention.output.dense")
        attention["output"] = {
            "kernel": output["kernel"].reshape(heads, head_dim, -1),
            "bias": output["bias"],
        }
        return {
            "attention": attention,
            "attention_norm": norm(f"{at}.attention.output.LayerNorm"),
            "feed_forward": {
                "up": linear(f"{at}.intermediate.dense"),
                "down": linear(f"{at}.output.dense"),
            },
            "feed_forward_norm": norm(f"{at}.output.LayerNorm"),
        }

    def table(name):
        return {"table": get[f"bert.embeddings.{name}_embeddings.weight"]}

    layers = [layer(i) for i in range(model.layers)]
    return {
        "token_embedding": table("word"),
        "input": {
            "position_embedding": table("position"),
            "type_embedding": table("token_type"),
            "norm": norm("bert.embeddings.LayerNorm"),
        },
        "stack": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)},
        "pooler": linear("bert.pooler.dense"),
        "pair_head": linear("cls.seq_relationship"),
        "token_head": {
            "transform": linear("cls.predictions.transform.dense"),
            "norm": norm("cls.predictions.transform.LayerNorm"),
            "bias": get["cls.predictions.bias"],
        },
    }


def test_logits_are_those_of_hugging_face():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=TINY.vocabulary, hidden_size=TINY.width, num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads, intermediate_size=TINY.hidden,
        max_position_embeddings=TINY.context, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and scales too
            parameter.add_(0.1 * torch.randn_like(parameter))
    apply, variables, _ = draw(TINY)
    params = converted(theirs.state_dict(), TINY)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, variables["params"])
    random = np.random.default_rng(0)
    tokens = random.integers(0, TINY.vocabulary, (3, 13))
    types = (np.arange(13) > np.array([[5], [7], [12]])).astype(np.int32)
    real = (np.arange(13) < np.array([[13], [9], [4]])).astype(np.int32)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens),
            attention_mask=torch.tensor(real),
            token_type_ids=torch.tensor(types, dtype=torch.long),
        )
    place = Tokens(jnp.arange(13, dtype=jnp.int32)[None], jnp.asarray(real))
    logits, pair = apply({"params": params}, jnp.asarray(tokens, jnp.int32), place, jnp.asarray(types))
    kept = real.astype(bool)
    np.testing.assert_allclose(
        np.asarray(logits)[kept], expected.prediction_logits.numpy()[kept], atol=1e-4, rtol=1e-4
    )
    np.testing.assert_allclose(pair, expected.seq_relationship_logits.numpy(), atol=1e-4, rtol=1e-4)


def test_selected_places_give_the_same_logits_as_all_places():
    apply, variables, tokens = draw(TINY)
    everything, _ = apply(variables, tokens)
    selected = jnp.array([[3, 0, 8], [1, 1, 5]])
    logits, pair = apply(variables, tokens, selected=selected)
    np.testing.assert_allclose(logits, np.asarray(everything)[np.arange(2)[:, None], selected], atol=1e-5)
    assert pair is not None and pair.shape == (2, 2)


def test_documents_of_a_row_are_read_alone_and_padding_leaks_nothing():
    apply, variables, tokens = draw(MODERN)
    packed = jnp.concatenate([tokens[:1, :4], tokens[1:, :3], jnp.zeros((1, 2), jnp.int32)], axis=1)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    logits, pair = apply(variables, packed, Tokens(positions, segments, in_order=True))
    assert pair is None  # it has no pooler
    np.testing.assert_allclose(logits[:, :4], apply(variables, tokens[:1, :4])[0], atol=1e-5)
    np.testing.assert_allclose(logits[:, 4:7], apply(variables, tokens[1:, :3])[0], atol=1e-5)


def test_every_token_reads_both_sides():
    apply, variables, tokens = draw(TINY)
    before, _ = apply(variables, tokens)
    for changed in (0, 8):
        after, _ = apply(variables, tokens.at[:, changed].add(1) % TINY.vocabulary)
        assert (np.abs(np.asarray(after - before)).max(-1) > 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", BIDIRECTIONAL, ids=lambda mechanism: type(mechanism).__name__)
def test_every_bidirectional_mechanism_is_a_change_of_one_field(mechanism):
    module = dataclasses.replace(TINY, attention=mechanism, layers=1).build()
    tokens = jnp.arange(2 * TINY.context).reshape(2, -1)  # as long as Linformer was made for
    changed = tokens.at[0, 7].set(60)
    drawn = np.random.default_rng(0)
    variables = jax.tree.map(  # large enough that every part matters
        lambda leaf: jnp.asarray(drawn.normal(size=leaf.shape) * 0.4, leaf.dtype),
        jax.eval_shape(module.init, jax.random.key(0), tokens),
    )
    apply = jax.jit(module.apply)
    moved = np.abs(np.asarray(apply(variables, changed)[0] - apply(variables, tokens)[0])).max(-1)
    assert (moved[0, 6:9] > 1e-3).all() and not moved[1].any()  # both neighbours read it; no other row does


def test_dropout_needs_a_key():
    model = dataclasses.replace(TINY, dropout=0.5)
    apply, variables, tokens = draw(model)
    still, _ = apply(variables, tokens)
    again, _ = apply(variables, tokens)
    dropped, _ = apply(variables, tokens, key=jax.random.key(3))
    np.testing.assert_array_equal(still, again)
    assert float(jnp.abs(dropped - still).max()) > 0.1


def test_flops_count_the_head_at_the_selected_places_only():
    shapes = {"tokens": (2, 16), "selected": (2, 3)}
    few = TINY.training_flops(shapes, visible=False)
    more = TINY.training_flops({**shapes, "selected": (2, 4)}, visible=False)
    assert more - few == 2 * 6 * TINY.width * (TINY.width + TINY.vocabulary)
    layer = 4 * 32 * 32 + 2 * 32 * 48
    attention = 4 * 32 * 16  # scores and values: 2 FLOPs each per channel and key
    head = 6 * 32 * (32 + 61)
    assert few == 2 * (16 * 2 * (6 * layer + 3 * attention) + 3 * head)
