"""Collectives read from HLO text, counted by hand."""

from __future__ import annotations

import pytest

from research.scale.collectives import Collective, collectives

HLO = """HloModule jit_step, is_scheduled=true

%add.1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%condition.2 (state: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body.3 (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = bf16[16,4]{1,0:T(8,128)(2,1)S(1)} all-gather(%part), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %again = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%again)
  ROOT %tuple = (s32[], f32[8,4]) tuple(%i, %done)
}

ENTRY %main.4 (parameter: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%start), condition=%condition.2, body=%body.3
  %both = (f32[8,4]{1,0}, s8[5]{0}) all-reduce(%a, %b), channel_id=3, replica_groups=mesh['axis_0'=2, 'axis_1'=4] {'axis_1'}, to_apply=%add.1
  %scattered = f32[2,4]{1,0} reduce-scatter(%c), channel_id=4, replica_groups=mesh['axis_0'=2, 'axis_1'=4] {'axis_0','axis_1'}, dimensions={0}
  %sent = bf16[3]{0} collective-permute(%d), channel_id=5, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %out = f32[8,4] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_every_kind_is_counted_with_its_loops_and_groups():
    found = {(row.kind, row.devices): row for row in collectives(HLO, [0, 0, 0, 0, 1, 1, 1, 1])}
    assert found == {
        ("all-gather", 2): Collective("all-gather", 2, True, 12, 12 * 16 * 4 * 2),  # device i and i + 4
        ("all-gather", 4): Collective("all-gather", 4, False, 12, 12 * 8 * 4 * 4),
        ("all-reduce", 4): Collective("all-reduce", 4, False, 1, 8 * 4 * 4 + 5),
        ("reduce-scatter", 8): Collective("reduce-scatter", 8, True, 1, 2 * 4 * 4 * 8),
        ("collective-permute", 2): Collective("collective-permute", 2, False, 1, 6),
    }
    assert collectives(HLO, [0] * 8)[0].between_slices is False


def test_what_goes_through_the_hosts_runtime_is_between_slices():
    # As libtpu 0.0.42 writes an all-reduce between two slices; it sends each device's array to its host.
    sends = "".join(
        f"  %send.{i} = ({shape}, u32[], token[]) send(%x, %token.{i}), channel_id=7, is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        f'_xla_megascale_target="{{1,2}}x{{0:3}}",_xla_megascale_transfer_type="{kind}"}}\n'
        for i, (shape, kind) in enumerate(
            [
                ("f32[16,8]{1,0:T(8,128)}", "ALL_REDUCE"),
                ("bf16[8]{0}", "ALL_REDUCE"),
                ("f32[4]{0}", "ALL_GATHER"),
            ]
        )
    )
    hlo = HLO.replace("  ROOT %out", sends + "  ROOT %out")
    slices = [0, 0, 0, 0, 1, 1, 1, 1]
    new = set(collectives(hlo, slices)) - set(collectives(HLO, slices))
    assert new == {
        Collective("all-reduce", 2, True, 2, 16 * 8 * 4 + 8 * 2),
        Collective("all-gather", 2, True, 13, 12 * 16 * 4 * 2 + 2 * 4 * 4),  # beside those that HLO has
    }


def test_a_trip_count_that_the_compiler_noted_is_taken():
    noted = HLO.replace("body=%body.3", 'body=%body.3, backend_config={"known_trip_count":{"n":"3"}}')
    assert {row.count for row in collectives(noted, [0] * 8)} == {3, 1}


@pytest.mark.parametrize(
    ("kind", "bytes_sent"),
    [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150), ("collective-permute", 100)],
)
def test_bytes_on_the_wire_are_those_of_a_ring(kind, bytes_sent):
    assert Collective(kind, 4, False, 1, 100).wire_bytes == bytes_sent
