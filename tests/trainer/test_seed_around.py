"""The short way through a seeded network is taken by nobody who looks: every kind of hook sees its pass."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from worlds import small_growth

from kasmina_trainer.seeds import SeededNetwork

X = torch.from_numpy(small_growth.bars(4, 0)[0])
Seen = list[str]


@contextmanager
def _hooked(register: Callable[[], Any]) -> Iterator[None]:
    handle = register()
    try:
        yield
    finally:
        handle.remove()


HOOKS: dict[str, Callable[[SeededNetwork, Seen], Callable[[], Any]]] = {
    "before": lambda net, seen: lambda: net.register_forward_pre_hook(lambda *_: seen.append("net")),
    "after": lambda net, seen: lambda: net.register_forward_hook(lambda *_: seen.append("net")),
    "backward": lambda net, seen: lambda: net.register_full_backward_hook(lambda *_: seen.append("net")),
    "before backward": lambda net, seen: lambda: net.register_full_backward_pre_hook(lambda *_: seen.append("net")),
    "all modules": lambda net, seen: (
        lambda: torch_module.register_module_forward_hook(
            lambda module, *_: seen.append("net") if module is net else None
        )
    ),
    "before all modules": lambda net, seen: (
        lambda: torch_module.register_module_forward_pre_hook(
            lambda module, *_: seen.append("net") if module is net else None
        )
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_every_kind_see_the_pass(kind: str):
    network, seen = small_growth.seeded(), Seen()
    x = X.clone().requires_grad_()
    with _hooked(HOOKS[kind](network, seen)):
        network(x).sum().backward()
    assert seen == ["net"]
    network(x).sum().backward()
    assert seen == ["net"]  # gone with its handle


def test_a_forward_of_ones_own_and_a_compiled_call_are_used():
    network = small_growth.seeded()
    expected = network(X)
    network.forward = lambda x: network.body(x) + 1  # type: ignore[method-assign]
    assert torch.equal(network(X), expected + 1)
    compiled = small_growth.seeded()
    compiled.compile(backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), expected)


def test_every_way_gives_the_same_bits():
    network = small_growth.seeded()
    expected = nn.Module.__call__(network, X)
    for other in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network.fresh()):
        assert torch.equal(other(X), expected)
    assert torch.equal(network(x=X), expected)
    network.graft("s1", "adapter")
    with torch.no_grad():
        for parameter in network.graft_parameters():
            parameter.add_(0.3)
    assert torch.equal(network(X), nn.Module.__call__(network, X)) and not torch.equal(network(X), expected)
    network.remove("s1")
    assert torch.equal(network(X), expected)
