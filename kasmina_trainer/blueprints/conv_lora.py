"""Conv-LoRA: the layer's own kernel to a few channels, then 1x1 up, beside the layer (Hu et al. 2021).

For a linear layer it is LoRA as published. It is linear in the layer's input and folds into its weights exactly.
"""

from __future__ import annotations

from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from kasmina_trainer.blueprints import merging
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, zeroed
from kasmina_trainer.blueprints.port import Layer, Port
from kasmina_trainer.blueprints.registry import blueprint


class ConvLoraConfig(BlueprintConfig):
    """Settings of `conv-lora`.

    Attributes:
        rank: Channels in the middle, 1 to 512.
    """

    rank: Annotated[int, Width(), Field(ge=1, le=512)] = 4


class ConvLoraBranch(nn.Module):
    """``up(down(x))`` without biases; ``up`` is zero at birth."""

    def __init__(self, layer: Layer, rank: int) -> None:
        super().__init__()
        self.down: nn.Module
        self.up: nn.Module
        if layer.kind == "linear":
            self.down = nn.Linear(layer.inputs, rank, bias=False)
            self.up = nn.Linear(rank, layer.outputs, bias=False)
        elif layer.kind == "conv1d":
            along = layer.kernel[0], layer.stride[0], layer.padding[0], layer.dilation[0]
            self.down = nn.Conv1d(layer.inputs, rank, *along, bias=False)
            self.up = nn.Conv1d(rank, layer.outputs, 1, bias=False)
        else:
            kernel, stride, padding, dilation = (
                (axes[0], axes[1]) for axes in (layer.kernel, layer.stride, layer.padding, layer.dilation)
            )
            self.down = nn.Conv2d(layer.inputs, rank, kernel, stride, padding, dilation, bias=False)
            self.up = nn.Conv2d(rank, layer.outputs, 1, bias=False)
        zeroed(self.up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What enters the layer to the shape of what leaves it."""
        out: torch.Tensor = self.up(self.down(x))
        return out


@blueprint("conv-lora", version=1)
class ConvLora(GraftBlueprint):
    """``r (K C_in + C_out)`` parameters for a kernel of ``K`` taps and rank ``r``."""

    summary = "a low-rank copy of the layer beside it; folds into it exactly"
    ranks = frozenset({1, 2, 3})
    Config = ConvLoraConfig
    reads = "input"

    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        """The layer with the product of both maps added to its weights."""
        assert isinstance(branch, ConvLoraBranch)
        up, down = branch.up.weight, branch.down.weight
        assert isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor)
        product = (up.detach().flatten(1) @ down.detach().flatten(1)).reshape(up.shape[0], *down.shape[1:])
        return merging.beside(layer, gate * product, None)

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        layer = port.layer
        assert layer is not None
        if layer.groups != 1:
            return f"it stands beside a layer of 1 group, got {layer.groups} groups"
        if (layer.kind == "linear") == (port.layout in CHANNELS_FIRST):
            return f"it cannot stand beside a {layer.kind} layer in a value of layout {port.layout}"
        return ""

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        assert port.layer is not None
        return ConvLoraBranch(port.layer, ConvLoraConfig.own(config).rank)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        layer, rank = port.layer, ConvLoraConfig.own(config).rank
        assert layer is not None
        down = linear_cost(layer.inputs, rank, port.positions, taps=prod(layer.kernel), bias=False)
        return down + linear_cost(rank, layer.outputs, port.positions, bias=False)
