"""The host's own names for its tensors, whatever sites stand around its modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from kasmina_trainer.seeds.site import SeedSite


def host_state(body: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a host with sites in it, without what grew there."""
    named = ((_host_name(body, key), value) for key, value in body.state_dict().items())
    return {name: value for name, value in named if name is not None}


def _host_name(body: nn.Module, key: str) -> str | None:
    """A key of the body's state by the host's own name; None for what grew there."""
    current: nn.Module | None = body
    parts: list[str] = []
    for part in key.split("."):
        if isinstance(current, SeedSite):
            if part != "inner":
                return None
        else:
            parts.append(part)
        current = current._modules.get(part) if current is not None else None
    return ".".join(parts)


def host_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The host's own parameters and buffers, those that are in no state among them."""
    while isinstance(module, SeedSite):
        module = module.inner
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None:
                yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from host_tensors(child, f"{prefix}{name}.")
