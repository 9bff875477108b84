"""The encoder-decoder Transformer against PyTorch's; step by step equals all at once; variants."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.attention.block_choice import MoBA
from research.attention.catalogue import Interleaved, capabilities
from research.attention.low_rank import Linformer
from research.attention.masks import Tokens
from research.attention.mechanisms import Differential, Forgetting, Latent, SlidingWindow, Softmax
from research.attention.native_sparse import NSA
from research.attention.positions import Learned, Rotary
from research.attention.recurrent_mechanisms import Based, GatedDeltaNet, LinearTransformer, Performer
from research.attention.rwkv import RWKV7
from research.attention.sparse_mechanisms import SparseTransformer
from research.errors import UserError
from research.inference.beam import Beam, beam_search
from research.models.seq2seq import Seq2Seq
from research.models.stacks import stack_flops_per_token
from research.models.transformer import Transformer
from research.training.description import kind

MODEL = Transformer(
    vocabulary=11, layers=2, width=8, heads=2, feed_forward_width=12, dropout=0.0, engine="reference"
)
RNG = np.random.default_rng(0)
SOURCE = jnp.asarray(RNG.integers(0, 11, (2, 5)), jnp.int32)
TARGET = jnp.asarray(RNG.integers(0, 11, (2, 4)), jnp.int32)
LENGTHS = jnp.array([5, 3], jnp.int32)
PLACE = Tokens.of_lengths(LENGTHS, 5)


@functools.cache
def parameters(model):
    shapes = jax.eval_shape(model.build().init, jax.random.key(0), SOURCE, TARGET)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4, jnp.float32), shapes)


def full(model, params=None, source=SOURCE, target=TARGET):
    params = parameters(model) if params is None else params
    return jax.jit(model.build().apply)({"params": params}, source, target, PLACE)


def test_the_published_model_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    params = jax.tree.map(np.asarray, parameters(MODEL))
    width, shared = MODEL.width, {"dropout": 0.0, "batch_first": True}
    encoder_layer = torch.nn.TransformerEncoderLayer(width, 2, 12, **shared)
    decoder_layer = torch.nn.TransformerDecoderLayer(width, 2, 12, **shared)
    encoder = torch.nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False)
    decoder = torch.nn.TransformerDecoder(decoder_layer, 2)

    def copy(attention, p, i):
        names = ("query", "key", "value")
        kernels = [p[name]["kernel"][i].reshape(width, width).T for name in names]
        attention.in_proj_weight.copy_(torch.tensor(np.concatenate(kernels)))
        attention.in_proj_bias.copy_(
            torch.tensor(np.concatenate([p[n]["bias"][i].reshape(-1) for n in names]))
        )
        attention.out_proj.weight.copy_(torch.tensor(p["output"]["kernel"][i].reshape(width, width).T))
        attention.out_proj.bias.copy_(torch.tensor(p["output"]["bias"][i]))

    with torch.no_grad():
        for stack, layers in (("encoder", encoder.layers), ("decoder", decoder.layers)):
            p = params[stack]["blocks"]
            norms = ["attention_norm", "feed_forward_norm"]
            if stack == "decoder":
                norms.insert(1, "cross_attention_norm")
            for i, layer in enumerate(layers):
                copy(layer.self_attn, p["attention"], i)
                if stack == "decoder":
                    copy(layer.multihead_attn, p["cross_attention"], i)
                for linear, name in ((layer.linear1, "up"), (layer.linear2, "down")):
                    linear.weight.copy_(torch.tensor(p["feed_forward"][name]["kernel"][i].T))
                    linear.bias.copy_(torch.tensor(p["feed_forward"][name]["bias"][i]))
                for number, name in enumerate(norms, start=1):
                    norm = getattr(layer, f"norm{number}")
                    norm.weight.copy_(torch.tensor(p[name]["scale"][i]))
                    norm.bias.copy_(torch.tensor(p[name]["bias"][i]))
        table = params["token_embedding"]["table"]
        channels = np.arange(width)
        angles = np.arange(5)[:, None] / 10000 ** (channels // 2 * 2 / width)
        encoding = np.where(channels % 2 == 0, np.sin(angles), np.cos(angles))

        def embedded(tokens):
            x = table[np.asarray(tokens)] * np.sqrt(width) + encoding[: tokens.shape[1]]
            return torch.tensor(x, dtype=torch.float32)

        padding = torch.tensor(np.asarray(PLACE.segments) == 0)
        memory = encoder(embedded(SOURCE), src_key_padding_mask=padding)
        causal = torch.nn.Transformer.generate_square_subsequent_mask(4)
        out = decoder(embedded(TARGET), memory, tgt_mask=causal, memory_key_padding_mask=padding)
        wanted = out.numpy() @ table.T
    np.testing.assert_allclose(full(MODEL), wanted, atol=2e-4, rtol=2e-4)


MODERN = dataclasses.replace(
    MODEL, placement="pre", norm="rms", positions=Rotary(), kv_heads=1, feed_forward="swiglu",
    bias=False, tied_head=False, decoder_layers=1, depth="unroll",
)  # fmt: skip
WINDOW = dataclasses.replace(MODEL, positions=Learned(), attention=SlidingWindow(window=2), context=6)

CHOOSING = NSA(summary=2, stride=1, block=1, top=3, window=2)


def mixed(encoder, decoder, cross=None, **fields):
    sides = {"attention": encoder, "decoder_attention": decoder, "cross_attention": cross}
    return dataclasses.replace(MODEL, context=8, **sides, **fields)


MIXED = {
    "linformer-nsa": mixed(Linformer(rank=3), CHOOSING),
    "linformer-moba-linear": mixed(Linformer(rank=3), MoBA(block=2, top=2), LinearTransformer()),
    "softmax-forgetting-differential": mixed(Softmax(), Forgetting(), Differential()),
    "retained": mixed(
        LinearTransformer(), Interleaved(GatedDeltaNet(), 1, Softmax(), 1), Performer(random_features=5)
    ),
    "window-sparse-based": mixed(
        SlidingWindow(window=3), SparseTransformer(stride=2), Based(key_dim=3, gate=True), positions=Rotary()
    ),
    "softmax-rwkv7-normed": mixed(Softmax(), RWKV7(), Softmax(qk_norm=True, sink=True)),
    "softmax-latent": mixed(Softmax(), Latent(rank=3), depth="unroll"),
}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(MODEL, id="published"),
        pytest.param(MODERN, id="modern", marks=pytest.mark.slow),
        pytest.param(WINDOW, id="window", marks=pytest.mark.slow),
        *(
            pytest.param(model, id=name, marks=() if name.startswith("linformer") else pytest.mark.slow)
            for name, model in MIXED.items()
        ),
    ],
)
def test_a_token_at_a_time_with_shared_memories_equals_all_at_once(model):
    params, decoder = parameters(model), model.decoder()
    # Three rows for each source: they say different things and read one memory.
    target = jnp.asarray(np.random.default_rng(2).integers(0, 11, (6, 6)), jnp.int32)
    places = Tokens(PLACE.positions, jnp.repeat(PLACE.segments, 3, axis=0))
    apply = jax.jit(model.build().apply)
    wanted = apply({"params": params}, jnp.repeat(SOURCE, 3, axis=0), target, places)
    step = jax.jit(decoder.step)
    memory = decoder.encode(params, SOURCE, PLACE)
    cache = decoder.empty_cache(2, 6)
    weights = params
    for i in range(6):
        tokens = target[:, i : i + 1] if i else target[::3, :1]
        place = Tokens(jnp.full(tokens.shape, i, jnp.int32))
        logits, cache = step(weights, tokens, memory, place, cache)
        if i == 0:
            # One row for each source, then each three times; what the memory gives is kept once.
            np.testing.assert_allclose(logits, wanted[::3, 0], atol=2e-4, rtol=2e-4)
            target = target.at[:, 0].set(jnp.repeat(target[::3, 0], 3))
            wanted = apply({"params": params}, jnp.repeat(SOURCE, 3, axis=0), target, places)
            cache = decoder.take_rows(cache, jnp.repeat(jnp.arange(2), 3))
            memory = (jnp.full_like(memory[0], jnp.nan), memory[1])  # its keys and values are in the cache
            weights, cache = decoder.apart(params, cache)
        else:
            np.testing.assert_allclose(logits, wanted[:, i], atol=2e-4, rtol=2e-4)
            # Rows go on from others of their source, as the hypotheses of a beam do.
            taken = jnp.array([[2, 0, 0, 4, 5, 3], [1, 1, 2, 5, 5, 4], [0, 1, 2, 3, 4, 5]][(i - 1) % 3])
            cache = decoder.take_rows(cache, taken)
            target = target.at[:, : i + 1].set(target[taken, : i + 1])
            wanted = apply({"params": params}, jnp.repeat(SOURCE, 3, axis=0), target, places)


# Of 2 heads of 4 channels, 8 tokens that read 16: scores and values, or a state of features x (values and 1).
READS = {
    Softmax: 4 * 2 * 4 * 8 * 16,
    Differential: 6 * 2 * 4 * 8 * 16,
    LinearTransformer: 2 * 2 * 4 * 5 * (8 + 16),
    Performer: 2 * 2 * 5 * 5 * (8 + 16),
    Based: 2 * 2 * (1 + 3 + 6) * 5 * (8 + 16),
}


@pytest.mark.parametrize("name", MIXED)
def test_the_weights_that_are_counted_are_those_there_are(name):
    model = MIXED[name]
    assert list(model.problems()) == []
    leaves = jax.tree.leaves_with_path(jax.eval_shape(lambda: parameters(model)))
    kernels = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size for path, leaf in leaves}
    kernels = {path: size for path, size in kernels.items() if path.endswith("/kernel")}
    # The encoder's weights, and what makes keys and values of the memory, are multiplied with source tokens.
    of_source = sum(
        n for path, n in kernels.items() if re.search("^encoder|cross_attention/(key|value)/", path)
    )
    of_target = sum(kernels.values()) - of_source + 8 * 11
    self_attention = sum(
        n * stack_flops_per_token(model.specs(side), 2, n, visible=True)
        for side, n in (("encoder", 16), ("decoder", 8))
    )
    reads = 2 * READS[type(model.cross_attention or Softmax())]
    found = model.training_flops({"source": (3, 16), "tokens": (3, 8)}, visible=True)
    assert found == 3 * (6 * (16 * of_source + 8 * of_target) + 3 * (self_attention + reads))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"attention": MoBA()}, "model.attention 'moba' chooses among the blocks before"),
        ({"attention": Linformer()}, "model.decoder_attention 'linformer' mixes tokens of all positions"),
        (
            {"decoder_attention": Latent(rotary_dim=3)},
            "model.decoder_attention.rotary_dim 3 is odd; channels are turned in pairs",
        ),
        (
            {"decoder_attention": Interleaved(SlidingWindow(), 2, Softmax(), 1)},
            "model.decoder_attention repeats every 3 layers, which does not divide the 2 layers",
        ),
        (
            {"cross_attention": MoBA()},
            "model.cross_attention: MoBA reads the tokens of its own sequence, not a memory; choose",
        ),
        (
            {"cross_attention": LinearTransformer(convolution=4)},
            "model.cross_attention.convolution 4 mixes neighbours in one sequence",
        ),
        ({"cross_attention": Performer(), "kv_heads": 1}, "model.kv_heads must be model.heads (2), not 1"),
        (
            {"cross_attention": Differential(), "kv_heads": 1},
            "model.cross_attention 'differential' needs an even",
        ),
    ],
)
def test_an_attention_in_the_wrong_place_is_one_line(changes, line):
    problem = next(dataclasses.replace(MODEL, **changes).problems())
    assert line in problem and "\n" not in problem


def test_what_reads_a_memory_is_named_and_what_has_no_weights_tells_none():
    line = next(dataclasses.replace(MODEL, cross_attention=MoBA()).problems())
    named = {kind(cls) for cls, can in capabilities().items() if can.cross}
    assert set(re.findall("'([a-z-]+)'", line)) == named
    for cross in (LinearTransformer(), Differential()):
        with pytest.raises(
            UserError, match="has no weights over the source that could be told; only softmax"
        ):
            dataclasses.replace(MODEL, cross_attention=cross).decoder(-1)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["transformer", "lstm"])
def test_a_source_with_a_table_of_its_own(which):
    shared = MODEL if which == "transformer" else Seq2Seq(vocabulary=11, layers=1, width=8, dropout=0.0)
    own = dataclasses.replace(shared, source_vocabulary=17)
    params = dict(parameters(own))
    table = params.pop("source_embedding")["table"]
    assert table.shape == (17, 8)
    assert jax.tree.structure(params) == jax.tree.structure(parameters(shared))
    # With the same rows in both tables it is the model that shares them.
    twice = {**params, "source_embedding": {"table": table.at[:11].set(params["token_embedding"]["table"])}}
    np.testing.assert_array_equal(full(own, twice), full(shared, params))
    assert not np.array_equal(full(own, twice), full(own, twice, source=SOURCE.at[0, 0].set(16)))


@pytest.mark.slow
def test_copying_is_learned_whole():
    """Sequences that training has not seen, by greedy decoding: masks, positions and caches agree."""
    model = dataclasses.replace(MODEL, width=32, heads=4, feed_forward_width=64)
    rng = np.random.default_rng(0)
    words = jnp.asarray(rng.integers(2, 11, (1600, 8)), jnp.int32)
    lengths = jnp.asarray(rng.integers(3, 8, 1600), jnp.int32)
    column = jnp.arange(8)[None]
    source = jnp.where(column < lengths[:, None] - 1, words, jnp.where(column < lengths[:, None], 0, 1))
    target = jnp.concatenate([jnp.zeros((1600, 1), jnp.int32), source[:, :-1]], axis=1)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 4e-3, 50, 600))

    def loss(params, rows):
        place = Tokens.of_lengths(lengths[rows], 8)
        logits = model.build().apply({"params": params}, source[rows], target[rows], place)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, source[rows])
        return jnp.where(place.segments != 0, each, 0.0).mean()

    def step(state, rows):
        gradient = jax.grad(loss)(state[0], rows)
        change, memory = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], change), memory), None

    params = jax.jit(model.build().init)(jax.random.key(0), source[:1], target[:1])["params"]
    batches = jnp.asarray(rng.integers(0, 1536, (600, 64)))  # the last 64 are held out
    with jax.numpy_dtype_promotion("standard"):  # which optax counts on
        train = jax.jit(lambda state: jax.lax.scan(step, state, batches)[0])
        params, _ = train((params, optimizer.init(params)))
    search = beam_search(model.decoder(), Beam(1), slots=8, end=0)
    found = search(params, source[1536:], lengths[1536:], jnp.full(64, 8, jnp.int32)).tokens[:, 0]
    np.testing.assert_array_equal(found, jnp.where(source[1536:] == 1, 0, source[1536:]))


def test_padding_of_the_source_and_later_targets_change_nothing():
    wanted = full(MODEL)
    other = full(MODEL, source=SOURCE.at[1, 3:].set(7), target=TARGET.at[:, -1].set(1))
    np.testing.assert_array_equal(other[:, :-1], wanted[:, :-1])


def test_sizes_of_base_and_big():
    sizes = {}
    for name, model in (
        ("base", Transformer(engine="reference")),
        ("big", Transformer(width=1024, heads=16, feed_forward_width=4096, engine="reference")),
    ):
        shapes = jax.eval_shape(model.build().init, jax.random.key(0), SOURCE, TARGET)["params"]
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # Table 3 of the paper: 65 and 213 million.
    assert abs(sizes["base"] - 65e6) < 2e6 and abs(sizes["big"] - 213e6) < 4e6
    flops = Transformer().training_flops({"source": (1, 1), "tokens": (1, 1)}, visible=False)
    # Of a source and a target token: 6 per weight of the products, and next to nothing for attention itself.
    products = 6 * 3145728 + 6 * 4194304 + 512 * 37000
    assert abs(flops / (6 * products) - 1) < 2e-3
