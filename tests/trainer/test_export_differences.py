"""A number minus a picture: litert-torch exchanges the sides, so the difference is written as a sum before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from kasmina_edge.errors import KasminaError
from kasmina_trainer.export import differences, flatbuffer, lookups, tflite
from kasmina_trainer.export.float_tflite import convert
from kasmina_trainer.quantization import ranges

Change = Callable[[torch.Tensor], torch.Tensor]
CHANGES: dict[str, Change] = {
    "1 - x": lambda x: 1 - x,
    "2.5 - 3 x": lambda x: torch.rsub(x, 2.5, alpha=3),
    "tensor - x": lambda x: torch.full((1,), 0.5) - x,
    "x (1 - x)": lambda x: x * (1 - x),
}


class Changed(nn.Module):
    """A picture changed between two convolutions."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 6)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.change(self.first(x))).flatten(1)
        return answer


@pytest.mark.parametrize("name", CHANGES)
def test_the_file_answers_as_the_network(name: str) -> None:
    convert(Changed(CHANGES[name]).eval(), (1, 8, 8, 1))  # which compares them


def test_a_quantized_file_of_such_a_network_agrees() -> None:
    frames = np.random.default_rng(0).normal(size=(96, 8, 8, 1)).astype(np.float32)
    made = tflite.export_tflite(Changed(CHANGES["x (1 - x)"]).eval(), calibration=frames[:48], held_out=frames[48:])
    assert made.chosen.agreement > 0.9
    assert not flatbuffer.residual_gates(flatbuffer.parse(made.data)), "the -1 is no gate"


def test_without_it_the_sides_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(differences, "_reversed", lambda x, first, alpha=1: torch.ops.aten.sub.Tensor(first, x))
        patched.setattr(differences, "_difference", lambda first, x, alpha=1: NotImplemented)
        with pytest.raises(KasminaError, match="differs from the network"):
            convert(Changed(CHANGES["1 - x"]).eval(), (1, 8, 8, 1))
    convert(Changed(CHANGES["1 - x"]).eval(), (1, 8, 8, 1))


def test_what_is_looked_up_once_leaves_the_libraries_and_the_bytes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript._framework_apis import torch_2_11
    from torch._export import utils

    from kasmina_trainer.export import onnx

    places = ((utils, "_materialize_cpp_cia_ops"), (torch_2_11, "get_torchlib_ops"))
    before = [getattr(*place) for place in places]
    with lookups.looked_up_once():
        with lookups.looked_up_once():
            pass
        inside = [getattr(*place) for place in places]
        assert all(a is not b for a, b in zip(before, inside, strict=True)), "a library has moved them"
        quick = torch_2_11.get_torchlib_ops()
    assert [getattr(*place) for place in places] == before
    slow = torch_2_11.get_torchlib_ops()
    assert [(f.qualified_name, f.is_complex) for f in quick] == [(f.qualified_name, f.is_complex) for f in slow]
    assert all(a.function is b.function for a, b in zip(quick, slow, strict=True))
    network = Changed(CHANGES["1 - x"]).eval()
    with_it = onnx.export_float_onnx(network, (1, 8, 8, 1)).data
    monkeypatch.setattr(lookups, "_replace", lambda place, better: None)
    assert onnx.export_float_onnx(network, (1, 8, 8, 1)).data == with_it


def test_observing_in_blocks_sees_what_single_frames_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    frames = [
        {"a": rng.normal(size=(1, 5, 3)).astype(np.float32), "b": np.full((1, 2), 7, np.float32)} for _ in "x" * 9
    ]
    asked: list[int] = []

    def passes() -> object:
        asked.append(1)
        return iter(frames)

    whole = ranges.observe(passes)  # type: ignore[arg-type]
    assert len(asked) == 1, "kept"
    monkeypatch.setattr(ranges, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(ranges, "_KEPT_BYTES", 0)
    single = ranges.observe(passes)  # type: ignore[arg-type]
    assert len(asked) == 3, "asked for again"
    values = np.concatenate([f["a"].ravel() for f in frames])
    for found in (whole, single):
        assert (found["a"].low, found["a"].high) == (values.min(), values.max())
        assert found["a"].shares.sum() == pytest.approx(1) and found["b"].shares[0] == 1
    assert np.array_equal(whole["a"].shares, single["a"].shares)
