"""Scale/BN retune: learn the batch norms' scale and shift and re-estimate their statistics; nothing is added.

The cheapest rival of any seed (Li et al. 2016, AdaBN; Frankle et al. 2020): measured beside every graft. It merges into
the host, so that it makes a new host, and only the parent's bytes undo it.
"""

from __future__ import annotations

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.affine import AffineBranch
from kasmina_trainer.blueprints.base import HostBlueprint
from kasmina_trainer.blueprints.registry import blueprint

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_BEHIND = {nn.Conv2d: 2, nn.Conv1d: 1, nn.Linear: 0}
"""Axes of places behind each kind of layer."""


@blueprint("scale-bn-retune", version=1)
class ScaleBnRetune(HostBlueprint):
    """Per channel: scale, shift, mean and variance of every batch norm."""

    summary = "learns the batch norms' scale and shift: the cheapest rival of any seed"

    def tuned(self, host: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """The affine parameters learn; the norms run in training mode, so that their statistics follow the mix.

        Raises:
            InputError: The host has no batch norm with scale and shift.
        """
        norms = _affine_norms(host)
        return [p for norm in norms for p in (norm.weight, norm.bias)], list(norms)

    def count(self, host: nn.Module) -> int:
        """Four values a channel."""
        return sum(4 * norm.num_features for norm in _affine_norms(host))

    def as_grafts(self, host: nn.Module, tuned: nn.Module) -> dict[str, nn.Module] | None:
        """A `channel-affine` branch behind each norm that changed.

        A norm computes ``k y + c``, so ``k' y + c'`` is ``a (k y + c) + b`` added to it with ``a = k'/k - 1`` and
        ``b = c' - (a + 1) c``. None where a scale is zero, which hides the old values, and where no layer in front of a
        norm tells what axes it has.
        """
        grown: dict[str, nn.Module] = {}
        axes: int | None = None
        for name, before in host.named_modules():
            axes = next((count for kind, count in _BEHIND.items() if isinstance(before, kind)), axes)
            if not isinstance(before, _NORMS) or not _is_affine(before):
                continue
            after = tuned.get_submodule(name)
            assert isinstance(after, _NORMS)
            (slope, offset), (new_slope, new_offset) = _line(before), _line(after)
            if torch.equal(new_slope, slope) and torch.equal(new_offset, offset):
                continue
            places = 2 if isinstance(before, nn.BatchNorm2d) else axes
            if places is None or isinstance(before, nn.BatchNorm3d) or bool((slope == 0).any()):
                return None
            ratio = new_slope / slope
            branch = AffineBranch((1, before.num_features, *[1] * places))
            with torch.no_grad():
                branch.scale.copy_((ratio - 1).reshape(branch.scale.shape))
                branch.shift.copy_((new_offset - ratio * offset).reshape(branch.shift.shape))
            vars(branch)["reads"] = "output"
            grown[name] = branch
        return grown


def _line(norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and offset a channel, in double precision."""
    assert norm.running_mean is not None and norm.running_var is not None
    slope = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return slope, norm.bias.detach().double() - slope * norm.running_mean.double()


def _is_affine(norm: Norm) -> bool:
    return norm.affine and norm.track_running_stats


def _affine_norms(host: nn.Module) -> list[Norm]:
    norms = [m for m in host.modules() if isinstance(m, _NORMS) and _is_affine(m)]
    if not norms:
        raise InputError(
            "scale-bn-retune: the host has no batch norm with scale and shift", "Grow `depthwise` instead."
        )
    return norms
