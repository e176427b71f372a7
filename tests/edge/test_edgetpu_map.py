"""The mapping report: each constraint with a case on either side, the split, and what streams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kasmina_edge.engines.edgetpu import EDGETPU_OP
from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator.edgetpu_map import SPLIT, map_edgetpu, peak_activation_bytes
from kasmina_edge.hardware_simulator.edgetpu_ops import (
    PARSED,
    RULES,
    UNPARSED,
    UNPARSED_PREFIXES,
    caution,
    obstacle,
    refusal,
)
from kasmina_edge.hardware_simulator.networks import table
from kasmina_edge.hardware_simulator.networks.building import LayerTable
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
IMAGE, ROW = (1, 8, 8, 16), (1, 16)


def op(kind: str, **changes: object) -> OpWork:
    fields: dict[str, object] = {"inputs": (IMAGE,), "outputs": (IMAGE,), "dtype": "int8", "place": "op 3"}
    return OpWork(kind, **{**fields, **changes})  # type: ignore[arg-type]


CONV = op("conv_2d", weights=(16, 3, 3, 16), weights_dtype="int8")
DENSE = op("fully_connected", inputs=(ROW,), outputs=((1, 4),), weights=(4, 16), weights_dtype="int8")


@pytest.mark.parametrize(
    ("good", "changes", "word"),
    [
        (op("average_pool_2d"), {"activation": "relu"}, "fused relu"),
        (op("max_pool_2d"), {"activation": "relu6"}, "fused relu6"),
        (op("concatenation"), {"activation": "relu"}, "fused relu"),
        (CONV, {"dilation": (1, 2)}, "dilation 1 by 2"),
        (CONV, {"weights": (), "weights_dtype": ""}, "constants only"),
        (CONV, {"weights_dtype": "float32"}, "float32 weights"),
        (CONV, {"weights_dtype": "int4"}, "int4 weights"),
        (CONV, {"dtype": "float32"}, "float32 numbers"),
        (CONV, {"dtype": "int16"}, "int16 numbers"),
        (CONV, {"inputs": ((2, 8, 8, 16),)}, "2x8x8x16"),
        (CONV, {"outputs": ((1, 0, 8, 16),)}, "not fixed"),
        (replace(CONV, kind="depthwise_conv_2d"), {"dilation": (2, 1)}, "dilation 2 by 1"),
        (replace(CONV, kind="transpose_conv"), {"weights": (), "weights_dtype": ""}, "constants only"),
        (DENSE, {"outputs": ((1, 7, 4),)}, "1x7x4 has more than one dimension"),
        (op("softmax", inputs=(ROW,), outputs=(ROW,)), {"inputs": ((4, 16),)}, "4x16 has more"),
        (op("softmax", inputs=((1, 16_000),)), {"inputs": ((1, 16_001),)}, "16001 elements, at most 16000"),
        (op("mean", outputs=(ROW,)), {"outputs": ((3, 16),)}, "batch axis changes from 1 to 3"),
        (op("mean", outputs=((1, 8, 8, 1),)), {"inputs": ((1, 8, 8, 6),)}, "6 channels, expected a multiple of 4"),
        (op("pad", outputs=((1, 9, 9, 16),)), {"outputs": ((2, 8, 8, 16),)}, "innermost"),
        (op("pack"), {"inputs": ((1, 16),), "outputs": ((2, 16),)}, "batch axis changes from 1 to 2"),
        (op("split", outputs=((1, 8, 8, 8),) * 2), {"inputs": ((2, 16),), "outputs": (ROW, ROW)}, "from 2 to 1"),
        (op("prelu", weights=(1, 1, 16), weights_dtype="int8"), {"weights": (8, 8, 16)}, "expected one a channel"),
        (op("strided_slice"), {"stride": (2, 1)}, "strides (2, 1), expected 1"),
        (op("resize_bilinear", outputs=((1, 16, 16, 16),)), {"outputs": ((1, 80, 16, 16),)}, "8 to 80"),
        (op("resize_nearest_neighbor", outputs=((1, 64, 64, 16),)), {"outputs": ((1, 65, 64, 16),)}, "8 to 65"),
        (op("quantize", dtype="uint8"), {"dtype": "float32"}, "float32 numbers"),
    ],
)
def test_a_constraint_on_both_sides(good: OpWork, changes: dict[str, object], word: str) -> None:
    assert obstacle(good) == ""
    assert word in obstacle(replace(good, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["hard_swish", "leaky_relu", "batch_matmul", "argmax", "gelu", "dequantize", "nobody"])
def test_operations_that_are_not_in_the_table(kind: str) -> None:
    assert "not an operation of the Edge TPU" in obstacle(op(kind))


def test_every_row_of_the_table_can_map_and_has_a_source() -> None:
    assert len(RULES) == 41
    for kind, rule in RULES.items():
        assert rule.source and PARSED[kind] == rule.newest
        inputs = (ROW,) if kind in ("softmax", "fully_connected", "pack") else (IMAGE,)
        weights = (16, 1, 1, 16) if "conv" in kind or kind == "fully_connected" else ()
        outputs = ((1, 8, 8, 8),) if kind == "split" else inputs
        assert obstacle(op(kind, inputs=inputs, outputs=outputs, weights=weights)) == ""


@pytest.mark.parametrize(
    ("kind", "newest"), [("conv_2d", 5), ("transpose_conv", 3), ("quantize", 2), ("exp", 1)]
)  # fmt: skip
def test_versions_that_compiler_16_was_seen_to_refuse(kind: str, newest: int) -> None:
    assert refusal(op(kind, version=newest)) == ""
    assert f"version {newest + 1}" in refusal(op(kind, version=newest + 1)) and "op 3" in refusal(op(kind, version=9))


def test_what_is_uncertain_is_said() -> None:
    assert caution(replace(DENSE, version=4)) == "" and "version 5" in caution(replace(DENSE, version=5))
    mean = op("mean", inputs=((1, 64, 128, 16),), outputs=(ROW,))
    assert caution(mean) == "" and "#461" in caution(replace(mean, inputs=((1, 256, 128, 16),)))


def test_operations_newer_than_the_compiler_refuse_the_whole_file() -> None:
    t = LayerTable("t")
    x = t.unary("gelu", t.conv(t.input((1, 8, 8, 3)), 8, 3))
    plan = map_edgetpu(t.build(x))
    assert plan.mapped == 0 and not plan.maps_whole and "gelu" in plan.refused[0].lower()
    assert {status for *_, status in plan.table()} != {"Mapped to Edge TPU"}
    assert map_edgetpu(line_of("relu")).maps_whole


def line_of(*kinds: str) -> Workload:
    t = LayerTable("t")
    x = t.conv(t.input((1, 8, 8, 3)), 8, 3)
    for kind in kinds:
        x = t.unary(kind, x)
    return t.build(x)


def chain(*kinds: str) -> list[bool]:
    return [o.maps for o in map_edgetpu(line_of(*kinds)).ops]


def test_what_follows_an_operation_on_the_cpu_stays_there() -> None:
    assert chain("relu", "hard_swish", "relu", "logistic") == [True, True, False, False, False]
    plan = map_edgetpu(line_of("hard_swish", "relu"))
    assert plan.ops[2].why == SPLIT and "not an operation" in plan.ops[1].why
    assert [(s.where, s.first, s.last) for s in plan.segments] == [("edgetpu", 0, 0), ("cpu", 1, 2)]
    assert plan.line() == "1 of 3 ops map to the Edge TPU"


def test_several_parts_as_with_a() -> None:
    plan = map_edgetpu(line_of("hard_swish", "relu"), several=True)
    assert [o.maps for o in plan.ops] == [True, False, True] and plan.parts == 2
    assert map_edgetpu(line_of("hard_swish", "relu")).parts == 1


def test_files_that_the_compiler_does_not_take_at_all() -> None:
    floats = LayerTable("t", dtype="float32")
    plan = map_edgetpu(floats.build(floats.conv(floats.input((1, 8, 8, 3)), 8, 3)))
    assert plan.refused[0].startswith("model not quantized") and plan.mapped == plan.parts == 0
    onnx = replace(line_of("relu"), source="onnx")
    assert "an ONNX file" in map_edgetpu(onnx).refused[0] and not map_edgetpu(onnx).maps_whole


def test_of_a_refused_file_nothing_lies_on_the_chip() -> None:
    onnx = replace(table("mobilenet-v1"), source="onnx")
    assert map_edgetpu(table("mobilenet-v1")).on_chip_bytes > 0
    plan = map_edgetpu(onnx)
    assert plan.refused and (plan.on_chip_bytes, plan.streamed_bytes, plan.parts) == (0, 0, 0)
    assert [segment.where for segment in plan.segments] == ["cpu"]


def test_only_what_depends_on_the_cpu_stays_there() -> None:
    """A branch beside the unsupported operation still maps; where both meet it ends."""
    t = LayerTable("t")
    x = t.conv(t.input((1, 8, 8, 8)), 8, 3)
    left, right = t.unary("hard_swish", x), t.conv(x, 8, 3)
    plan = map_edgetpu(t.build(t.add(left, right)))
    assert [o.maps for o in plan.ops] == [True, False, True, False]


def test_a_float_input_only_moves_the_beginning() -> None:
    """QUANTIZE from floats runs on the CPU; the part behind it is the first that can be compiled."""
    t = LayerTable("t")
    x = t.unary("quantize", t.input((1, 8, 8, 3), dtype="float32"), dtype="int8")
    plan = map_edgetpu(t.build(t.conv(t.conv(x, 8, 3), 8, 3)))
    assert [o.maps for o in plan.ops] == [False, True, True] and not plan.maps_whole


def test_parameters_on_chip_and_streamed() -> None:
    small, large = map_edgetpu(table("squeezenet")), map_edgetpu(table("vgg16"))
    assert small.streamed_bytes == 0 and small.on_chip_bytes == table("squeezenet").constant_bytes
    assert large.streamed_bytes + large.on_chip_bytes == table("vgg16").constant_bytes
    assert large.on_chip_bytes < 1_000_000  # its first activations fill the memory
    assert map_edgetpu(table("vgg16"), sram_bytes=200_000_000).streamed_bytes == 0


def test_a_peak_counts_what_lives_together() -> None:
    t = LayerTable("t")
    x = t.input((1, 4, 4, 2))  # 32 bytes
    y = t.unary("relu", x)
    z = t.unary("relu", y)
    assert peak_activation_bytes(t.build(t.add(x, z))) == 3 * 32


def test_a_real_file_maps_whole() -> None:
    data = (GOLDEN / "digits.tflite").read_bytes()
    plan = map_edgetpu(data)
    assert plan.maps_whole and plan.line() == f"{len(plan.ops)} of {len(plan.ops)} ops map to the Edge TPU"
    assert "version 4 only" in "".join(o.why for o in plan.ops)  # what is uncertain is said
    assert plan.on_chip_bytes > 0 and plan.streamed_bytes == 0
    assert sum(count for _, count, _ in plan.table()) == len(plan.ops)


def test_a_compiled_file_is_recognised() -> None:
    plan = map_edgetpu((GOLDEN / "digits.tflite").read_bytes() + EDGETPU_OP)
    assert plan.compiled and plan.line() == "compiled for the Edge TPU"


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(BundleError):
        map_edgetpu(b"\x00\x00\x00\x00TFL3" + b"\xff" * 64)


def test_the_networks_of_the_table_split_where_they_should() -> None:
    assert map_edgetpu(table("resnet-152-v2")).maps_whole
    deeplab = map_edgetpu(table("deeplab-v3-513"))
    assert [o.op.kind for o in deeplab.ops if not o.maps] == ["resize_bilinear", "argmax"]
    ssd = map_edgetpu(table("mobilenet-v2-ssd"))
    assert [o.op.kind for o in ssd.ops if not o.maps] == ["tflite_detection_postprocess"]


def test_no_operation_is_both_parsed_and_newer_than_the_compiler() -> None:
    assert not [kind for kind in PARSED if kind in UNPARSED or kind.startswith(UNPARSED_PREFIXES)]


def test_obstacles_that_are_known_already_give_the_same_map() -> None:
    work = table("mobilenet-v2-ssd")
    assert map_edgetpu(work, obstacles=[obstacle(o) for o in work.ops]) == map_edgetpu(work)
    assert map_edgetpu(work, obstacles=["none fits"] * len(work.ops)).mapped == 0
