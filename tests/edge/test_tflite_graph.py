"""The wiring of a TFLite file: as the flatbuffers library reads it, and never outside of the file."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from worlds.bundles import GOLDEN
from worlds.flat_files import constants_behind

from kasmina_edge.engines.tflite_graph import Operator, TfliteGraph
from kasmina_edge.errors import BundleError

DATA = (GOLDEN / "digits.tflite").read_bytes()


def indices(values: object) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)  # type: ignore[attr-defined]


def test_it_reads_what_the_library_reads() -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(DATA, 0))
    tensors, graph = model.subgraphs[0].tensors, TfliteGraph(DATA)
    expected = []
    for op in model.subgraphs[0].operators:
        code = model.operatorCodes[op.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        expected.append(Operator(kind, indices(op.inputs), indices(op.outputs)))
    assert list(graph.operators) == expected and len(expected) > 5
    constants = 0
    for index, tensor in enumerate(tensors):
        data, span = model.buffers[tensor.buffer].data, graph.constant(index)
        if data is None or not len(data):
            assert span is None
            continue
        assert span is not None and DATA[span[0] : sum(span)] == np.asarray(data, np.uint8).tobytes()
        constants += 1
    assert constants > 5 and graph.constant(-1) is graph.constant(10_000) is None
    first = graph.operators[0]
    assert graph.producer(first.outputs[0]) == first and graph.producer(first.inputs[0]) is None


def test_constants_behind_the_flatbuffer_are_found() -> None:
    large = constants_behind(DATA)
    near, far = TfliteGraph(DATA), TfliteGraph(large)
    assert far.operators == near.operators
    for index in range(len(near.buffers)):
        here, there = near.constant(index), far.constant(index)
        assert (here is None) == (there is None)
        if here is not None and there is not None:
            assert DATA[here[0] : sum(here)] == large[there[0] : sum(there)]
    with pytest.raises(BundleError, match="of a file of"):
        cut = TfliteGraph(large[:-40])
        for index in range(len(cut.buffers)):
            cut.constant(index)


def test_a_file_without_a_residual_sum_has_no_branch() -> None:
    graph = TfliteGraph(DATA)
    for entry in range(len(graph.buffers)):
        for leave in range(len(graph.buffers)):
            assert graph.branch(entry, leave) is None


def test_a_constant_that_others_read_is_not_silenced() -> None:
    """PAD's widths are one buffer for two operators here; the last layer's weights are its own."""
    graph = TfliteGraph(DATA)
    shared = [op for op in graph.operators if 9 in op.inputs]
    assert len(shared) == 2
    assert graph.silenced([(shared[0],)]) is None
    data = graph.silenced([(graph.operators[-1],)], {2: 5})
    assert data is not None and len(data) == len(DATA)
    span = graph.constant(2)
    assert span is not None and set(data[span[0] : sum(span)]) == {5}
    assert graph.silenced([(Operator(0, (0,), (15,)),)]) is None  # nothing constant


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0\0\0\0TFL4" + bytes(64), DATA[:200], DATA[:-300]])
def test_what_is_no_file_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        graph = TfliteGraph(data)
        for index in range(len(graph.buffers)):
            graph.constant(index)


@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=8), st.integers(0, len(DATA)))
def test_damaged_files_are_read_or_refused(at: int, bytes_: bytes, end: int) -> None:
    data = (DATA[:at] + bytes_ + DATA[at + len(bytes_) :])[: max(end, 8)]
    try:
        graph = TfliteGraph(data)
        for index in range(min(len(graph.buffers), 100)):
            span = graph.constant(index)
            assert span is None or 0 <= span[0] <= sum(span) <= len(data)
    except BundleError:
        pass
