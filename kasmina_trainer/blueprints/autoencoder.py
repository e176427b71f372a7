"""Denoising autoencoder: half the size and back; what a coarse look can tell about noise."""

from __future__ import annotations

from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, convolution, kernel_of, zeroed
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint

TAPS = 3


class AutoencoderConfig(BlueprintConfig):
    """Settings of `denoising-ae`.

    Attributes:
        hidden: Channels at half size, 1 to 256.
    """

    hidden: Annotated[int, Width(), Field(ge=1, le=256)] = 8


class AutoencoderBranch(nn.Module):
    """Strided convolution, ReLU, nearest neighbours back to size, convolution; the last is zero at birth."""

    def __init__(self, port: Port, hidden: int) -> None:
        super().__init__()
        self.layout, self.size = port.layout, port.shape[1:]
        self.factors = tuple(2 if length > 1 else 1 for length in self.size)
        self.down = convolution(port, port.channels, hidden, TAPS, stride=2)
        self.back = zeroed(convolution(port, hidden, port.channels, TAPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) or (N, C, L) to the same shape."""
        coarse = torch.relu(self.down(x))
        out: torch.Tensor = self.back(self._enlarged(coarse))
        return out

    def _enlarged(self, coarse: torch.Tensor) -> torch.Tensor:
        if self.layout is Layout.SERIES:
            wide = F.interpolate(coarse.unsqueeze(2), scale_factor=(1.0, float(self.factors[0]))).squeeze(2)
            return wide if wide.shape[-1] == self.size[0] else wide[:, :, : self.size[0]]
        wide = F.interpolate(coarse, scale_factor=tuple(float(f) for f in self.factors))
        return wide if tuple(wide.shape[2:]) == self.size else wide[:, :, : self.size[0], : self.size[1]]


@blueprint("denoising-ae", version=1)
class DenoisingAe(GraftBlueprint):
    """``2 K C h + h + C`` parameters for ``K`` taps; the first half is computed at a quarter of the places."""

    summary = "half the size and back: noise"
    ranks = frozenset({2, 3})
    layouts = CHANNELS_FIRST
    Config = AutoencoderConfig

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        longest = max(port.shape[1:])
        return "" if longest > 1 else f"it halves a map or a series of 2 places or more, got {longest}"

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return AutoencoderBranch(port, AutoencoderConfig.own(config).hidden)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        hidden, taps = AutoencoderConfig.own(config).hidden, prod(kernel_of(port, TAPS))
        half = prod(-(-length // 2) for length in port.shape[1:])
        down = linear_cost(port.channels, hidden, half, taps=taps)
        return down + linear_cost(hidden, port.channels, port.positions, taps=taps)
