"""A model file as a workload, whichever of the two formats it has; no onnx or flatbuffers library is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from kasmina_edge.engines.tflite_file import IDENTIFIER
from kasmina_edge.errors import BundleError
from kasmina_edge.hardware_simulator.soundness import sound
from kasmina_edge.hardware_simulator.workload import Shape, Workload

MAX_FILE_BYTES = 1 << 30


def read_workload(
    data: bytes,
    name: str = "",
    inputs: Mapping[str, Shape] | None = None,
    constants: Mapping[str, float] | None = None,
) -> Workload:
    """The operations of a ``.tflite`` or ``.onnx`` file, told apart by content.

    Args:
        data: The file's bytes.
        name: For people; "" takes the file's own.
        inputs: Whole shapes by input name, for axes that an ``.onnx`` file leaves open. An open first axis, the batch,
            counts as 1 without it; a ``.tflite`` file has lengths of its own.
        constants: Inputs of an ``.onnx`` file that are always fed the same number, for branches that hang on it.

    Raises:
        BundleError: Neither of the two, cut off, pointing outside of itself, with shapes that are not fixed, or
            with operations that cannot be (see `soundness`).
    """
    if len(data) > MAX_FILE_BYTES:
        raise BundleError(f"a model file of {len(data)} bytes, at most {MAX_FILE_BYTES} are read")
    if data[4:8] == IDENTIFIER:
        from kasmina_edge.hardware_simulator.tflite_reading import read_tflite

        return sound(read_tflite(data, name))
    from kasmina_edge.hardware_simulator.onnx_graph import read_graph
    from kasmina_edge.hardware_simulator.onnx_reading import read_onnx

    try:
        graph = read_graph(data)
    except ValueError as exc:
        raise BundleError(
            f"{name or 'model'}: {len(data)} bytes that are neither a TFLite file (bytes 4 to 8 are {data[4:8]!r}, "
            f"expected {IDENTIFIER!r}) nor an ONNX model ({exc})",
            "Give a .tflite or .onnx file, neither packed nor encrypted.",
        ) from exc
    return sound(read_onnx(graph, name, inputs, constants))
