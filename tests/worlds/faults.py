"""A small network in several forms, and faults planted into its files: what `compare` has to find.

Faults are planted into object trees of a TFLite file or into an ONNX model, never into the code that looks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.nn import functional

from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export import onnx as onnx_export
from kasmina_trainer.export.float_tflite import FloatNetwork, convert
from kasmina_trainer.export.folding import fold_norms

Array = npt.NDArray[Any]


class Branches(nn.Module):
    """Stem, depthwise with a residual, two branches that are joined, a strided convolution, a head; random weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.stem = nn.Conv2d(1, 8, 3, 2, 1)
            self.norm = nn.BatchNorm2d(8)
            self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
            self.left = nn.Conv2d(8, 8, 1)
            self.right = nn.Conv2d(8, 8, 1)
            self.wide = nn.Conv2d(16, 16, 3, 2, 1)
            self.head = nn.Linear(16, 5)
            for part in (self.stem, self.depthwise, self.left, self.right, self.wide, self.head):
                nn.init.kaiming_normal_(part.weight)
                nn.init.normal_(part.bias, std=0.05)
            self.norm.running_mean.normal_(std=0.1)
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) to (N, 5)."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.depthwise(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        x = torch.relu(self.wide(x))
        answer: torch.Tensor = self.head(x.mean((2, 3), keepdim=True).flatten(1))
        return answer


class Assorted(nn.Module):
    """Squeeze and excitation, gating, pooling, resizing, normalisation, attention; two answers, one an image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(1, 16, 3, 2, 1)
            self.norm = nn.BatchNorm2d(16)
            self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
            self.gate = nn.Conv2d(16, 32, 1)
            self.layer_norm = nn.LayerNorm(16)
            self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.scores = nn.Linear(16, 4)
            self.boxes = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 1, 16, 16) to (N, 4) and (N, 4, 8, 8)."""
        x = functional.relu6(self.norm(self.stem(x)) * 4)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        left, right = self.gate(x).chunk(2, 1)
        x = functional.avg_pool2d(x + left * torch.sigmoid(right), 2)
        boxes = self.boxes(functional.interpolate(x, scale_factor=2, mode="nearest"))
        tokens = self.layer_norm(x.flatten(2).transpose(1, 2))
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).transpose(1, 2) / 4, -1)
        tokens = tokens + weights @ self.value(tokens)
        return torch.softmax(self.scores(tokens.mean(1)), -1), boxes * 50


def pictures(count: int, seed: int = 0) -> Array:
    """Blobs of different place, width and brightness.  # (N, 16, 16, 1)"""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:16, 0:16]
    found = []
    for _ in range(count):
        cx, cy, width, light = rng.uniform(3, 13), rng.uniform(3, 13), rng.uniform(1, 5), rng.uniform(0.2, 1)
        found.append(light * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2)))
    return np.stack(found)[..., None].astype(np.float32)


@dataclass(frozen=True)
class Specimen:
    """One network in torch and as a float TFLite file, its ranges, and frames to ask it."""

    module: nn.Module
    network: FloatNetwork
    frames: Array
    ranges: Mapping[str, tuple[float, float]]

    def int8(
        self, ranges: Mapping[str, tuple[float, float]] | None = None, bits: Mapping[str, int] | None = None
    ) -> bytes:
        """A sound int8 file, or one with other ranges or widths."""
        return quantization.quantize(self.network.data, {**self.ranges, **(ranges or {})}, bits or {})

    def operators(self, *names: str) -> dict[str, int]:
        """``op 3 CONV_2D`` to its index, of the kinds named."""
        found = flatbuffer.operators(flatbuffer.parse(self.network.data))
        return {f"op {i} {op.name}": i for i, op in enumerate(found) if op.name in names}

    def written(self, index: int) -> str:
        """Name of the tensor that an operator writes."""
        model = flatbuffer.parse(self.network.data)
        return flatbuffer.tensor_names(model)[flatbuffer.operators(model)[index].outputs[0]]


def specimen(module: nn.Module | None = None) -> Specimen:
    """The network, converted once; takes seconds."""
    module = (module or Branches()).eval()
    return of_network(module, convert(fold_norms(module), (1, 16, 16, 1)))


def of_network(module: nn.Module, network: FloatNetwork) -> Specimen:
    """A specimen of a float file."""
    frames = pictures(48)
    observed = quantization.observe(lambda: quantization.watch(network.data, frames, network.activations))
    border = (*network.inputs, *network.outputs)
    return Specimen(module, network, frames, quantization.free_ranges(observed, headroom=0.2, border=border))


