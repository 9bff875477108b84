"""Runs out to safetensors and back, and every way in which a directory can be wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.attention.catalogue import Interleaved
from research.attention.mechanisms import SlidingWindow, Softmax
from research.attention.positions import Learned, RelativeBias, Rotary, Sinusoidal
from research.data.bitext import Bitext
from research.data.masked_text import MaskedText
from research.data.text import TextData
from research.data.tokenizer import Tokenizer
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError
from research.interchange import families
from research.interchange.export import export_run
from research.interchange.layouts import Row
from research.interchange.runs import import_run
from research.interchange.tensors import Planned, Tensors, write
from research.models.bert import BERT
from research.models.gpt import GPT
from research.models.transformer import Transformer
from research.objectives.masked_lm import MaskedLM
from research.objectives.translation import Translation
from research.training.checkpoint import Checkpoints
from research.training.description import to_json
from research.training.experiment import Checkpointing, Experiment
from research.training.program import functions
from research.training.run_directory import claim
from research.training.trained import load

GPT2 = GPT(vocabulary=300, context=16, layers=2, width=12, heads=3, feed_forward_width=20)
LLAMA = dataclasses.replace(
    GPT2, kv_heads=1, feed_forward="swiglu", positions=Rotary(base=500.0), norm="rms", norm_epsilon=1e-6,
    bias=False, tied_head=False,
)  # fmt: skip
QWEN3 = dataclasses.replace(LLAMA, attention=Softmax(qk_norm=True), tied_head=True)
WIDE_HEADS = dataclasses.replace(QWEN3, head_dim=6)
BERT_ = BERT(
    vocabulary=300, context=16, layers=2, width=12, heads=3, feed_forward_width=20, dropout=0.0
)  # fmt: skip
ROBERTA = dataclasses.replace(BERT_, positions=Learned(offset=1), token_types=1, pooler=False)
MODERNBERT = dataclasses.replace(
    BERT_, layers=5, positions=Rotary(base=900.0, local_base=90.0), token_types=0, pooler=False, lead=True,
    placement="pre", feed_forward="exact-geglu", bias=False, norm_epsilon=1e-5,
    attention=Interleaved(first=SlidingWindow(window=5), firsts=1),
)  # fmt: skip
MARIAN = Transformer(
    vocabulary=300, context=16, layers=1, decoder_layers=2, width=12, heads=3, feed_forward="silu",
    feed_forward_width=20, positions=Sinusoidal(layout="half"), head_bias=True,
)  # fmt: skip
T5 = dataclasses.replace(
    MARIAN, positions=RelativeBias(8, 16, shared=True), attention=Softmax(scale=1.0), norm="rms",
    norm_epsilon=1e-6, placement="pre", bias=False, head_bias=False, feed_forward="relu",
    embedding_scale="output",
)  # fmt: skip
T5_1_1 = dataclasses.replace(
    T5, head_dim=6, feed_forward="geglu", embedding_scale="none", tied_head=False
)  # fmt: skip
MODELS = {
    "gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "qwen3 wide": WIDE_HEADS, "bert": BERT_, "roberta": ROBERTA,
    "modernbert": MODERNBERT, "marian": MARIAN, "t5": T5, "t5 1.1": T5_1_1,
}  # fmt: skip
TEXTS = ["for i in range(10):\n    print(i)", "naïve café ☕ 日本", "  two  spaces\t\r\n", "<|endoftext|>"]


def described(name, model):
    """An experiment of a model, and a tokenizer for it."""
    bpe = Tokenizer.train_bpe(TEXTS * 5, 280)
    if isinstance(model, BERT):
        data = MaskedText(length=16, batch=8)
        pieces = MaskingTokenizer.train([text.lower() for text in TEXTS * 5], 200)
        return Experiment(name=name, model=model, data=data, objective=MaskedLM()), pieces
    if isinstance(model, Transformer):
        data = Bitext(corpus="files", length=16)
        return Experiment(name=name, model=model, data=data, objective=Translation()), bpe
    return Experiment(name=name, model=model, data=TextData(length=16, batch=8)), bpe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each model, never trained but with every parameter random."""
    made = {}
    for name, model in MODELS.items():
        experiment, tokenizer = described(name, model)
        rng = np.random.default_rng(len(name))
        params = jax.tree.map(
            lambda leaf, rng=rng: jax.device_put(rng.normal(size=leaf.shape).astype(np.float32) * 0.3),
            functions(experiment).abstract_state.params,
        )
        with claim(tmp_path_factory.mktemp("runs") / name, to_json(experiment)) as run:
            run.keep({Tokenizer.FILE: tokenizer.to_json()})
            with Checkpoints(run, Checkpointing()) as checkpoints:
                checkpoints.save(0, {"params": params}, None, {}, {})
        made[name] = run.path
    return made


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """Each run as a directory for other tools."""
    out = {name: tmp_path_factory.mktemp("exported") / name for name in runs}
    for name, path in out.items():
        export_run(load(runs[name]), path, None, print)
    return out


def copy(source, target, **config):
    """A copy of an exported directory with changes to its configuration."""
    shutil.copytree(source, target)
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return target


