"""Make the small real models that the edge's tests run: digits.tflite, digits.onnx, digits.npz, digits.json.

Needs the trainer extra (torch, litert-torch, ai-edge-quantizer, onnx, onnxruntime, scikit-learn); run it from the
repository root when the files are to be made anew. A depthwise-separable network of about 1,100 parameters is trained
on scikit-learn's digits at 16x16 (half of them), quantized to full int8 for LiteRT and to QDQ (uint8 activations) for
ONNX Runtime. digits.json says where the classifier's bytes lie in each file, so that `worlds.bundles` can make variants
of the models without a model library.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ai_edge_quantizer
import litert_torch
import numpy as np
import onnx
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import recipe
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
SEED = 7


def enlarge(small: np.ndarray) -> np.ndarray:
    """8x8 grey values 0..16 to 16x16 frames 0..1 by repetition and a 3-tap smoothing along both axes."""
    big = np.kron(np.asarray(small, np.float32), np.ones((1, 2, 2), np.float32)) / 16.0
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        wide = np.pad(big, pad)
        n = big.shape[axis]
        parts = [np.take(wide, range(k, k + n), axis=axis) for k in range(3)]
        big = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
    return big[..., None].astype(np.float32)


class Net(torch.nn.Module):
    """Digits at 16x16, channels first inside."""

    def __init__(self) -> None:
        super().__init__()
        c = torch.nn.Conv2d
        self.body = torch.nn.Sequential(
            c(1, 8, 3, 2, 1), torch.nn.ReLU(),
            c(8, 8, 3, 1, 1, groups=8), c(8, 16, 1), torch.nn.ReLU(),
            c(16, 16, 3, 2, 1, groups=16), c(16, 24, 1), torch.nn.ReLU(),
        )  # fmt: skip
        self.head = torch.nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, 1, 16, 16) to (1, 10)."""
        return self.head(self.body(x).mean((2, 3), keepdim=True).flatten(1))


class ChannelsLast(torch.nn.Module):
    """The same network with the app's layout, for ONNX."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, 16, 16, 1) to (1, 10)."""
        return self.net(x.permute(0, 3, 1, 2))


def train(x: np.ndarray, y: np.ndarray) -> Net:
    """Full-batch-shuffled Adam, 60 epochs."""
    torch.manual_seed(SEED)
    net = Net()
    xs, ys = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    for _ in range(120):
        for part in torch.randperm(len(xs)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(xs[part]), ys[part]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def to_tflite(net: Net, x: np.ndarray, folder: Path) -> bytes:
    """Full int8, tensor names blanked."""
    module = litert_torch.to_channel_last_io(net, args=[0])
    litert_torch.convert(module, (torch.from_numpy(x[:1]),)).export(str(folder / "float.tflite"))
    quantizer = ai_edge_quantizer.Quantizer(str(folder / "float.tflite"), recipe.static_wi8_ai8())
    runner = Interpreter(model_path=str(folder / "float.tflite")).get_signature_list()
    key = next(iter(runner))
    name = runner[key]["inputs"][0]
    calibration = quantizer.calibrate({key: [{name: x[i : i + 1]} for i in range(200)]})
    data = bytes(quantizer.quantize(calibration).quantized_model)
    return blank_names(data)


def blank_names(data: bytes) -> bytes:
    """Tensor names take more bytes than this network."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = b""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Reader(CalibrationDataReader):
    """Feeds calibration frames one by one."""

    def __init__(self, x: np.ndarray) -> None:
        self.frames = iter(x[:200])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next frame or None."""
        frame = next(self.frames, None)
        return None if frame is None else {"x": frame[None]}


def to_onnx(net: Net, x: np.ndarray, folder: Path) -> bytes:
    """QDQ int8 weights, uint8 activations, quantized input and float output removed nowhere: float in, float out."""
    example = (torch.from_numpy(x[:1]),)
    program = torch.onnx.export(ChannelsLast(net).eval(), example, dynamo=True, opset_version=20,
                                input_names=["x"], output_names=["y"], verbose=False)  # fmt: skip
    program.save(str(folder / "float.onnx"), external_data=False)
    quantize_static(str(folder / "float.onnx"), str(folder / "q.onnx"), Reader(x), quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    model = onnx.load(str(folder / "q.onnx"))
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    model.graph.doc_string = model.doc_string = ""
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


def once(data: bytes, part: bytes) -> int:
    """Where ``part`` lies; it must lie there once."""
    assert data.count(part) == 1, data.count(part)
    return data.index(part)


def layout_tflite(data: bytes) -> dict[str, Any]:
    """Byte ranges that belong to the classifier: weights, bias and per-class scales, class-major."""
    runner = Interpreter(model_content=data)
    runner.allocate_tensors()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    last = graph.operators[-1]
    found = []
    for index in (last.inputs[1], last.inputs[2]):
        tensor = graph.tensors[index]
        blob = bytes(bytearray(model.buffers[tensor.buffer].data))
        found.append([once(data, blob), len(blob) // 10])
        scales = np.asarray(tensor.quantization.scale, np.float32).tobytes()
        if len(scales) == 40:
            found.append([once(data, scales), 4])
    return {"classes": 10, "rows": found, "columns": []}


def layout_onnx(data: bytes) -> dict[str, Any]:
    """As `layout_tflite`; an ONNX MatMul keeps its weights input-major, so classes are columns there."""
    model = onnx.load_from_string(data)
    rows, columns = [], []
    for tensor in model.graph.initializer:
        if 10 in tensor.dims:
            blob = tensor.raw_data
            if tensor.dims[0] == 10:
                rows.append([once(data, blob), len(blob) // 10])
            else:
                columns.append([once(data, blob), len(blob) // tensor.dims[0], 1])
    return {"classes": 10, "rows": rows, "columns": columns}


def main() -> None:
    """Write the four files."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.images))
    half, rest = order[:1200], order[1200:1440]
    x, y = enlarge(digits.images[half]), digits.target[half]
    net = train(x, y)
    with tempfile.TemporaryDirectory() as name:
        tflite, onnx_bytes = to_tflite(net, x, Path(name)), to_onnx(net, x, Path(name))
    held = enlarge(digits.images[rest])
    logits = net(torch.from_numpy(held).permute(0, 3, 1, 2)).detach().numpy()
    print("held-out accuracy of the float network", float((logits.argmax(1) == digits.target[rest]).mean()))
    (HERE / "digits.tflite").write_bytes(tflite)
    (HERE / "digits.onnx").write_bytes(onnx_bytes)
    np.savez_compressed(HERE / "digits.npz", images=digits.images[rest].astype(np.uint8),
                        labels=digits.target[rest].astype(np.uint8))  # fmt: skip
    layout = {"digits.tflite": layout_tflite(tflite), "digits.onnx": layout_onnx(onnx_bytes)}
    (HERE / "digits.json").write_text(json.dumps(layout, indent=1) + "\n")
    print({p.name: p.stat().st_size for p in HERE.glob("digits.*")}, layout)


if __name__ == "__main__":
    main()
