"""Sharding tables, and training on eight simulated devices against training on one."""

from __future__ import annotations

import numpy as np
import pytest
import sharded_worker
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.scale.mesh import AXES
from research.training.sharding import STRATEGIES, resolve


@pytest.fixture(scope="module")
def fast(on_eight_devices):
    return on_eight_devices(sharded_worker.__file__, sharded_worker.FAST)


@pytest.fixture(scope="module")
def slow(on_eight_devices):
    return on_eight_devices(sharded_worker.__file__, sharded_worker.SLOW)


def check_against_one_device(found: dict) -> None:
    assert found["batches_arrive"] and found["as_promised"]
    np.testing.assert_allclose(found["losses"], found["reference"], rtol=1e-5)
    np.testing.assert_allclose(found["norms"], found["reference_norms"], rtol=1e-4)
    assert found["parameters_apart"] < 1e-4 and found["average_apart"] < 1e-4
    assert found["losses"][0] != found["losses"][-1]


@pytest.mark.parametrize("case", sharded_worker.FAST)
def test_eight_devices_compute_what_one_computes(fast, case):
    check_against_one_device(fast["cases"][case])


@pytest.mark.slow
@pytest.mark.parametrize("case", sharded_worker.SLOW)
def test_eight_devices_compute_what_one_computes_for_other_models_and_optimizers(slow, case):
    check_against_one_device(slow["cases"][case])


@pytest.mark.parametrize(
    ("case", "shares"),
    [
        ("fsdp", {"": 1 / 4}),
        ("few kv heads", {"position_embedding/table": 1, "key/kernel": 1, "value/kernel": 1, "": 1 / 4}),
    ],
)
def test_a_device_holds_its_share_of_matrices_moments_and_averages(fast, case, shares):
    found = {
        p: share for p, share in fast["cases"][case]["shares"].items() if p.endswith(("kernel", "table"))
    }
    assert len(found) == 4 * 8  # parameters, two moments and the average of six kernels and two tables
    for path, share in found.items():
        assert share == next(value for end, value in shares.items() if path.endswith(end)), path


def test_no_device_works_on_the_whole_batch(fast):
    # Parameters are gathered for a layer, activations are not: what makes it ZeRO-3.
    assert fast["cases"]["fsdp"]["whole_activations_in_reference"] != []
    assert fast["cases"]["fsdp"]["whole_activations"] == []


@pytest.mark.slow
def test_a_recurrence_stays_on_its_device(slow):
    # Each device has 2 of 16 rows and steps through 16 tokens by itself: nothing is sent from a loop.
    found = slow["cases"]["recurrent fsdp"]
    assert found["whole_activations_in_reference"] != [] and found["whole_activations"] == []
    # Parameters are gathered and their gradients added up, once; from the loops there were 309.
    assert found["collectives"] <= 2 * sum(path.startswith("params/") for path in found["shares"])


def test_nothing_is_whole_on_one_device_while_it_is_initialised(fast):
    assert fast["cases"]["fsdp"]["whole_while_initialising"] == []
    assert fast["cases"]["fsdp"]["whole_in_reference"] == ["up", "down"]


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("too large", ["data 16", "8 devices"]),
        ("left over", ["data 3", "8 devices"]),
        (
            "indivisible",
            ["position_embedding/table", "dimension 1 of (16, 36)", "--sharding.fsdp that divides 36"],
        ),
        ("heads", ["attention/output/kernel", "(2, 4, 8, 32)", "--sharding.tensor that divides 4"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(fast, case, lines):
    message = fast["mistakes"][case]
    assert "\n" not in message
    for line in lines:
        assert line in message


MESH = AbstractMesh((2, 4, 2, 1), AXES)


@pytest.mark.parametrize(
    ("table", "shape", "line"),
    [
        (((r"kernel$", P("fsdp")),), (8,), "no row of the strategy's table covers the parameter a/bias (8,)"),
        (
            ((r"bias$", P("fsdp", "fsdp")),),
            (8, 8),
            "names axis 'fsdp' twice",
        ),
        (
            ((r"bias$", P("model")),),
            (8,),
            "a/bias: the mesh ('data', 'fsdp', 'tensor', 'sequence') has no axis 'model'",
        ),
        (((r"bias$", P(None, "fsdp")),), (8,), "a/bias has 1 dimensions, its spec"),
        (
            ((r"bias$", P("fsdp")),),
            (6,),
            "a/bias: dimension 0 of (6,) does not divide over the 4 devices of axis 'fsdp'; choose a"
            " --sharding.fsdp that divides 6, such as --sharding.fsdp 2 --sharding.data 4",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_one_line_naming_the_path(table, shape, line):
    with pytest.raises(UserError) as error:
        resolve(table, "a/bias", shape, MESH)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("heads", "axis"), [(4, "tensor"), (2, "tensor"), (1, None), (3, None)])
def test_an_optional_axis_splits_what_it_divides_and_replicates_the_rest(heads, axis):
    path = "stack/blocks/attention/key/kernel"
    assert resolve(STRATEGIES["fsdp+tensor"], path, (2, 32, heads, 8), MESH) == P(None, "fsdp", axis, None)
    assert resolve(STRATEGIES["fsdp"], path, (2, 32, heads, 8), MESH) == P(None, "fsdp", None, None)


def test_the_first_matching_row_counts():
    table = ((r"bias$", P("tensor")), (r"a/bias$", P("fsdp")))
    assert resolve(table, "a/bias", (8,), MESH) == P("tensor")
