"""Parallel 1x1: a 1x1 convolution beside a convolution, reading the same input (Rebuffi et al. 2018)."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.blueprints import merging
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, zeroed
from kasmina_trainer.blueprints.port import Layer, Port
from kasmina_trainer.blueprints.registry import blueprint


class PointwiseBranch(nn.Module):
    """A 1x1 convolution with the stride of the layer beside it; zero at birth."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        if layer.kind == "conv1d":
            self.pointwise: nn.Module = zeroed(nn.Conv1d(layer.inputs, layer.outputs, 1, layer.stride[0]))
        else:
            stride = (layer.stride[0], layer.stride[1])
            self.pointwise = zeroed(nn.Conv2d(layer.inputs, layer.outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What enters the layer to the shape of what leaves it."""
        out: torch.Tensor = self.pointwise(x)
        return out


@blueprint("pointwise", version=1)
class Pointwise(GraftBlueprint):
    """``C_in C_out + C_out`` parameters; folds into the layer where that has a tap at the same place."""

    summary = "a 1x1 convolution beside a layer; folds into it"
    ranks = frozenset({2, 3})
    layouts = CHANNELS_FIRST
    reads = "input"

    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        """The layer with the 1x1 added at the tap that reads the same place; None where it has no such tap."""
        assert isinstance(branch, PointwiseBranch) and port.layer is not None
        facts = port.layer
        if any(p % d or p // d >= k for p, d, k in zip(facts.padding, facts.dilation, facts.kernel, strict=True)):
            return None
        single, bias = branch.pointwise.weight, branch.pointwise.bias
        assert isinstance(single, torch.Tensor) and isinstance(bias, torch.Tensor)
        full = torch.zeros(facts.outputs, facts.inputs, *facts.kernel, dtype=single.dtype, device=single.device)
        taps = (p // d for p, d in zip(facts.padding, facts.dilation, strict=True))
        tap: tuple[slice | int, ...] = (slice(None), slice(None), *taps)
        full[tap] = gate * single.detach().flatten(1)
        return merging.beside(layer, full, gate * bias.detach())

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        layer, given = port.layer, port.input_shape
        assert layer is not None and given is not None
        if layer.kind == "linear":
            return "it stands beside a convolution, and this site leaves a linear layer"
        reached = tuple((length - 1) // stride + 1 for length, stride in zip(given[1:], layer.stride, strict=True))
        if reached != tuple(port.shape[1:]):
            return f"a 1x1 convolution of stride {layer.stride} makes {reached} of its input, got a site of {port[1:]}"
        return ""

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        assert port.layer is not None
        return PointwiseBranch(port.layer)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        assert port.layer is not None
        return linear_cost(port.layer.inputs, port.layer.outputs, port.positions)
