"""What learns in a branch: its weights as they are now, and how strongly the last step pulled at them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_trainer.seeds import SeededNetwork, SeedSite

Array = npt.NDArray[Any]


def gradient_norms(network: SeededNetwork) -> dict[str, float]:
    """Euclidean norm of the last gradient of each site's branch.

    Call it between a backward pass and the next one's ``zero_grad``: torch keeps the gradients until then.

    Returns:
        By site, 0 where the branch is held still. A site is left out where nothing learns, nothing was propagated yet,
        or the gradient is not finite.
    """
    found = ((name, gradient_norm(network.site(name).branch)) for name in network.growths)
    return {name: norm for name, norm in found if norm is not None}


def gradient_norm(branch: nn.Module | None) -> float | None:
    """As `gradient_norms`, of one branch; None: not measured."""
    parameters = [] if branch is None else list(branch.parameters())
    if not parameters:
        return None
    learning = [p for p in parameters if p.requires_grad]
    if not learning:
        return 0.0
    gradients = [g for g in (p.grad for p in learning) if g is not None]
    if not gradients:
        return None
    norm = float(torch.nn.utils.get_total_norm(gradients))
    return norm if math.isfinite(norm) else None


def branch_weights(site: SeedSite) -> list[Array] | None:
    """The branch's weights, one array a tensor, and its gate, which is a single number; biases are left out.

    Returns:
        Copies; None where nothing adds anything.
    """
    if site.branch is None:
        return None
    kept = [p for name, p in site.branch.named_parameters() if name.rpartition(".")[2] != "bias"]
    return [np.array(t.detach().float().cpu().numpy()) for t in (*kept, site.gate.reshape(1))]
