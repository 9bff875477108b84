"""Descriptions through JSON, experiments from files: exact round trips, one clear line for each mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.training import description
from research.training.description import alternatives, classes, from_json, kind, load_experiment, to_json
from research.training.experiment import Experiment
from research.training.optimizer import Muon
from research.training.schedule import WarmupStableDecay


def values(declared) -> st.SearchStrategy:
    """Any value of a declared type."""
    branches = []
    for member in alternatives(declared):
        if dataclasses.is_dataclass(member):
            fields = description.field_types(member)
            branches.append(st.builds(member, **{name: values(kind) for name, kind in fields.items()}))
        elif typing.get_origin(member) is typing.Literal:
            branches.append(st.sampled_from(typing.get_args(member)))
        elif typing.get_origin(member) is tuple:
            branches.append(st.lists(values(typing.get_args(member)[0]), max_size=3).map(tuple))
        elif member is float:
            branches.append(st.floats(allow_nan=False, allow_infinity=False))
        else:
            plain = {int: st.integers(), str: st.text(), bool: st.booleans(), type(None): st.none()}
            branches.append(plain[member])
    return st.one_of(branches)


@settings(max_examples=50, deadline=None)
@given(values(Experiment))
def test_round_trip_through_json_text_is_exact(experiment):
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


MODELS = "'gpt' or 'bert' or 'classifier' or 'transformer' or 'seq2seq'"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPT", "gpt"),
        ("AdamW", "adamw"),
        ("WarmupStableDecay", "warmup-stable-decay"),
        ("TextData", "text-data"),
        ("BERTLarge", "bert-large"),
        ("BigBird", "big-bird"),
        ("CausalLM", "causal-lm"),
        ("MoBA", "moba"),
    ],
)
def test_kind_is_kebab_case(name, expected):
    assert kind(type(name, (), {})) == expected


def test_every_kind_within_a_union_is_distinct():
    for cls in description._reachable(Experiment):
        for declared in description.field_types(cls).values():
            members = [m for m in alternatives(declared) if dataclasses.is_dataclass(m)]
            assert len(classes(declared)) == len(members)


def test_tuples_and_optional_unions():
    @dataclasses.dataclass(frozen=True)
    class Outer:
        steps: tuple[int, ...]
        pair: tuple[int, str]
        schedule: WarmupStableDecay | Muon | None = None

    for outer in (Outer((1, 2, 3), (1, "a")), Outer((), (2, "b"), Muon(beta=0.5))):
        types = {
            "steps": tuple[int, ...],
            "pair": tuple[int, str],
            "schedule": WarmupStableDecay | Muon | None,
        }
        for name, declared in types.items():
            text = json.loads(json.dumps(to_json(getattr(outer, name))))
            assert description.decode(declared, text, name) == getattr(outer, name)


def test_left_out_fields_take_their_defaults():
    assert from_json({"name": "x", "optimizer": {"kind": "muon"}}) == Experiment(name="x", optimizer=Muon())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"modell": {}}, "experiment: no field 'modell'; did you mean 'model'?"),
        (
            {"model": {"kind": "gpt", "layer": 3}},
            "experiment.model: no field 'layer'; did you mean 'layers'?",
        ),
        (
            {"model": {"kind": "gpt", "layers": "3"}},
            "experiment.model.layers: expected a whole number, found '3'",
        ),
        (
            {"model": {"kind": "gpt", "layers": True}},
            "experiment.model.layers: expected a whole number, found True",
        ),
        (
            {"model": {"kind": "gpt", "layers": 3.0}},
            "experiment.model.layers: expected a whole number, found 3.0",
        ),
        ({"model": {"kind": "gpt", "bias": 1}}, "experiment.model.bias: expected true or false, found 1"),
        ({"model": 3}, f"experiment.model: expected {MODELS}, found 3"),
        ({"model": None}, f"experiment.model: expected {MODELS}, found nothing"),
        (
            {"model": {"layers": 3}},
            "experiment.model: its kind is missing; choose from gpt, bert, classifier, transformer, seq2seq",
        ),
        ({"steps": None}, "experiment.steps: expected a whole number, found nothing"),
        ({"clip": "1"}, "experiment.clip: expected a number or none, found '1'"),
        ({"clip": float("nan")}, "experiment.clip: expected a number or none, found nan"),
        ({"steps": {}}, "experiment.steps: expected a whole number, found an object"),
        ({"optimizer": {"kind": "adam"}}, "experiment.optimizer: unknown kind 'adam'; did you mean 'adamw'?"),
        (
            {"optimizer": {}},
            "experiment.optimizer: its kind is missing; choose from adamw, lion, adafactor, muon",
        ),
        (
            {"model": {"kind": "gpt", "positions": "learnt"}},
            "experiment.model.positions: expected 'learned' or 'sinusoidal' or 'rotary' or 'alibi' or "
            "'relative-bias' or none, found 'learnt'; did you mean 'learned'?",
        ),
    ],
)
def test_a_mistake_is_one_line_naming_the_path_and_the_nearest_choice(change, line):
    with pytest.raises(UserError) as error:
        from_json({"name": "x"} | change)
    assert str(error.value) == line


def test_a_missing_required_field():
    with pytest.raises(UserError, match=r"^experiment: field 'name' is missing$"):
        from_json({})


PREAMBLE = """
from research.models.gpt import GPT
from research.training.experiment import Experiment
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1", r"defines no function experiment\(\)"),
        ("def experimnt(): pass", r"defines no function experiment\(\); did you mean 'experimnt'\?"),
        ("def experiment(): return 3", r"experiment\(\) returned int, expected an Experiment"),
        (
            "def experiment():\n  return Experiment(nam='x')",
            "line 5: Experiment has no field 'nam'; did you mean 'name'?",
        ),
        (
            "def experiment():\n  return Experiment(name='x', model=GPT(layer=3))",
            "line 5: GPT has no field 'layer'; did you mean 'layers'?",
        ),
        ("def experiment():\n  return undefined", "line 5: NameError: name 'undefined' is not defined"),
        ("def experiment(:", "line 4: SyntaxError"),
        ("import no_such_module", "line 4: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def experiment(x): pass", "TypeError: experiment() missing 1 required positional argument: 'x'"),
        (
            "def experiment(): return Experiment(name='x', model=GPT(layers='3'))",
            "model.layers: expected a whole number, found '3'",
        ),
        (
            "def experiment(): return Experiment(name='x', optimizer=GPT())",
            "optimizer: unknown kind 'gpt'; choose from",
        ),
    ],
)
def test_an_experiment_file_with_a_mistake(tmp_path, text, line):
    path = tmp_path / "mistake.py"
    path.write_text(PREAMBLE + text + "\n")
    pattern = line if "\\(" in line else re.escape(line)
    with pytest.raises(UserError, match=pattern) as error:
        load_experiment(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_an_experiment_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "base_of_others.py").write_text(
        PREAMBLE + "def experiment(): return Experiment(name='base')\n"
    )
    (tmp_path / "variant.py").write_text(
        "import dataclasses\nimport base_of_others\n"
        "def experiment(): return dataclasses.replace(base_of_others.experiment(), steps=7)\n"
    )
    assert load_experiment(tmp_path / "variant.py") == Experiment(name="base", steps=7)


def test_a_run_directory_and_its_json_give_the_experiment(tmp_path):
    experiment = Experiment(name="x", optimizer=Muon(beta=0.9))
    (tmp_path / "experiment.json").write_text(json.dumps(to_json(experiment)))
    assert load_experiment(tmp_path) == load_experiment(tmp_path / "experiment.json") == experiment


def test_files_that_are_no_experiment(tmp_path):
    (tmp_path / "quickstart.py").write_text("")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"no such experiment file.*did you mean '.*quickstart.py'"):
        load_experiment(tmp_path / "quickstrat.py")
    with pytest.raises(UserError, match="no such experiment file"):
        load_experiment(tmp_path / "nowhere" / "quickstart.py")
    with pytest.raises(UserError, match=r"broken.json: not JSON"):
        load_experiment(tmp_path / "broken.json")
    with pytest.raises(UserError, match="neither an experiment file nor a run directory"):
        load_experiment(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes.txt: an experiment is a .py file"):
        load_experiment(tmp_path / "notes.txt")
