"""Rounding as a differentiable step: what a quantized file does to weights and activations, in torch.

The straight-through estimator lets gradients pass as if nothing had been rounded (Bengio et al. 2013), clipped values
excepted (Jacob et al. 2018). Weights: symmetric, one scale a channel, ``max|w| / (2^(b-1) - 1)``: ai-edge-quantizer
computes the same scale of the same weights, so the file holds the very numbers that were trained. Activations: an
asymmetric 8-bit range whose ends may learn (LSQ+, Bhalgat et al. 2020).
"""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.quantization.ranges import Range

FLOAT = 32
SMALLEST_BOUND = 1e-9
"""Below it a channel counts as zero, as in ai-edge-quantizer."""
_LOW, _HIGH = -128, 127
_SMALLEST_SCALE = 2.0**-24


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Nearest whole numbers, half to even; the gradient is that of ``x``."""
    return x + (x.round() - x).detach()


def weight_scale(weight: torch.Tensor, bits: int, axis: int = 0) -> torch.Tensor:
    """One scale a channel, shaped to broadcast over the weight.

    Args:
        weight: Any shape.
        bits: 2 to 16.
        axis: Which axis runs over output channels.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    bound = weight.detach().abs().amax(others, keepdim=True) if others else weight.detach().abs()
    return bound.clamp(min=SMALLEST_BOUND) / float(2 ** (bits - 1) - 1)


def rounded_weight(weight: torch.Tensor, bits: int, axis: int = 0) -> torch.Tensor:
    """The weight as a file with ``bits`` holds it; as it is at 32.

    >>> rounded_weight(torch.tensor([[0.5, -1.0]]), 4).round(decimals=4)
    tensor([[ 0.5714, -1.0000]])
    """
    if bits == FLOAT:
        return weight
    scale = weight_scale(weight, bits, axis)
    return rounded(weight / scale) * scale


def clipped_weight(weight: torch.Tensor, bits: int, axis: int = 0) -> torch.Tensor:
    """The weight cut off, channel by channel, where that lowers the mean square of its rounding error.

    Cutting off sets the channel's largest number, and so its scale; a quantizer that takes the largest follows.

    Args:
        weight: Any shape.
        bits: 4 or 8.
        axis: Which axis runs over output channels.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    bound = weight_scale(weight, bits, axis) * float(2 ** (bits - 1) - 1)
    best, least = weight, ((rounded_weight(weight, bits, axis) - weight) ** 2).sum(others, keepdim=True)
    for share in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5):
        cut = torch.minimum(torch.maximum(weight, -bound * share), bound * share)
        error = ((rounded_weight(cut, bits, axis) - weight) ** 2).sum(others, keepdim=True)
        best = torch.where(error < least, cut, best)
        least = torch.minimum(error, least)
    return best


class WeightRounding(nn.Module):
    """A parametrization of a layer's weight (`torch.nn.utils.parametrize`)."""

    def __init__(self, bits: int, axis: int = 0) -> None:
        super().__init__()
        self.bits = bits
        self.axis = axis

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The rounded weight."""
        return rounded_weight(weight, self.bits, self.axis)


class ActivationRounding(nn.Module):
    """One activation's 8-bit range.

    Args:
        found: The range to begin with.
        learn: Whether its ends are parameters.

    Attributes:
        active: False lets everything through, e.g. to observe.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, found: Range, *, learn: bool = False) -> None:
        super().__init__()
        self.active = True
        for name, end in (("low", min(found[0], 0.0)), ("high", max(found[1], 0.0))):
            value = torch.tensor(float(end))
            if learn:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(...) to the same shape, on at most 256 levels that include zero."""
        if not self.active:
            return x
        low, high = self.low.clamp(max=0.0), self.high.clamp(min=0.0)
        scale = ((high - low) / (_HIGH - _LOW)).clamp(min=_SMALLEST_SCALE)
        zero = rounded(_LOW - low / scale).clamp(_LOW, _HIGH)
        steps = (rounded(x / scale) + zero).clamp(_LOW, _HIGH)
        return (steps - zero) * scale

    @property
    def found(self) -> Range:
        """The range as it stands."""
        return min(float(self.low.detach()), 0.0), max(float(self.high.detach()), 0.0)

    def take(self, found: Range) -> None:
        """Put another range in."""
        with torch.no_grad():
            self.low.fill_(min(found[0], 0.0))
            self.high.fill_(max(found[1], 0.0))
