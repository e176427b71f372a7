"""What cannot be a host, or cannot be run on the example, is told in one sentence, and the module stays as it was."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.seeds import attach_seeds, find_ports

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.lock = net(), threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.net(x)
        return answer


class Packed(nn.Module):
    """As torch's quantized layers: something in its state is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "packed"] = (1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.net(x)
        return answer


class Doubles(nn.Module):
    """An activation in double precision between layers of single."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.act(self.first(x).double()).float())
        return answer


@pytest.mark.parametrize(
    ("host", "example", "message"),
    [
        (torch.relu, X, "the host is a builtin_function_or_method, expected a torch.nn.Module"),
        (nn.Linear, X, "the host is the class Linear"),
        (torch.compile(net(), backend="eager"), X, "OptimizedModule is compiled"),
        (nn.Sequential(nn.LazyLinear(8), nn.ReLU()), X, "0.weight of Sequential has no values yet"),
        (nn.Sequential(nn.Linear(8, 8, device="meta"), nn.ReLU()), X, "0.weight of Sequential has no values yet"),
        (Locked(), X, "Locked cannot be copied"),
        (Packed(), X, "packed of Packed is no tensor"),
        (net(), torch.zeros(2, 7), r"Sequential cannot take the example \(2, 7\) float32"),
        (net(), torch.zeros(2, 8).double(), r"cannot take the example \(2, 8\) float64"),
        (net(), np.zeros((2, 8), np.int64), r"cannot take the example \(2, 8\) int64"),
        (net(), (X, X), r"cannot take the example \(4, 8\) float32, \(4, 8\) float32"),
        (net(), torch.tensor(1.0), r"expected batches of 1 row or more, got shapes \(\)"),
        (net(), torch.zeros(0, 8), r"expected batches of 1 row or more, got shapes \(0, 8\)"),
    ],
)
def test_what_cannot_be_a_host_is_one_sentence(host: Any, example: Any, message: str):
    with pytest.raises(InputError, match=message) as caught:
        attach_seeds(host, example=example)
    assert "\n" not in caught.value.message


def test_the_same_module_without_the_fault_is_taken():
    """The control."""
    assert attach_seeds(net(), example=X).sites == ("1",)
    assert attach_seeds(net(), "1", example=X).sites == ("1",)


def test_finding_places_refuses_the_same_example():
    with pytest.raises(InputError, match="cannot take the example"):
        find_ports(net(), torch.zeros(2, 7))


def test_values_of_another_precision_inside_a_host_are_no_places():
    host = Doubles().eval()
    assert "act" not in [port.name for port in find_ports(host, X)]
    with pytest.raises(InputError, match=r"site act: expected one of .* in float32, got float64"):
        attach_seeds(host, ["act"], example=X)
    network = attach_seeds(host, ["first"], example=X)
    network.graft("first", "adapter")
    assert torch.equal(network(X), host(X))


def test_a_refusal_leaves_the_module_alone():
    host = net()
    before, attributes = {k: v.clone() for k, v in host.state_dict().items()}, set(vars(host))
    with pytest.raises(InputError):
        attach_seeds(host, ["nowhere"], example=X)
    assert all(torch.equal(host.state_dict()[k], v) for k, v in before.items()) and set(vars(host)) == attributes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in host.modules()) and host.training
