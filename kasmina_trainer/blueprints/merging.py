"""Branches that are linear, folded into the layer they stand at: one layer that computes both.

``after`` is for a branch that reads the layer's output, ``beside`` for one that reads its input. Both leave the layer
as it was and answer with a new one; None where such a layer cannot hold the sum.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

Folded = nn.Conv1d | nn.Conv2d | nn.Linear
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def after(layer: nn.Module, matrix: torch.Tensor, shift: torch.Tensor | None) -> nn.Module | None:
    """``y + M y + s`` behind a layer.

    Args:
        layer: Convolution, linear layer or batch norm.
        matrix: ``M``, or its diagonal where it mixes nothing.  # (C, C) or (C,)
        shift: ``s``, or None for zero.  # (C,)
    """
    mixes = matrix.ndim == 2
    norm = isinstance(layer, _NORMS) and layer.affine
    if not (norm or isinstance(layer, Folded)) or (mixes and (norm or getattr(layer, "groups", 1) != 1)):
        return None
    made = copy.deepcopy(layer)
    with torch.no_grad():
        weight, bias = made.weight, made.bias
        assert isinstance(weight, torch.Tensor)
        weight.add_(_applied(matrix, weight))
        moved = torch.zeros_like(weight[:, *[0] * (weight.ndim - 1)]) if bias is None else bias
        assert isinstance(moved, torch.Tensor)
        moved = moved + _applied(matrix, moved)
        _set_bias(made, moved if shift is None else moved + shift, needed=bias is not None or shift is not None)
    return made


def beside(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
    """A layer plus one of the same kind that reads the same input.

    Args:
        layer: Convolution that pads with zeros and has no groups, or linear layer.
        weight: Of the other; the same shape.
        bias: Of the other, or None.
    """
    if not isinstance(layer, Folded) or layer.weight.shape != weight.shape:
        return None
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and (layer.padding_mode != "zeros" or layer.groups != 1):
        return None
    made = copy.deepcopy(layer)
    with torch.no_grad():
        made.weight.add_(weight)
        if bias is not None:
            _set_bias(made, bias if made.bias is None else made.bias + bias, needed=True)
    return made


def _applied(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(values.shape[0], -1)
    out = matrix @ flat if matrix.ndim == 2 else matrix[:, None] * flat
    return out.reshape(values.shape)


def _set_bias(layer: nn.Module, bias: torch.Tensor, *, needed: bool) -> None:
    if needed:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
