"""A network as it was: put back bit for bit, without asking for memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Snapshot:
    """Remembers a network's tensors, layers and modes.

    The network goes on with copies; what is kept are the tensors that it had. Putting them back moves references only,
    so it works when memory is what ran out.

    Args:
        network: Any module. Plain dictionaries and lists among its attributes are remembered one level deep.

    Raises:
        MemoryError: The copies do not fit (or what torch raises in its place); the network is as it was.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [(module, _remembered(module)) for module in network.modules()]
        tensors = {id(t): t for t in [*network.parameters(), *network.buffers()]}
        self._tensors = [(t, t.data, t.grad, t.requires_grad) for t in tensors.values()]
        copies = [data.clone() for _, data, _, _ in self._tensors]
        for (tensor, _, _, _), copy in zip(self._tensors, copies, strict=True):
            tensor.data = copy

    def put_back(self) -> None:
        """Make the network what it was; twice does no harm."""
        for module, attributes in self._modules:
            vars(module).clear()
            vars(module).update({name: _shallow(value) for name, value in attributes.items()})
        for tensor, data, gradient, learns in self._tensors:
            tensor.data = data
            tensor.requires_grad_(learns)
            tensor.grad = gradient

    def release(self, network: nn.Module) -> None:
        """Let go of the copies that the network no longer uses: one copy in all is what a trial costs."""
        used = {id(t) for t in [*network.parameters(), *network.buffers()]}
        for tensor, _, _, _ in self._tensors:
            if id(tensor) not in used:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def _remembered(module: nn.Module) -> dict[str, Any]:
    return {name: _shallow(value) for name, value in vars(module).items()}


def _shallow(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list, set)) else value
