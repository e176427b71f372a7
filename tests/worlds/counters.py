"""A tiny ONNX model with state, and one without: what the app reads is the sum of all frames so far, times a factor.

from worlds.counters import make_counter
bundle = make_counter(factor=2.0)              # answers 2 * (x1 + x2 + ...) since its beginning
"""

from __future__ import annotations

import numpy as np
import onnx

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import (
    BundleManifest,
    FileEntry,
    ModelFile,
    ModelIO,
    ModelTensor,
    Parity,
    SelfTest,
    StatePair,
)

SHAPE = (1, 3)


def make_counter(*, factor: float = 1.0, version: str = "1.0.0", release: int = 1, stateful: bool = True) -> Bundle:
    """An unsigned bundle for ONNX Runtime; without state it answers ``factor * x``."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    info = {n: helper.make_tensor_value_info(n, kind, SHAPE) for n in ("x", "before", "after", "y")}
    scale = helper.make_tensor("factor", kind, (), [factor])
    total = "after" if stateful else "x"
    nodes = [helper.make_node("Mul", [total, "factor"], ["y"])]
    inputs, outputs = ["x"], ["y"]
    if stateful:
        nodes.insert(0, helper.make_node("Add", ["before", "x"], ["after"]))
        inputs, outputs = ["x", "before"], ["y", "after"]
    graph = helper.make_graph(nodes, "g", [info[n] for n in inputs], [info[n] for n in outputs], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    ones = np.ones(SHAPE, np.float32)
    tests = pack_arrays({"input_x": ones, "output_y": ones * factor})
    entry = ModelFile(
        file=FileEntry.of("m.onnx", model),
        engine="onnxruntime",
        inputs=tuple(ModelTensor(name=n, shape=SHAPE, dtype="float32") for n in inputs),
        outputs=tuple(ModelTensor(name=n, shape=SHAPE, dtype="float32") for n in outputs),
        states=(StatePair(input="before", output="after"),) if stateful else (),
        selftest=SelfTest(file=FileEntry.of("t.npz", tests), samples=1, tolerance=0.0),
        parity=Parity(samples=1, top1_agreement=1.0, max_abs_difference=0.0),
    )
    manifest = BundleManifest(
        name="counter",
        version=version,
        release=release,
        profile="x86-cpu",
        inputs=(ModelIO(name="x", shape=SHAPE),),
        outputs=(ModelIO(name="sum", shape=SHAPE),),
        models=(entry,),
    )
    return Bundle(manifest, {"m.onnx": model, "t.npz": tests})
