"""Reading compiled programs: recorded text of the TPU compiler, and programs compiled for eight host devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")

from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags
from jaxnlp.training.compile_check import hlo, hlo_cost

ROOT = Path(__file__).resolve().parents[2]

# A scan over 12 layers as the TPU compiler emits it: the trip count is in the condition, the product is a convolution with
# its batch as a window, one all-gather is spread over three fusions, a reduce-scatter is a fused all-reduce and slice.
TPU = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[12,48]{1,0})->bf16[]}, num_partitions=256

%started (param_0: bf16[16,256]) -> (bf16[16,256], bf16[256,256]) {
  %param_0 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=11, replica_groups=mesh['axis_0'=16,'axis_1'=1,'axis_2'=16], device_ids=([16,16]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true
  ROOT %custom-call.5 = (bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)S(1)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%going_on (param_1: bf16[16,256]) -> bf16[256,256] {
  %param_1 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_1), channel_id=11, replica_groups=mesh['axis_0'=16,'axis_1'=1,'axis_2'=16], device_ids=([16,16]T(1,0)) {'axis_0'}, dimensions={0}, use_global_device_ids=true
}

%all-reduce-scatter.1 (input: bf16[32768,256]) -> bf16[2064,256] {
  %input = bf16[32768,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %constant.299 = bf16[] constant(0)
  %pad.5 = bf16[33024,256]{1,0:T(8,128)(2,1)} pad(%input, %constant.299), padding=0_256x0_0
  %all-reduce.78 = bf16[33024,256]{1,0:T(8,128)(2,1)} all-reduce(%pad.5), channel_id=104, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %constant.301 = u32[] constant(0)
  ROOT %dynamic-slice.96 = bf16[2064,256]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.78, %constant.301, %constant.301), dynamic_slice_sizes={2064,256}
}

%product (param_2: bf16[768,768,1], param_3: bf16[4,1024,768]) -> bf16[4,1024,768] {
  %param_2 = bf16[768,768,1]{1,0,2:T(8,128)(2,1)} parameter(0)
  %param_3 = bf16[4,1024,768]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[4,1024,768]{2,1,0:T(8,128)(2,1)S(1)} convolution(%param_2, %param_3), window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=fb0_0oi->0fb
}

%body (state: (s32[], bf16[12,48], bf16[16,256], bf16[768,768,1], bf16[4,1024,768])) -> (s32[], bf16[12,48], bf16[16,256], bf16[768,768,1], bf16[4,1024,768]) {
  %state = (s32[]{:T(128)}, bf16[12,48]{1,0:T(8,128)(2,1)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[768,768,1]{1,0,2:T(8,128)(2,1)}, /*index=4*/bf16[4,1024,768]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %stack = bf16[12,48]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %shard = bf16[16,256]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %left = bf16[768,768,1]{1,0,2:T(8,128)(2,1)} get-tuple-element(%state), index=3
  %right = bf16[4,1024,768]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=4
  %async-collective-start = (bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[256,256]{1,0:T(8,128)(2,1)S(1)}) fusion(%shard), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%started
  %fusion.1 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} fusion(%shard), kind=kOutput, calls=%going_on
  %multiplied = bf16[4,1024,768]{2,1,0:T(8,128)(2,1)S(1)} fusion(%left, %right), kind=kOutput, calls=%product, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%counter, %one)
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[12,48]{1,0:T(8,128)(2,1)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[768,768,1]{1,0,2:T(8,128)(2,1)}, /*index=4*/bf16[4,1024,768]{2,1,0:T(8,128)(2,1)}) tuple(%next, %stack, %shard, %left, /*index=4*/%right)
}

%condition (state.1: (s32[], bf16[12,48], bf16[16,256], bf16[768,768,1], bf16[4,1024,768])) -> pred[] {
  %constant.313 = s32[]{:T(128)} constant(12)
  %state.1 = (s32[]{:T(128)}, bf16[12,48]{1,0:T(8,128)(2,1)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[768,768,1]{1,0,2:T(8,128)(2,1)}, /*index=4*/bf16[4,1024,768]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1316 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt.29 = pred[]{:T(512)} compare(%get-tuple-element.1316, %constant.313), direction=LT, metadata={op_name="jit(step)/while/cond/lt"}
}

ENTRY %main_spmd (param: bf16[12,48], param.1: bf16[16,256], param.2: bf16[768,768,1], param.3: bf16[4,1024,768], param.4: bf16[32768,256]) -> bf16[2064,256] {
  %param = bf16[12,48]{1,0:T(8,128)(2,1)} parameter(0)
  %param.1 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(1)
  %param.2 = bf16[768,768,1]{1,0,2:T(8,128)(2,1)} parameter(2)
  %param.3 = bf16[4,1024,768]{2,1,0:T(8,128)(2,1)} parameter(3)
  %param.4 = bf16[32768,256]{1,0:T(8,128)(2,1)} parameter(4)
  %zero = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)} copy(%zero)
  %tuple.226 = (s32[]{:T(128)}, bf16[12,48]{1,0:T(8,128)(2,1)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[768,768,1]{1,0,2:T(8,128)(2,1)}, /*index=4*/bf16[4,1024,768]{2,1,0:T(8,128)(2,1)}) tuple(%copied, %param, %param.1, %param.2, /*index=4*/%param.3)
  %while.59 = (s32[]{:T(128)}, bf16[12,48]{1,0:T(8,128)(2,1)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[768,768,1]{1,0,2:T(8,128)(2,1)}, /*index=4*/bf16[4,1024,768]{2,1,0:T(8,128)(2,1)}) while(%tuple.226), condition=%condition, body=%body
  ROOT %scattered = bf16[2064,256]{1,0:T(8,128)(2,1)S(1)} fusion(%param.4), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_loop_bodies_count_once_per_trip():
    program = hlo.parse(TPU)
    assert hlo_cost.matmul_flops(program) == 12 * 2 * 4 * 1024 * 768 * 768
    assert hlo_cost.estimated_cycles(program) == 12_000
    assert not program.unknown_loops


def test_a_collective_spread_over_fusions_counts_once_and_a_fused_reduce_scatter_is_one():
    gather, scatter = sorted(hlo_cost.collectives(hlo.parse(TPU)), key=lambda each: each.kind)
    assert gather == hlo_cost.Collective("all-gather", tuple(range(16)), 12, 2 * 256 * 256)
    assert scatter == hlo_cost.Collective("reduce-scatter", (0, 1, 2, 3), 1, 2 * 33024 * 256)
    assert gather.sent == round(12 * 15 / 16 * 2 * 256 * 256) and scatter.sent == round(3 / 4 * 2 * 33024 * 256)


def test_only_traffic_with_high_bandwidth_memory_counts():
    start, shard = 2 * 16 * 256, 2 * 16 * 256  # what a start reads; its results are elsewhere or the operand itself
    product = 2 * (768 * 768 + 4 * 1024 * 768)  # its result stays in vector memory, S(1)
    counter = 2 * (4 + 4 + 4)
    measured = hlo_cost.memory_traffic(hlo.parse(TPU))
    assert abs(measured - (12 * (start + shard + product) + 2 * 32768 * 256)) <= 12 * counter


@pytest.mark.parametrize(
    "condition, trips",
    [
        ("compare(%get-tuple-element.1316, %constant.313), direction=LE", 13),
        ("compare(%constant.313, %get-tuple-element.1316), direction=GT", 12),
        ("compare(%get-tuple-element.1316, %constant.313), direction=NE", 12),
    ],
)
def test_trip_counts_are_read_from_the_condition(condition, trips):
    text = TPU.replace("compare(%get-tuple-element.1316, %constant.313), direction=LT", condition)
    program = hlo.parse(text)
    assert max(run.times for run in program.runs) == trips


def test_a_loop_with_an_unknown_trip_count_counts_once_and_is_named():
    program = hlo.parse(TPU.replace("constant(12)", "custom-call()"))
    assert max(run.times for run in program.runs) == 1 and program.unknown_loops == ["body"]
    known = TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert max(run.times for run in hlo.parse(known).runs) == 7


def test_loops_in_loops_multiply():
    outer = TPU.replace("ENTRY %main_spmd", "%inner").split("\n\n")
    body = outer[-1].replace("%inner", "%outer_body")
    entry = """\
