"""Damaged and hostile model files: refused, or read to figures that every layer can work with."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_workload import ONNX, TFLITE, onnx_model

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.hardware_simulator import HardwareContext, OpWork, Workload, arena_bytes, read_workload
from kasmina_edge.hardware_simulator.edgetpu_map import map_edgetpu
from kasmina_edge.hardware_simulator.soundness import MAX_OPS, sound

TARGETS = [
    HardwareContext(load_profile(name)) for name in ("coral", "raspberry-pi-4", "stm32u575", "tpu-like", "x86-cpu")
]
"""One of every kind of layer; the processors once by their anchors and once calibrated."""


def answers_or_refuses(data: bytes) -> Workload | None:
    try:
        work = read_workload(data)
    except BundleError:
        return None
    assert arena_bytes(work) >= 0 and work.input_bytes >= 0 and work.dtypes is not None
    map_edgetpu(work, several=True)
    for target in TARGETS:
        try:
            found = target.estimate(work)
        except InputError:
            continue
        assert 0.0 <= found.latency_ms < math.inf and all(op.latency_us >= 0.0 for op in found.ops)
    return work


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([TFLITE, ONNX]), st.randoms(use_true_random=False), st.integers(1, 12))
def test_damaged_files_are_refused_or_read(data: bytes, rng: random.Random, damages: int) -> None:
    broken = bytearray(data)
    for _ in range(damages):
        at = rng.randrange(len(broken))
        broken[at : at + rng.randrange(5)] = rng.choice((b"\xff\xff\xff\xff", b"\0", b"\x7f", b"\x80\x80\x80\x80", b""))
    answers_or_refuses(bytes(broken))


@pytest.mark.parametrize("data", [TFLITE, ONNX], ids=["tflite", "onnx"])
def test_cut_files_are_refused(data: bytes) -> None:
    for length in range(0, len(data), 97):
        answers_or_refuses(data[:length])
    with pytest.raises(BundleError):
        read_workload(data[: len(data) // 2])
    assert answers_or_refuses(data) is not None


def test_what_is_no_model_is_told_what_was_tried() -> None:
    with pytest.raises(BundleError) as caught:
        read_workload(b"1234FLAT" * 8, "net.tflite")
    assert caught.value.message == (
        "net.tflite: 64 bytes that are neither a TFLite file (bytes 4 to 8 are b'FLAT', expected b'TFL3') nor an ONNX "
        "model (it is cut off)"
    )
    with pytest.raises(BundleError, match="it holds no graph"):
        read_workload(b"")


@pytest.mark.parametrize("data", [b"", b"not a model", b"\0" * 64, b"....TFL3" + b"\xff" * 64])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_workload(data)


def test_graphs_in_graphs_in_graphs_end() -> None:
    def framed(number: int, body: bytes) -> bytes:
        size, head = len(body), b""
        while size > 0x7F:
            head, size = head + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + body

    graph = b""
    for _ in range(30):
        graph = framed(1, framed(4, b"If") + framed(5, framed(1, b"then_branch") + framed(6, graph)))
    with pytest.raises(BundleError, match="deep"):
        read_workload(framed(7, graph))


def test_a_shape_that_fills_the_earth_is_refused() -> None:
    data = onnx_model([("Relu", ["x"], ["y"], {})], [("x", 1, [2**20, 2**20, 2**20])], ["y"], {})
    with pytest.raises(BundleError, match="elements"):
        read_workload(data)


MALFORMED = {
    "no axis": [("Concat", ["x", "x"], ["y"], {})],
    "no axis of constants": [("Concat", ["a", "a"], ["y"], {})],
    "no window": [("MaxPool", ["x"], ["y"], {})],
    "no width": [("MatMulNBits", ["x", "a"], ["y"], {})],
    "no block": [("DepthToSpace", ["x"], ["y"], {})],
    "an axis twice": [("Unsqueeze", ["x", "a"], ["y"], {})],
    "no operand": [("Shape", [], ["y"], {})],
    "nothing to quantize": [("QuantizeLinear", [], ["y"], {})],
    "no output": [("Shape", ["x"], [], {})],
    "an identity of nothing": [("Identity", ["x"], [], {})],
    "no pixels": [("Conv", ["v", "w"], ["y"], {"group": 3})],
    "no stride": [("Conv", ["x", "w"], ["y"], {"strides": [0, 0]})],
    "no groups": [("Conv", ["x", "w"], ["y"], {"group": 0})],
    "no filters": [("Conv", ["x", "none"], ["y"], {})],
    "itself": [("Add", ["y", "x"], ["y"], {})],
    "a circle": [("Add", ["z", "x"], ["y"], {}), ("Add", ["y", "x"], ["z"], {})],
}


@pytest.mark.parametrize("nodes", MALFORMED.values(), ids=MALFORMED)
def test_a_node_that_lacks_what_it_needs_is_no_crash(nodes: Any) -> None:
    constants = {
        "a": np.zeros(4, np.int64),
        "w": np.zeros((3, 1, 3, 3), np.float32),
        "none": np.zeros((0, 3, 3, 3), np.float32),
    }
    answers_or_refuses(onnx_model(nodes, [("x", 1, [1, 3, 8, 8]), ("v", 1, [5])], ["y"], constants))


def test_an_operation_without_its_operands_is_refused_by_its_place() -> None:
    good = OpWork(
        "conv_2d", ((1, 8, 8, 3),), ((1, 8, 8, 4),), "int8", (4, 3, 3, 3), "int8", macs=9, place="op 7 CONV_2D"
    )
    assert sound(Workload("good", (good,))).ops == (good,)
    wrong = (
        {"inputs": ()},
        {"outputs": ()},
        {"outputs": ((),)},
        {"weights": (4, 3, 3)},
        {"weights": (0, 3, 3, 3)},
        {"inputs": ((8, 8),)},
        {"stride": (1, -2)},
        {"groups": 0},
        {"kind": "depthwise_conv_2d", "weights": ()},
    )
    for change in wrong:
        with pytest.raises(BundleError, match="op 7 CONV_2D"):
            sound(Workload("wrong", (replace(good, **change),)))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="at most"):
        sound(Workload("many", (good,) * (MAX_OPS + 1)))
