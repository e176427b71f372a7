"""An ``.onnx`` file as a PyTorch module, so that it goes the same way as any other network.

ONNX Runtime's basic graph optimisations run first: they compute what follows from constants and shapes alone and fold
normalisations, so that what is left is layers. The module is then compared with ONNX Runtime on seeded noise; an import
that answers differently is refused. (The converter in the package index, onnx2torch, needs torchvision.)
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import fx

from kasmina_edge.errors import InputError
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.export.source.builder import GraphBuilder
from kasmina_trainer.export.source.onnx_operators import OPERATORS
from kasmina_trainer.export.source.onnx_step import Step, Unsupported
from kasmina_trainer.export.source.side_files import take_in

Array = npt.NDArray[Any]
TOLERANCE = 2e-3
"""Largest difference from ONNX Runtime on noise, as a share of the largest answer."""

_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
              "DynamicQuantizeLinear", "MatMulNBits"}  # fmt: skip
_WORDS = re.compile(r"[\x00-\x1f\x7f]")


def read_onnx(
    data: bytes, *, where: str, input_shape: Sequence[int] | None = None, folder: Path | None = None
) -> tuple[fx.GraphModule, tuple[int, ...], tuple[str, ...], dict[str, str]]:
    """The module, its input shape, the names of its outputs, and the SHA-256 of files beside it by name.

    Args:
        data: The file.
        where: Path, for messages.
        folder: Where weights in other files may lie; None: nowhere.
        input_shape: What to fix open axes to, batch axis included. An open first axis becomes 1 without it.

    Raises:
        InputError: Not ONNX, weights in files elsewhere, several inputs, open shapes, quantized already, an operator
            that is not in `onnx_operators.OPERATORS` (named with its node), or an import that answers differently.
    """
    model = _parsed(data, where)
    beside = take_in(model, folder, where)
    shape = _fix_shape(model, where, input_shape)
    plain = _optimized(model, where)
    module, names = _build(plain, where)
    _compare(model, module, shape, where)
    return module, shape, names, beside


def _parsed(data: bytes, where: str) -> onnx.ModelProto:
    try:
        model: onnx.ModelProto = onnx.load_model_from_string(data)
        known = bool(model.graph.node) and bool(model.graph.input)
    except Exception as exc:  # protobuf's DecodeError on hostile bytes
        raise InputError(f"{where}: neither a .pt2 nor an .onnx file ({str(exc)[:100]})") from exc
    if not known:
        raise InputError(f"{where}: neither a .pt2 nor an .onnx file (no graph was found in it)")
    taken = sorted({n.op_type for n in model.graph.node} & _QUANTIZED)
    if taken:
        raise InputError(f"{where}: it is quantized already ({', '.join(taken)})", "Export the float network instead.")
    return model


def _fix_shape(model: onnx.ModelProto, where: str, asked: Sequence[int] | None) -> tuple[int, ...]:
    fed = [i for i in model.graph.input if i.name not in {c.name for c in model.graph.initializer}]
    if len(fed) != 1:
        names = ", ".join(_clean(i.name) for i in fed)
        raise InputError(f"{where}: {len(fed)} inputs ({names}), one is exported", "Join them, or wrap the network.")
    kind = fed[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise InputError(f"{where}: input {_clean(fed[0].name)} is {name}, FLOAT is expected")
    axes = kind.shape.dim
    if asked is not None and len(asked) != len(axes):
        raise InputError(f"{where}: the input has {len(axes)} axes, --input-shape gives {len(asked)}")
    shape = []
    for i, axis in enumerate(axes):
        own = axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None
        wanted = asked[i] if asked is not None else (1 if i == 0 and own is None else own)
        if wanted is None:
            name = _clean(axis.dim_param) or "unnamed"
            raise InputError(
                f"{where}: axis {i} of input {_clean(fed[0].name)} has an open length ({name}, dynamic shape)",
                "Fix it with --input-shape, batch axis included, such as 1,3,96,96.",
            )
        if own is not None and own != wanted:
            raise InputError(f"{where}: axis {i} is {own} in the file, --input-shape gives {wanted}")
        shape.append(int(wanted))
        axis.dim_value = int(wanted)
    del model.graph.value_info[:]  # shapes are worked out anew
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return tuple(shape)


def _optimized(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    import onnxruntime

    with quiet(), tempfile.TemporaryDirectory(prefix="kasmina-") as folder:
        target = Path(folder) / "plain.onnx"
        options = _options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            made: onnx.ModelProto = onnx.load_model_from_string(target.read_bytes())
        except Exception as exc:
            reason = str(exc).splitlines()[0][:300]
            raise InputError(f"{where}: ONNX Runtime refuses it ({_clean(reason)})") from exc
    return made


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _build(model: onnx.ModelProto, where: str) -> tuple[fx.GraphModule, tuple[str, ...]]:
    build = GraphBuilder()
    fixed = {c.name: np.array(numpy_helper.to_array(c)) for c in model.graph.initializer}
    nodes = {i.name: build.input() for i in model.graph.input if i.name not in fixed}
    shapes = _shapes(model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    for index, node in enumerate(model.graph.node):
        origin = f"ONNX node {index} {_clean(node.name or node.output[0])}"
        kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        convert = OPERATORS.get(kind)
        if convert is None:
            raise InputError(
                f"{where}: operator {_clean(kind)} cannot be taken ({origin})",
                f"These can: {', '.join(sorted(OPERATORS))}.",
            )
        step = Step(
            build=build,
            inputs=tuple(node.input),
            outputs=len(node.output),
            options={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
            fixed=fixed,
            nodes=nodes,
            shapes=shapes,
            opset=opset,
            name=_clean(node.name) or node.op_type,
            origin=origin,
        )
        try:
            made = convert(step)
        except Unsupported as exc:
            raise InputError(f"{where}: {node.op_type} {exc} ({origin})", exc.step) from exc
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            raise InputError(f"{where}: {node.op_type} is malformed ({origin}: {exc})") from exc
        for name, value in zip(node.output, made, strict=False):
            if isinstance(value, np.ndarray):
                fixed[name] = value
            else:
                nodes[name] = value
    outputs = [nodes.get(o.name) for o in model.graph.output]
    if any(o is None for o in outputs):
        raise InputError(f"{where}: an output does not depend on the input")
    return build.finish([o for o in outputs if o is not None]), tuple(_clean(o.name) for o in model.graph.output)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    found = onnx.shape_inference.infer_shapes(model)
    values = (*found.graph.input, *found.graph.value_info, *found.graph.output)
    return {
        v.name: tuple(int(d.dim_value) for d in v.type.tensor_type.shape.dim)
        for v in values
        if v.type.tensor_type.HasField("shape")
    }


def _compare(model: onnx.ModelProto, module: fx.GraphModule, shape: tuple[int, ...], where: str) -> None:
    import onnxruntime

    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with quiet():
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), _options(), providers=["CPUExecutionProvider"]
        )
        expected = session.run(None, {session.get_inputs()[0].name: noise})
    try:
        with torch.no_grad():
            given = module(torch.from_numpy(noise))
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        raise InputError(f"{where}: the import does not run ({str(exc).splitlines()[0][:200]})") from exc
    answers = [a.numpy() for a in (given if isinstance(given, tuple) else (given,))]
    for i, (mine, other) in enumerate(zip(answers, expected, strict=True)):
        if mine.shape != other.shape:
            raise InputError(f"{where}: output {i} became {mine.shape}, ONNX Runtime gives {other.shape}")
        gap, size = float(np.abs(mine - other).max()), float(np.abs(other).max())
        if not gap <= TOLERANCE * max(size, 1e-6):
            raise InputError(
                f"{where}: output {i} differs from ONNX Runtime's by {gap:.3g} where values reach {size:.3g}",
                "Please report it with the operators of this file; export from PyTorch with torch.export meanwhile.",
            )


def _clean(text: str) -> str:
    """Text of a file as a message may carry it."""
    return _WORDS.sub("?", text)[:120]