ENTRY %main (param.9: bf16[32768,256]) -> s32[] {
  %param.9 = bf16[32768,256]{1,0} parameter(0)
  %zero.9 = s32[] constant(0)
  %state.9 = (s32[]) tuple(%zero.9)
  ROOT %while.9 = (s32[]) while(%state.9), condition=%condition.9, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    program = hlo.parse("\n\n".join([*outer[:-1], body, entry]))
    assert hlo_cost.matmul_flops(program) == 3 * 12 * 2 * 4 * 1024 * 768 * 768


def test_text_that_is_not_a_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing")


@pytest.mark.parametrize(
    "text, group",
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", (0, 4)),
        ("{}", ()),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
    ],
)
def test_groups_are_read_in_every_notation(text, group):
    assert hlo_cost.first_group(text) == group


@pytest.mark.parametrize(
    "text, group",
    [
        ("mesh['x'=2,'y'=4] {'y'}", (0, 1, 2, 3)),
        ("mesh['x'=2,'y'=4] {'x'}", (0, 4)),
        ("mesh['x'=2,'y'=4] {'x','y'}", tuple(range(8))),
        ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", (0, 2, 4, 6)),
        ("mesh['x'=8] {'x':(2)4}", (0, 1, 2, 3)),
        ("mesh['x'=8] {'x':(1)2}", (0, 4)),
    ],
)
def test_groups_of_a_mesh_are_read(text, group):
    assert hlo_cost.first_group(text.split(" ")[0].rstrip(","), f"replica_groups={text}, other={{1}}") == group


