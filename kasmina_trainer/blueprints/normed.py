"""While a switched adapter learns: what its rows become is normalised by their own statistics, as batch norm does.

A filter that changes what it sees drifts away from the mean and spread that the layers behind it know, and learning
spends its steps on bringing them back. Normalised over the rows of a step (Ioffe and Szegedy 2015), with the clean
rows' mean and spread to begin with, they stay where they belong. Afterwards it folds into filter, scale and shift, so
that nothing of it is shipped. One step of autograd holds the whole branch: on small maps the steps are the price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

MOMENTUM = 0.1
EPSILON = 1e-5
KEPT = 1 << 16
"""Values of a map up to which it is kept for the way back: made again, a small one takes as long as a large one, since
the call is its price, and saves little."""


class Normed(nn.Module):
    """Mean and spread that are learned, and the running ones of what is learned on.

    Args:
        clean: Mean and deviation of clean frames.  # (C,), (C,)
        others: Mean and deviation of the others.  # (C,), (C,)
    """

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, clean: tuple[torch.Tensor, torch.Tensor], others: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.centre = nn.Parameter(clean[0].detach().float())
        self.spread = nn.Parameter(clean[1].detach().float())
        self.register_buffer("mean", others[0].detach().float())
        self.register_buffer("variance", others[1].detach().float().square())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channels on the second axis, shape unchanged."""
        return functional.batch_norm(
            x, self.mean, self.variance, self.spread, self.centre, self.training, MOMENTUM, EPSILON
        )

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and shift of each channel that do the same with the running statistics.  # (C,), (C,)"""
        factor = self.spread / torch.sqrt(self.variance + EPSILON)
        return factor, self.centre - factor * self.mean


@dataclass(frozen=True)
class Weights:
    """Of a branch on maps.

    Attributes:
        taps: Of the filter a channel.  # (C, 1, k, k), or (C, 1, 1, k) on maps of height one
        down: To the bottleneck, and its shift.  # (b, C, 1, 1), (b,)
        up: Back.  # (C, b, 1, 1)
    """

    taps: torch.Tensor | None = None
    down: tuple[torch.Tensor, torch.Tensor] | None = None
    up: torch.Tensor | None = None


def changed(
    x: torch.Tensor, opening: torch.Tensor, norm: Normed, weights: Weights, *, onto: bool = False
) -> torch.Tensor:
    """``opening * (norm(x + filter(x) + up(relu(down(x)))) - x)`` on maps (N, C, H, W), as one step of autograd.

    Args:
        x: Maps.
        opening: Of each frame; takes no gradient.  # (N, 1, 1, 1)
        norm: In training mode.
        weights: What there is of filter and bottleneck.
        onto: Added to ``x``, in the same step.
    """
    down, low = weights.down or (None, None)
    found: torch.Tensor = _Changed.apply(  # type: ignore[no-untyped-call]
        x, opening, onto, norm.spread, norm.centre, norm.mean, norm.variance, weights.taps, down, low, weights.up
    )
    return found


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]).permute(0, 3, 1, 2)


def _around(taps: torch.Tensor) -> tuple[int, int]:
    return taps.shape[-2] // 2, taps.shape[-1] // 2


def _inner(
    x: torch.Tensor,
    taps: torch.Tensor | None,
    hidden: torch.Tensor | None,
    up: torch.Tensor | None,
) -> torch.Tensor:
    """What is normalised; ``x`` itself where there is neither filter nor bottleneck."""
    inner = None
    if taps is not None:
        inner = functional.conv2d(x, taps, None, 1, _around(taps), 1, x.shape[1])
    if hidden is not None and up is not None:
        mixed = hidden @ up.flatten(1).T
        inner = _maps(mixed if inner is None else mixed.add_(_rows(inner)), x)
    return x if inner is None else inner.add_(x)


class _Changed(torch.autograd.Function):
    """Keeps ``x`` and the bottleneck for the way back; the map between them is made a second time where it is large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, opening: torch.Tensor, onto: bool, *parts: Any) -> torch.Tensor:
        spread, centre, mean, variance, taps, down, low, up = parts
        hidden = None if down is None else torch.addmm(low, _rows(x), down.flatten(1).T).relu_()
        inner = _inner(x, taps, hidden, up)
        normed, own, scale = torch.native_batch_norm(inner, spread, centre, mean, variance, True, MOMENTUM, EPSILON)
        kept = inner if inner is not x and inner.numel() <= KEPT else None
        ctx.save_for_backward(x, opening, spread, own, scale, taps, hidden, down, up, kept)
        ctx.onto = onto
        return torch.lerp(x, normed, opening) if onto else normed.sub_(x).mul_(opening)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, opening, spread, own, scale, taps, hidden, down, up, kept = ctx.saved_tensors
        inner = _inner(x, taps, hidden, up) if kept is None else kept
        wanted = bool(ctx.needs_input_grad[0])
        back = gradient * opening
        through, of_spread, of_centre = torch.ops.aten.native_batch_norm_backward(
            back, inner, spread, None, None, own, scale, True, EPSILON, (True, True, True)
        )
        of_x = passed = of_taps = of_down = of_low = of_up = None
        if taps is not None:
            passed, of_taps, _ = torch.ops.aten.convolution_backward(
                through, x, taps, None, (1, 1), _around(taps), (1, 1), False, (0, 0), x.shape[1], (wanted, True, False)
            )
        if down is not None:
            lines = _rows(through)
            low = torch.ops.aten.threshold_backward(lines @ up.flatten(1), hidden, 0)
            of_up = (lines.T @ hidden).reshape(up.shape)
            of_down = (low.T @ _rows(x)).reshape(down.shape)
            of_low = low.sum(0)
        if wanted:
            of_x = through.addcmul_(gradient, 1 - opening) if ctx.onto else through.sub_(back)
            if passed is not None:
                of_x.add_(passed)
            if down is not None:
                _rows(of_x).addmm_(low, down.flatten(1))
        return of_x, None, None, of_spread, of_centre, None, None, of_taps, of_down, of_low, of_up
