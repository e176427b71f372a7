"""``number - x`` as ``x * -1 + number`` for litert-torch, whose converter exchanges the sides of such a difference.

It moves transpositions through subtractions as if these were sums: in litert-torch 0.10 ``1 - x`` of a picture becomes
``x - 1``. Sums may be exchanged, and what stands beside a convolution is folded into it. A larger constant minus a
picture is left as it is: where it goes wrong, the comparison of the converted file with the network says so.
"""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten


def teach() -> None:
    """Tell litert-torch, for every conversion in this process; again does nothing."""
    from litert_torch import fx_infra

    for operator, rule in (
        (_aten.rsub.Scalar, _reversed),
        (_aten.rsub.Tensor, _reversed),
        (_aten.sub.Tensor, _difference),
    ):
        fx_infra.decomp.add_pre_convert_decomp(operator, rule)


def _reversed(x: torch.Tensor, first: Any, alpha: float = 1) -> Any:
    """``first - alpha * x``, as `torch.rsub` has it."""
    if _is_number(first):
        return torch.add(torch.mul(x, -alpha), first)
    return _aten.sub.Tensor(first, x if alpha == 1 else torch.mul(x, alpha))


def _difference(first: Any, x: Any, *, alpha: float = 1) -> Any:
    """``first - alpha * x``; NotImplemented where it may stay as it is."""
    if _is_number(first) and not _is_number(x):
        return torch.add(torch.mul(x, -alpha), first)
    return NotImplemented if alpha == 1 else _aten.sub.Tensor(first, x * alpha)


def _is_number(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or value.numel() == 1
