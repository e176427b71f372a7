"""Switched adapter: a filter, an affine and a bottleneck in one, shut on frames like the clean ones that it met.

What a branch has to learn for a camera out of focus and what the host knows already pull one set of weights two ways.
Here a linear test of each frame (Fisher 1936) says which of the two it is: the branch is free to fit the one, and
leaves the other alone. Normalisation of the two apart is that of Li et al. 2016 (AdaBN) and Xie et al. 2020 (AdvProp).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, constant_cost, linear_cost
from kasmina_trainer.blueprints.mixing import CHANNELS_FIRST, channel_map, convolution, kernel_of, map_cost, zeroed
from kasmina_trainer.blueprints.mixing import pooled as mean_of
from kasmina_trainer.blueprints.normed import Normed, Weights, changed
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint

SHUT_FOR = 0.98
"""Share of the clean frames met on which the branch is shut altogether."""
NARROWEST = 0.25
"""Least way from shut to open, in half distances between the two means."""
RIDGE = 0.02
"""Added to the variance of each mean, as a share of their average variance."""
STRETCH = 10.0
"""Most by which the first scale of a channel widens or narrows it."""


SIGHT = 1 << 18
"""Values that are looked at in one go: as many as stay near the processor."""


class SwitchedConfig(BlueprintConfig):
    """Settings of `switched-adapter`.

    Attributes:
        taps: Of the filter a channel, an axis; 1: a scale a channel.
        bottleneck: Channels that are mixed through a ReLU, up to 1024; 0: none.
    """

    taps: Literal[1, 3, 5, 7] = 1
    bottleneck: Annotated[int, Width(), Field(ge=0, le=1024)] = 0

    def scaled(self, width: float) -> SwitchedConfig:
        """With another bottleneck; without one there is nothing to widen."""
        return super().scaled(width) if self.bottleneck else self


class SwitchedBranch(nn.Module):
    """``g(x) * (filter(x) + up(relu(down(x))))``; all but ``down`` are zero at birth, and ``g`` is then 1.

    ``g`` is a straight line from 0 to 1 along one direction of the channels' rectified means. The direction is a
    measured constant (`meet`), it does not learn.
    """

    toward: torch.Tensor
    start: torch.Tensor

    def __init__(self, port: Port, config: SwitchedConfig) -> None:
        super().__init__()
        self.layout = port.layout
        width, maps = port.channels, port.layout in CHANNELS_FIRST
        self.filter: nn.Module | None = None
        if config.taps > 1:
            self.filter = zeroed(convolution(port, width, width, config.taps, groups=width))
        else:
            self.scale = nn.Parameter(torch.zeros(port.channel_shape))
            self.shift = nn.Parameter(torch.zeros(port.channel_shape))
        self.down: nn.Module | None = None
        if config.bottleneck:
            self.down = channel_map(port, width, config.bottleneck)
            self.up = zeroed(channel_map(port, config.bottleneck, width))
        self.register_buffer("toward", torch.zeros(1, width, *[1] * (len(port.shape) - 1 if maps else 0)))
        self.register_buffer("start", torch.zeros(1))
        self.normed: Normed | None = None
        self._met: tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any layout to the same shape."""
        opening = self.opening(x.detach() if self.training else x)
        if self.normed is not None:
            return self._learning(self.normed, x, opening)
        if self.filter is None and self.down is None:
            return x * (opening * self.scale) + opening * self.shift
        added: torch.Tensor = x * self.scale + self.shift if self.filter is None else self.filter(x)
        if self.down is not None:
            added = added + self.up(torch.relu(self.down(x)))
        return opening * added

    def opening(self, x: torch.Tensor) -> torch.Tensor:
        """How far the branch is open for each frame, 0 to 1.  # (N, 1, ...)"""
        means = mean_of(torch.relu(x), self.layout)
        if self.training and self.layout in CHANNELS_FIRST:
            likeness = (means * self.toward).sum(1, keepdim=True) + self.start
        elif self.layout is Layout.IMAGE:
            likeness = functional.conv2d(means, self.toward, self.start)
        elif self.layout is Layout.SERIES:
            likeness = functional.conv1d(means, self.toward, self.start)
        else:
            likeness = functional.linear(means, self.toward, self.start)
        return torch.relu(torch.relu(likeness) * -1.0 + 1.0)

    @torch.no_grad()
    def sight(self, x: torch.Tensor) -> torch.Tensor:
        """What `meet` needs of each frame: means over places of the rectified value, the value and its square.

        Returns:
            In double precision.  # (N, 3, C)
        """
        few = max(1, SIGHT * len(x) // max(1, x.numel()))
        return torch.cat([self._sight(rows) for rows in torch.split(x, few)])

    def _sight(self, x: torch.Tensor) -> torch.Tensor:
        parts = (torch.relu(x), x, x.square())
        return torch.stack([mean_of(part, self.layout).reshape(len(x), -1) for part in parts], 1).double()

    @torch.no_grad()
    def meet(self, seen: torch.Tensor, clean: int) -> None:
        """Learn to tell frames apart, and begin with the scale and shift that give the others the clean ones' spread.

        Args:
            seen: `sight` of clean frames, then of others.  # (N, 3, C)
            clean: How many are clean.
        """
        means, centre = seen[:, 0], seen[:, 0].mean(0)
        parts = means[:clean], means[clean:]
        own = torch.cat([part - part.mean(0) for part in parts])
        spread = own.T @ own / len(own)
        ridge = RIDGE * spread.diagonal().mean() + 1e-12
        direction = torch.linalg.solve(
            spread + ridge * torch.eye(len(spread)).to(spread), parts[1].mean(0) - parts[0].mean(0)
        )
        along = (means - centre) @ direction
        middle = (along[:clean].mean() + along[clean:].mean()) / 2
        half = (along[clean:].mean() - along[:clean].mean()) / 2
        if not float(half) > 0:
            self.toward.zero_()
            self.start.fill_(1.0)  # nothing tells them apart: shut
            return
        shut = torch.quantile((along[:clean] - middle) / half, SHUT_FOR)
        slope = 1 / (torch.clamp(1 - shut, min=NARROWEST) * half)
        self.toward.copy_((-slope * direction).reshape(self.toward.shape))
        self.start.copy_(1 + slope * (centre @ direction + middle + shut * half))
        self._match(seen[:clean, 1:].mean(0), seen[clean:, 1:].mean(0))

    def _match(self, clean: torch.Tensor, others: torch.Tensor) -> None:
        deviation, wide = ((part[1] - part[0].square()).clamp(min=0).sqrt() for part in (clean, others))
        factor = (deviation / wide.clamp(min=1e-3)).clamp(1 / STRETCH, STRETCH)
        self._met = (clean[0], deviation), (others[0], wide)
        self._clear()
        self._put(factor, clean[0] - factor * others[0])

    @torch.no_grad()
    def begin(self) -> bool:
        """Learn from here on as `normed` says; False, and nothing changes, for tokens and without a meeting."""
        if self._met is None or self.layout is Layout.TOKENS:
            return False
        self.normed = Normed(*self._met).to(self.toward.device).train(self.training)
        self._clear()
        for idle in self._idle():
            idle.requires_grad_(False)
        return True

    @torch.no_grad()
    def settle(self) -> None:
        """Fold what `begin` added into filter, scale and shift; nothing, where it added nothing."""
        if self.normed is None:
            return
        factor, shift = self.normed.folded()
        self.normed, self._met = None, None
        if self.down is not None:
            weight, _ = _weights(self.up)
            weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)))
        self._put(factor, shift)
        for idle in self._idle():
            idle.requires_grad_(True)

    def _idle(self) -> list[nn.Parameter]:
        """What the learned mean and spread stand for."""
        found = [self.scale, self.shift] if self.filter is None else [self._filter()[1]]
        if self.down is not None:
            found.append(_weights(self.up)[1])
        return found

    def grown(self, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor | None:
        """``y + gate * self(y)`` in one step of autograd while it learns on maps; None elsewhere."""
        if self.normed is None or not self.training or self.layout is not Layout.IMAGE:
            return None
        return changed(y, gate * self.opening(y.detach()), self.normed, self._learned(), onto=True)

    def _learned(self) -> Weights:
        taps = None if self.filter is None else self._filter()[0]
        if self.down is None:
            return Weights(taps)
        (down, low), (up, _) = _weights(self.down), _weights(self.up)
        return Weights(taps, (down, low), up)

    def _learning(self, normed: Normed, x: torch.Tensor, opening: torch.Tensor) -> torch.Tensor:
        if self.training and self.layout is Layout.IMAGE:
            return changed(x, opening, normed, self._learned())
        y = x if self.filter is None else x + self.filter(x)
        if self.down is not None:
            y = y + self.up(torch.relu(self.down(x)))
        found: torch.Tensor = opening * (normed(y) - x)
        return found

    def _put(self, factor: torch.Tensor, shift: torch.Tensor) -> None:
        """Make ``x + branch(x)``, but for the bottleneck, ``factor`` times what it is, with ``shift`` for its own."""
        if self.filter is None:
            self.scale.copy_((factor - 1).reshape(self.scale.shape))
            self.shift.copy_(shift.reshape(self.shift.shape))
            return
        weight, bias = self._filter()
        taps, each = weight[0, 0].numel(), factor.to(weight).reshape(-1, *[1] * (weight.ndim - 1))
        centre = functional.one_hot(torch.tensor(taps // 2, device=weight.device), taps).to(weight)
        weight.mul_(each).add_(centre.reshape(weight[:1].shape) * (each - 1))
        bias.copy_(shift)

    def _clear(self) -> None:
        for own in (self.scale, self.shift) if self.filter is None else self._filter():
            own.zero_()

    def _filter(self) -> tuple[nn.Parameter, nn.Parameter]:
        assert self.filter is not None
        return _weights(self.filter)


def _weights(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
    return weight, bias


@blueprint("switched-adapter", version=1)
class SwitchedAdapter(GraftBlueprint):
    """``(K + 1) C`` parameters with ``K`` taps, ``2 C b + b + C`` for the bottleneck; ``C + 1`` measured constants."""

    summary = "a filter, an affine and a bottleneck, shut on inputs like the clean ones"
    ranks = frozenset({1, 2, 3})
    Config = SwitchedConfig

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        taps = SwitchedConfig.own(config).taps
        if taps > 1 and port.layout not in CHANNELS_FIRST:
            return f"a filter of {taps} taps stands on maps or series, got a site of layout {port.layout}"
        return ""

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        return SwitchedBranch(port, SwitchedConfig.own(config))

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        settings, width = SwitchedConfig.own(config), port.channels
        look = constant_cost(width + 1, learned=False) + Cost(macs=width)
        if settings.taps > 1:
            kernel = 1
            for taps in kernel_of(port, settings.taps):
                kernel *= taps
            own = linear_cost(1, width, port.positions, taps=kernel)
        else:
            own = constant_cost(2 * width)
        if settings.bottleneck:
            own += map_cost(port, width, settings.bottleneck) + map_cost(port, settings.bottleneck, width)
        return own + look