@pytest.mark.parametrize("kind, factor", [("all-reduce", 1.5), ("all-gather", 0.75), ("collective-permute", 1.0)])
def test_bytes_that_a_chip_sends(kind, factor):
    assert hlo_cost.Collective(kind, (0, 1, 2, 3), 2, 1000).sent == 2000 * factor


def test_a_batched_product_as_a_convolution_meets_each_batch_once():
    positions = hlo_cost._valid_positions(length=4, outputs=4, size=4, stride=3, lhs_dilate=4, rhs_dilate=1, pad=0)
    assert positions == 4
    dense = hlo_cost._valid_positions(length=5, outputs=5, size=3, stride=1, lhs_dilate=1, rhs_dilate=1, pad=1)
    assert dense == 13  # a window of three at each of five places, less what falls off either end


PROGRAMS = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxnlp.training.compile_check import hlo_cost
from jaxnlp.training.compile_check import hlo
from jaxnlp.training.compile_check.report import axes_of
from jaxnlp.training.mesh import make_mesh

mesh = make_mesh({"data": 2, "fsdp": 4})
place = lambda *axes: NamedSharding(mesh, P(*axes))

def scanned(stack, x):
    # each layer's matrix is gathered over fsdp, its product is summed over rows at the end
    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, place())
        return jnp.tanh(x @ w), None
    x, _ = jax.lax.scan(layer, x, stack)
    return jnp.sum(x)

stack, x = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32), jax.ShapeDtypeStruct((16, 64), jnp.float32)
where = place(None, "fsdp", None), place(("data", "fsdp"), None)
compiled = jax.jit(scanned, in_shardings=where, out_shardings=place()).lower(stack, x).compile()
program = hlo.parse(compiled.as_text())
print(json.dumps({
    "flops": hlo_cost.matmul_flops(program),
    "xla": compiled.cost_analysis()["flops"],
    "collectives": [[c.kind, axes_of(c.group, mesh.shape), c.times, c.bytes] for c in hlo_cost.collectives(program)],
    "unknown": program.unknown_loops,
}))
"""


def test_a_program_for_eight_host_devices():
    environment = os.environ | {"XLA_FLAGS": ""}
    add_xla_flags({HOST_DEVICES: 8}, environment)
    command = [sys.executable, "-c", PROGRAMS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = 16 // 8
    assert found["flops"] == 5 * 2 * rows * 64 * 64 and not found["unknown"]
    gathered = sum(
        times * size for kind, axes, times, size in found["collectives"] if (kind, axes) == ("all-gather", "fsdp")
    )
    assert gathered == 5 * 64 * 64 * 4
    assert ["all-reduce", "data+fsdp", 1, 4] in found["collectives"]


def test_types_with_layouts_and_memory_spaces():
    arrays = hlo.arrays_of("(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[7]{0}, s4[3], pred[], token[])")
    assert [(a.dtype, a.shape, a.space, a.bytes) for a in arrays] == [
        ("f32", (2, 3), 1, 24), ("bf16", (7,), 0, 14), ("s4", (3,), 0, 2), ("pred", (), 0, 1), ("token", (), 0, 0),
    ]  # fmt: skip
    assert np.prod(hlo.arrays_of("bf16[<=5,2]{1,0}")[0].shape) == 10