@pytest.mark.parametrize("name", list(MODELS))
def test_out_and_in_again_is_the_same_model(name, runs, exported, tmp_path):
    found = import_run(exported[name], tmp_path / "back", print)
    before, after = load(runs[name]), load(tmp_path / "back")
    assert found["model_type"] == name.split()[0] and found["dtype"] == "float32"
    assert families.of_model(after.experiment.model) == families.of_model(before.experiment.model)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert [after.tokenizer.encode(t) for t in TEXTS] == [before.tokenizer.encode(t) for t in TEXTS]
    again = tmp_path / "again"
    export_run(after, again, None, print)
    one, two = (load_file(path / "model.safetensors") for path in (exported[name], again))
    assert one.keys() == two.keys() and all(one[key].tobytes() == two[key].tobytes() for key in one)


def test_bfloat16_tensors_come_out_as_they_went_in(exported, tmp_path):
    source = copy(exported["llama"], tmp_path / "low")
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors")
    import_run(source, tmp_path / "run", print)
    trained = load(tmp_path / "run")
    assert trained.experiment.model.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.params)} == {np.dtype(np.float32)}
    assert export_run(trained, tmp_path / "out", None, print)["dtype"] == "bfloat16"
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert all(back[key].tobytes() == tensors[key].tobytes() for key in tensors)


def test_the_bare_body_and_buffers_are_read(runs, exported, tmp_path):
    source = copy(exported["gpt2"], tmp_path / "bare")
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    bare["lm_head.weight"] = bare["wte.weight"]
    save_file(bare, source / "model.safetensors")
    import_run(source, tmp_path / "run", print)
    jax.tree.map(np.testing.assert_array_equal, load(runs["gpt2"]).params, load(tmp_path / "run").params)


def planned(array):
    return Planned(array.shape, array.dtype, lambda: array)


def test_shards_and_their_index(tmp_path):
    tensors = {f"t{n}": np.full((4, 4), n, np.float32) for n in range(5)}
    files = write(tmp_path, {name: planned(array) for name, array in tensors.items()}, {}, shard=130)
    assert [file.name for file in files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    read = Tensors(tmp_path)
    assert read.names() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
    assert load_file(files[2]).keys() == {"t4"}
    files[1].unlink()
    with pytest.raises(UserError, match=r"names model-00002-of-00003.safetensors, which is not there"):
        Tensors(tmp_path)


def test_a_part_of_a_tensor_by_hand():
    theirs = np.arange(12.0).reshape(2, 6)
    value = Row("value", "qkv", part=2, parts=3)
    np.testing.assert_array_equal(value.read(theirs, (2, 1, 2)), [[[4, 5]], [[10, 11]]])
    rows = [Row("x", "qkv", part=part, parts=3) for part in range(3)]
    parts = [row.write(row.read(theirs, (2, 1, 2))) for row in rows]
    np.testing.assert_array_equal(rows[0].join(parts), theirs)
    turned = Row("y", "o", 2, transposed=True)
    np.testing.assert_array_equal(turned.read(theirs, (2, 3, 2)).reshape(6, 2), theirs.T)


def spoil(change):
    def apply(directory):
        file = directory / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


NORM = "transformer.h.1.ln_1.bias"


@pytest.mark.parametrize(
    ("spoiled", "line"),
    [
        (spoil(lambda t: t.pop(NORM)), f"1 tensors are missing, the first is {NORM}"),
        (
            spoil(lambda t: t.update(extra=np.zeros(2, np.float32))),
            "1 tensors belong to no parameter, the first is extra",
        ),
        (
            spoil(lambda t: t.update({NORM: np.zeros(5, np.float32)})),
            f"a tensor does not fit config.json: {NORM}: (5,) instead of (12,)",
        ),
        (truncate, "is not a whole safetensors file"),
        (pickled, "a pickle can run any code when it is read, so it is refused"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "gpt2"}'), "has no vocab_size"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
        (shutil.rmtree, "no such directory"),
    ],
)
def test_a_directory_that_is_wrong_is_one_line(spoiled, line, exported, tmp_path):
    source = copy(exported["gpt2"], tmp_path / "source")
    spoiled(source)
    with pytest.raises(UserError) as error:
        import_run(source, tmp_path / "run", print)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        (
            "gpt2",
            {"model_type": "opt"},
            "model_type 'opt' is not supported; supported: gpt2, llama, qwen3, bert, roberta",
        ),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'; supported: 'gelu_new'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "of type 'llama3' is not supported"),
        ("llama", {"vocab_size": 100}, "has 280 tokens, the model only 100"),
    ],
)
def test_a_configuration_that_is_not_ours_is_one_line(name, config, line, exported, tmp_path):
    with pytest.raises(UserError) as error:
        import_run(copy(exported[name], tmp_path / "source", **config), tmp_path / "run", print)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"feed_forward": "relu2"}, "gpt2 has no feed_forward 'relu2'"),
        ({"attention": SlidingWindow()}, "llama has no "),
        ({"logit_soft_cap": 30.0}, "gpt2 has no logit_soft_cap 30.0"),
    ],
)
def test_a_model_that_no_other_tool_knows_is_not_exported(changes, line):
    with pytest.raises(UserError, match="this model cannot be exported") as error:
        families.of_model(dataclasses.replace(GPT2, **changes))
    assert line in str(error.value)


def test_an_export_touches_no_files_that_are_there(runs, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="is there already"):
        export_run(load(runs["gpt2"]), tmp_path, None, print)
    with pytest.raises(UserError, match=r"cannot make .*: Not a directory"):
        export_run(load(runs["gpt2"]), tmp_path / "mine" / "out", None, print)
