"""Networks of a user's own, as modules and as the files that a user would bring. Random weights, set statistics."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

Array = npt.NDArray[Any]


class PlainNet(nn.Module):
    """Convolutions with normalisation, global mean, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16),
            nn.ReLU(), nn.Dropout(0.5),
        )  # fmt: skip
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 16, 16) to (N, 4)."""
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3), keepdim=True).flatten(1))
        return logits


class ResidualNet(nn.Module):
    """Depthwise and pointwise convolutions, squeeze and excitation, a residual addition, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(256, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 16, 16) to (N, 5)."""
        x = torch.relu(self.norm(self.stem(x)))
        y = self.pointwise(nn.functional.relu6(self.depthwise(x)))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        logits: torch.Tensor = self.head(self.pool(torch.relu(x + y)).flatten(1))
        return logits


class EcgNet(nn.Module):
    """One-dimensional convolutions over a window."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 8, 7, 2, 3), nn.BatchNorm1d(8)
        self.second, self.head = nn.Conv1d(8, 16, 5, 2, 2), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 128) to (N, 3)."""
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        logits: torch.Tensor = self.head(x.mean(2))
        return logits


class TwoHeads(nn.Module):
    """A vector in, two named outputs of very different range out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.place, self.share = nn.Linear(64, 2), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 12) to (N, 2) in hundreds, and (N, 3) in shares."""
        x = self.body(x)
        return {"place": 300 * self.place(x), "share": torch.sigmoid(self.share(x))}


class SortingNet(nn.Module):
    """Ends in an operation that no device runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12) to (N, 4)."""
        values: torch.Tensor = torch.topk(torch.relu(self.head(x)), 4, dim=1).values
        return values


SHAPES: dict[str, tuple[int, ...]] = {
    "plain": (1, 1, 16, 16), "residual": (1, 3, 16, 16), "ecg": (1, 1, 128), "heads": (1, 12), "sorting": (1, 12),
}  # fmt: skip
KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": PlainNet, "residual": ResidualNet, "ecg": EcgNet, "heads": TwoHeads, "sorting": SortingNet,
}  # fmt: skip


def network(kind: str) -> nn.Module:
    """One of `KINDS` in evaluation mode, its normalisations with statistics of noise."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        made = KINDS[kind]().train()
        for _ in range(10):
            made(torch.randn(16, *SHAPES[kind][1:]))
        if isinstance(made, PlainNet):  # classes that lie apart, so that rounding decides nothing
            made.head.weight.mul_(8)
    return made.eval()


def frames(kind: str, count: int, seed: int = 0) -> Array:
    """Noise in the app's layout.  # (N, ..., C)"""
    shape = SHAPES[kind]
    app = (*shape[2:], shape[1]) if len(shape) > 2 else shape[1:]
    return np.random.default_rng(seed).normal(size=(count, *app)).astype(np.float32)


def save_pt2(module: nn.Module, path: Path, shape: tuple[int, ...], **options: Any) -> Path:
    """What torch.export.save writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (torch.zeros(shape),), **options), path)
    return path


def repacked(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """A .pt2 with members replaced, added or (None) removed; names without the leading folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        members = {n.partition("/")[2]: old.read(n) for n in old.namelist()}
        for name, body in {**members, **changes}.items():
            if body is not None:
                new.writestr(f"{root}/{name}", body)
    target.write_bytes(out.getvalue())
    return target


def member(source: Path, name: str) -> Any:
    """A JSON member of a .pt2."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return json.loads(archive.read(f"{root}/{name}"))


def onnx_model(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], shape: list[Any], outputs: list[str], opset: int = 17
) -> onnx.ModelProto:
    """A model with one float input ``x``."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
