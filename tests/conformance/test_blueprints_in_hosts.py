"""Every blueprint at every place of networks that are not ours: identity, isolation, exact removal, exact merging."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from worlds.hosts import STOCK, make_batch, make_host

from kasmina_trainer.blueprints import GraftBlueprint, blueprints, find_blueprint
from kasmina_trainer.hosts import build_host
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, find_ports, hash_state

GRAFTS = [kind for kind in blueprints() if isinstance(kind, GraftBlueprint)]
LARGER = ("residual", "flat-ecg", "small-vit")
MERGING = ("channel-affine", "conv-lora", "latent-align", "low-rank-residual", "pointwise")


@cache
def host_of(name: str) -> tuple[nn.Module, torch.Tensor, tuple[str, ...]]:
    """A stock host, a batch for it, and the names of all its ports."""
    host, x = make_host(name), make_batch(name)
    return host, x, tuple(port.name for port in find_ports(host, x))


def perturb_site(network: SeededNetwork, site: str, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.graft_parameters(site):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def answers(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Without gradients: torch's encoder layers compute on another path, to another last bit, when one is asked for."""
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("most", [4, pytest.param(99, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STOCK)
def test_whatever_fits_a_place_leaves_it_without_a_trace(name: str, most: int):
    host, x, names = host_of(name)
    names = names[:: -(-len(names) // most)]
    wanted, state = answers(host, x), hash_state(host.state_dict())
    network, grown = attach_seeds(host, names, example=x), set()
    assert torch.equal(answers(network, x), wanted)
    for site in names:
        for kind in (kind for kind in GRAFTS if not kind.refusal(network.ports[site])):
            network.graft(site, kind.name)
            assert torch.equal(answers(network, x), wanted), (site, kind.name)
            perturb_site(network, site)
            if network.graft_parameters(site):
                network.train()
                network(x).square().sum().backward()
                network.eval()
            assert not any(p.grad is not None for n, p in network.named_parameters() if ".branch." not in n)
            grown.update(set() if torch.equal(answers(network, x), wanted) else {kind.name})
            network.remove(site)
            assert torch.equal(answers(network, x), wanted), (site, kind.name)
    network.check_host()
    assert hash_state(host.state_dict()) == state
    assert {"adapter", "channel-affine", "glu", "fail-safe-gate"} <= grown and "no-op" not in grown


def test_between_them_the_hosts_have_a_place_for_every_blueprint():
    missing = {kind.name for kind in GRAFTS if kind.reads != "context"}
    for name in STOCK:
        host, x, names = host_of(name)
        for port in find_ports(host, x):
            missing -= {kind.name for kind in GRAFTS if port.name in names and not kind.refusal(port)}
    assert missing == set()


def test_a_second_value_is_attended_to():
    host, x, names = host_of("residual")
    network = attach_seeds(host, ["layer2.0.act1"], example=x, contexts={"layer2.0.act1": "act1"})
    assert {"layer2.0.act1", "act1"} <= set(names) and network.ports["layer2.0.act1"].context == (8, 12, 12)
    network.graft("layer2.0.act1", "cross-attention")
    assert torch.equal(network(x), host(x))
    perturb_site(network, "layer2.0.act1", 0.5)
    assert not torch.equal(network(x), host(x))
    network.remove("layer2.0.act1")
    assert torch.equal(network(x), host(x))


@pytest.mark.parametrize("blueprint", ["depthwise", "se", "denoising-ae", "mini-attention", "fail-safe-gate"])
def test_one_graft_leaves_the_others_as_they_are(blueprint: str):
    host, x = build_host(seed=0).eval(), torch.rand(3, 1, 16, 16)
    network = attach_seeds(host)
    network.graft("s1", "adapter")
    perturb_site(network, "s1")
    wanted = network(x)
    network.graft("s2", blueprint)
    perturb_site(network, "s2")
    assert not torch.equal(network(x), wanted)
    network.remove("s2")
    assert torch.equal(network(x), wanted)


@pytest.mark.parametrize(
    "name", ["plain-cnn", "ecg", "mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGER)]
)
def test_a_merged_layer_makes_another_host_that_answers_alike(name: str):
    host, x, names = host_of(name)
    parent, given = hash_state(host.state_dict()), answers(host, x)
    merged_kinds = set()
    network = attach_seeds(host, names, example=x)
    for site in names:
        layer, port = dict(host.named_modules()).get(site), network.ports[site]
        for kind in (find_blueprint(kind) for kind in MERGING):
            assert isinstance(kind, GraftBlueprint)
            if layer is None or kind.refusal(port):
                continue
            network.graft(site, kind.name, intensity=0.5)
            perturb_site(network, site)
            branch = network.site(site).branch
            assert branch is not None
            with torch.no_grad():
                merged = kind.merged(port, branch, layer, 0.5)
                if merged is not None:
                    new = copy.deepcopy(host)
                    new.set_submodule(site, merged)
                    wanted = network(x)
                    assert torch.allclose(new(x), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
                    assert hash_state(new.state_dict()) != parent
                    merged_kinds.add(kind.name)
            network.remove(site)
    assert "channel-affine" in merged_kinds and "conv-lora" in merged_kinds
    assert hash_state(host.state_dict()) == parent and torch.equal(answers(host, x), given)
