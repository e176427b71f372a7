"""The domains' hosts: causal where they say so, sites that grow, one size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kasmina_trainer as kt
from kasmina_edge.errors import InputError
from kasmina_trainer.domain_nets import (
    CharacterLstm,
    CharacterNet,
    NextCharacter,
    OneHot,
    PointNet,
    SeriesNet,
    lstm_of_size,
)


@pytest.mark.parametrize("make", [lambda: CharacterNet(5, channels=8), lambda: CharacterLstm(5, 8)])
def test_no_logit_sees_a_later_character(make: object) -> None:
    assert callable(make)
    torch.manual_seed(0)
    network = OneHot(make(), 5).eval()
    text = torch.randint(0, 5, (3, 40))
    other = text.clone()
    other[:, 25:] = (other[:, 25:] + 1) % 5
    with torch.no_grad():
        first, second = network(text), network(other)
    assert first.shape == (3, 5, 40)
    assert torch.allclose(first[:, :, :25], second[:, :, :25]) and not torch.allclose(first[:, :, 25], second[:, :, 25])


def test_a_character_net_sees_as_far_as_it_says() -> None:
    network = CharacterNet(3, channels=4, dilations=(1, 2)).eval()
    x = torch.randn(1, 3, 20)
    far, near = x.clone(), x.clone()
    far[:, :, 19 - network.reach] += 5
    near[:, :, 20 - network.reach] += 5
    last = NextCharacter(network)
    with torch.no_grad():
        assert torch.equal(last(x), last(far)) and not torch.equal(last(x), last(near))


@pytest.mark.parametrize("parameters", [500, 5000, 60_000])
def test_an_lstm_is_as_large_as_it_may_be(parameters: int) -> None:
    found = lstm_of_size(20, parameters)
    wider = CharacterLstm(20, found.cells.hidden_size + 1)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (found, wider)]
    assert sizes[0] <= parameters < sizes[1]


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (PointNet(2, 3), torch.zeros(1, 2)),
        (SeriesNet(6, 4), torch.zeros(1, 6, 128)),
        (CharacterNet(4, channels=8, dilations=(1, 2)), torch.zeros(1, 4, 16)),
    ],
    ids=["points", "series", "characters"],
)
def test_every_site_is_a_place_where_something_can_grow(network: nn.Module, example: torch.Tensor) -> None:
    sites = network.seed_sites
    seeds = kt.attach_seeds(network.eval(), sites=sites, example=example)  # type: ignore[arg-type]
    assert len(sites) >= 2 and torch.equal(seeds(example), network(example))


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(InputError, match="hidden 0"):
        PointNet(2, 2, hidden=0)
    with pytest.raises(InputError, match="must be odd"):
        SeriesNet(6, 6, kernel=4)
