"""Single weights set to zero: no file shrinks and no kernel gets quicker, but a delta of the file compresses better."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.choosing import Amount
from kasmina_trainer.pruning.strategy import Cut, Scores, Strategy
from kasmina_trainer.quantization.folding import weighted_layers


class Magnitude(Strategy):
    """The smallest weights of convolutions and linear layers, over the whole network, become zero (Han et al. 2015).

    The exported file keeps its size and its multiplications; every `Cut` says so.
    """

    name = "magnitude"
    shrinks = False

    def scores(self, network: nn.Module, frames: torch.Tensor, labels: torch.Tensor | None = None) -> Scores:
        """Size of every weight, by tensor, in units of its output channel's largest."""
        found = {}
        for name, layer in weighted_layers(network).items():
            size = layer.weight.detach().abs()
            largest = size.flatten(1).amax(1).clamp(min=1e-12)
            found[f"{name}.weight"] = size / largest.view(-1, *(1,) * (size.ndim - 1))
        return found

    def take(self, network: nn.Module, scores: Scores, amount: Amount | float, frames: torch.Tensor) -> Cut:
        """Zero a share of the weights.

        Raises:
            InputError: An amount of channels or multiplications, or a network without weighted layers.
        """
        if isinstance(amount, Amount):
            raise InputError(
                f"magnitude takes a share of the weights, not of the {amount.of}: zeros save no multiplication",
                "Pass a number, such as 0.5, or prune channels with Taylor or GroupNorm.",
            )
        layers = len(scores)
        if not 0 < amount < 1 or not layers:
            raise InputError(f"a share of {amount:g} of the weights of {layers} layers: expected 0 to 1 of 1 or more")
        names = list(scores)
        values = torch.cat([scores[name].flatten() for name in names])
        count = int(amount * len(values))
        gone = torch.zeros(len(values), dtype=torch.bool)
        gone[torch.argsort(values, stable=True)[:count]] = True
        taken, start = {}, 0
        for name in names:
            part = gone[start : start + scores[name].numel()]
            taken[name] = tuple(part.nonzero().flatten().tolist())
            start += scores[name].numel()
        cut = Cut(taken, len(values), False, "zeros stand where weights stood: the file keeps its size and its work")
        self.hold(network, cut)
        return cut

    def hold(self, network: nn.Module, cut: Cut) -> None:
        """Zero the same weights again."""
        tensors = dict(network.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, places in cut.taken.items():
                flat = tensors[name].detach().view(-1)
                flat.index_fill_(0, torch.tensor(places, dtype=torch.int64, device=flat.device), 0.0)
