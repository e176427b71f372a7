"""The small network inside a nested seed that says, for every frame, how much each child counts."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.blueprints.cost import Cost, linear_cost
from kasmina_trainer.blueprints.mixing import channel_map, pooled
from kasmina_trainer.blueprints.port import Port

SMALL = 0.1
"""Factor of the usual first weights of an output."""


class Controller(nn.Module):
    """Mean over places, one hidden layer, one sigmoid a child: weights between 0 and 1, about a half at birth.

    Every child has an output layer of its own, so that one that comes or goes changes nothing for the others. Its first
    weights are small and not zero: behind zeros the hidden layer would have no gradient.

    Args:
        port: Where the nested seed stands.
        hidden: Width of the hidden layer.
    """

    def __init__(self, port: Port, hidden: int) -> None:
        super().__init__()
        self.port = port
        self.hidden = hidden
        self.trunk = channel_map(port, port.channels, hidden)
        self.heads = nn.ModuleDict()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weight of every child by name.

        Args:
            x: The value at the site.  # (N, *port.shape)

        Returns:
            One number a frame, with as many axes as ``x``.  # (N, 1, ...)
        """
        if not self.heads:
            return {}
        known = torch.relu(self.trunk(pooled(x, self.port.layout)))
        return {name: torch.sigmoid(head(known)) for name, head in self.heads.items()}

    def add(self, name: str, *, seed: int) -> None:
        """An output for one more child.

        Args:
            name: The child's.
            seed: Chooses its first weights; torch's own generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            head = channel_map(self.port, self.hidden, 1)
            for parameter in head.parameters():
                parameter.mul_(SMALL if parameter.ndim > 1 else 0.0)
        self.heads[name] = head.to(next(self.trunk.parameters()).device)

    def drop(self, name: str) -> None:
        """Without that child."""
        del self.heads[name]


def trunk_cost(port: Port, hidden: int) -> Cost:
    """Price of the hidden layer, once a nested seed."""
    return linear_cost(port.channels, hidden)


def head_cost(hidden: int) -> Cost:
    """Price of one child's output."""
    return linear_cost(hidden, 1)