def shuffled_weights(data: bytes, index: int, seed: int = 0) -> bytes:
    """The weights of one operator in another order."""
    model = flatbuffer.parse(data)
    buffer = _buffer(model, index, 1)
    buffer.data = np.random.default_rng(seed).permutation(np.asarray(buffer.data))
    return flatbuffer.serialize(model)


def moved_bias(data: bytes, index: int) -> bytes:
    """A bias that is far off."""
    model = flatbuffer.parse(data)
    buffer = _buffer(model, index, 2)
    bias = np.asarray(buffer.data).view(np.int32)
    buffer.data = (bias + 4 * np.abs(bias).max() + 2000).astype(np.int32).view(np.uint8)
    return flatbuffer.serialize(model)


def moved_zero_point(data: bytes, index: int, by: int) -> bytes:
    """Another zero point for what one operator writes, and for all that must share it."""
    model = flatbuffer.parse(data)
    tensors = model.subgraphs[0].tensors
    old = tensors[flatbuffer.operators(model)[index].outputs[0]].quantization
    scheme = float(old.scale[0]), int(old.zeroPoint[0])
    for i, tensor in enumerate(tensors):
        if flatbuffer.scale_and_zero(model, i) == scheme and flatbuffer.type_name(model, i) == "INT8":
            tensor.quantization.zeroPoint = [scheme[1] + by]
    return flatbuffer.serialize(model)


def joined_outputs(made: Specimen, factor: float) -> Specimen:
    """A network that answers with two joined branches, one of them ``factor`` times as large: boxes beside scores."""
    model = flatbuffer.parse(made.network.data)
    join = next(iter(made.operators("CONCATENATION").values()))
    right = max(i for i in made.operators("CONV_2D").values() if i < join)
    for place in (1, 2):
        buffer = _buffer(model, right, place)
        buffer.data = (np.asarray(buffer.data).view(np.float32) * np.float32(factor)).view(np.uint8)
    graph, names = model.subgraphs[0], flatbuffer.tensor_names(model)
    output = flatbuffer.operators(model)[join].outputs[0]
    graph.operators = graph.operators[: join + 1]
    graph.outputs, model.signatureDefs = [output], None
    written = {names[int(o)] for op in graph.operators for o in op.outputs} | set(made.network.inputs)
    kept = tuple(name for name in made.network.activations if name in written)
    return of_network(
        made.module, FloatNetwork(flatbuffer.serialize(model), kept, made.network.inputs, (names[output],))
    )


def onnx_pair(module: nn.Module) -> tuple[bytes, bytes]:
    """The network as float ONNX and as a sound QDQ file."""
    model = onnx_export.convert(fold_norms(module.eval()), (1, 16, 16, 1))
    observed = quantization.observe(lambda: onnx_export.watch(model, pictures(48)))
    ranges = quantization.free_ranges(observed, headroom=0.2, border=("input", "output"))
    return model.SerializeToString(), onnx_export.quantize(model, ranges).SerializeToString()


def disagreeing_zero_point(data: bytes, node: int, by: int = 12) -> bytes:
    """A QDQ file in which what reads one step's output takes another zero point than what wrote it."""
    model = onnx.load_from_string(data)
    steps = [n for n in model.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear", "Constant")]
    stored = next(
        n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in steps[node].output
    )
    reader = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == stored)
    old = next(c for c in model.graph.initializer if c.name == reader.input[2])
    value = onnx.numpy_helper.to_array(old)
    wrong = np.asarray(np.clip(value.astype(int) + by, 0, 255), value.dtype)
    model.graph.initializer.append(onnx.numpy_helper.from_array(wrong, "wrong"))
    reader.input[2] = "wrong"
    return bytes(model.SerializeToString())


def shuffled_onnx_weights(data: bytes, name: str) -> bytes:
    """An ONNX file with one constant's values in another order."""
    model = onnx.load_from_string(data)
    constant = next(c for c in model.graph.initializer if c.name == name)
    value = onnx.numpy_helper.to_array(constant)
    mixed = np.random.default_rng(0).permutation(value.reshape(-1)).reshape(value.shape)
    constant.CopyFrom(onnx.numpy_helper.from_array(mixed, name))
    return bytes(model.SerializeToString())


def _buffer(model: Any, index: int, place: int) -> Any:
    """The buffer of one operator's input, as its own."""
    from ai_edge_litert import schema_py_generated as schema

    tensor = model.subgraphs[0].tensors[flatbuffer.operators(model)[index].inputs[place]]
    buffer = schema.BufferT()
    buffer.data = np.array(model.buffers[tensor.buffer].data)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    return buffer
