"""Scale/BN retune: learn the batch norms' scale and shift and re-estimate their statistics; nothing is added.

The cheapest rival of any seed (Li et al. 2016, AdaBN; Frankle et al. 2020): measured beside every graft. It merges into
the host, so that it makes a new host, and only the parent's bytes undo it.
"""

from __future__ import annotations

from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.registry import HostBlueprint, register

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ScaleBnRetune(HostBlueprint):
    """Per channel: scale, shift, mean and variance of every batch norm."""

    name = "scale-bn-retune"
    version = 1

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


def _affine_norms(host: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    norms = [m for m in host.modules() if isinstance(m, _NORMS) and m.affine and m.track_running_stats]
    if not norms:
        raise InputError(
            "scale-bn-retune: the host has no batch norm with scale and shift", "Grow `depthwise` instead."
        )
    return norms


register(ScaleBnRetune())
