"""Seed sites: identity at birth, isolation, exact removal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.registry import (
    Blueprint,
    GraftBlueprint,
    Shape,
    blueprint_names,
    find_blueprint,
    register,
)
from kasmina_trainer.hosts import DigitsHost, build_host
from kasmina_trainer.seeds import SeededNetwork, SeedSite, SiteState, attach_seeds, freeze, hash_state


def perturb(network: SeededNetwork) -> None:
    """Give every graft weights that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.graft_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_the_host_is_as_large_as_the_brief_says():
    host = build_host(seed=0)
    assert 40_000 <= sum(p.numel() for p in host.parameters()) <= 60_000
    assert hash_state(host.state_dict()) == hash_state(build_host(seed=0).state_dict())
    assert hash_state(host.state_dict()) != hash_state(build_host(seed=1).state_dict())


def test_building_a_host_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    build_host(seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_architecture_is_refused():
    with pytest.raises(InputError, match="architecture 'vgg'"):
        build_host("vgg")


def test_bare_sites_change_nothing(trained_host: nn.Module, seeded: SeededNetwork, digit_batch: torch.Tensor):
    assert torch.equal(seeded(digit_batch), trained_host(digit_batch))
    assert seeded.sites == ("s1", "s2", "s3", "s4")
    assert seeded.shapes == {"s1": (16, 16, 16), "s2": (32, 8, 8), "s3": (64, 8, 8), "s4": (128, 4, 4)}
    assert set(seeded.states.values()) == {SiteState.DORMANT}
    assert seeded.grafts == ()


@pytest.mark.parametrize("blueprint", ["depthwise", "no-op"])
def test_a_graft_is_identity_at_birth(
    trained_host: nn.Module, seeded: SeededNetwork, digit_batch: torch.Tensor, blueprint: str
):
    seeded.graft("s1", blueprint)
    seeded.graft("s2", blueprint)
    assert torch.equal(seeded(digit_batch), trained_host(digit_batch))
    assert seeded.states["s1"] is SiteState.PROBING and seeded.states["s3"] is SiteState.DORMANT


def test_a_depthwise_graft_costs_what_its_formula_says(seeded: SeededNetwork):
    seeded.graft("s1", "depthwise")
    seeded.graft("s2", "depthwise")
    assert [g.parameters for g in seeded.grafts] == [16 * 26 + 16 * 17, 32 * 10 + 32 * 33]
    assert sum(g.parameters for g in seeded.grafts) <= 2500


def test_removal_is_exact(trained_host: nn.Module, seeded: SeededNetwork, digit_batch: torch.Tensor):
    expected = trained_host(digit_batch)
    seeded.graft("s1", "depthwise")
    seeded.graft("s2", "depthwise", seed=1)
    perturb(seeded)
    assert not torch.equal(seeded(digit_batch), expected)
    with_s2 = seeded(digit_batch)
    seeded.graft("s3", "depthwise")
    perturb_s3 = seeded.graft_parameters("s3")
    with torch.no_grad():
        for parameter in perturb_s3:
            parameter.add_(0.05)
    seeded.remove("s3")
    assert torch.equal(seeded(digit_batch), with_s2)
    seeded.remove("s1")
    seeded.remove("s2")
    assert torch.equal(seeded(digit_batch), expected)
    assert seeded.states["s1"] is SiteState.REMOVED
    assert seeded.grafts == () and seeded.graft_state() == {}
    seeded.check_host()
    seeded.graft("s1", "depthwise")
    assert torch.equal(seeded(digit_batch), expected)


def test_intensity_blends(trained_host: nn.Module, seeded: SeededNetwork, digit_batch: torch.Tensor):
    seeded.graft("s4", "depthwise", intensity=0.5)
    perturb(seeded)
    half = seeded(digit_batch)
    seeded.set_intensity("s4", 0.0)
    assert torch.equal(seeded(digit_batch), trained_host(digit_batch))
    seeded.set_intensity("s4", 1.0)
    assert not torch.equal(seeded(digit_batch), half)
    assert seeded.grafts[0].intensity == 1.0


def test_gradients_reach_the_graft_and_not_the_host(seeded: SeededNetwork, digit_batch: torch.Tensor):
    seeded.graft("s1", "depthwise")
    seeded.train()
    seeded(digit_batch).square().sum().backward()
    pointwise = [p for n, p in seeded.named_parameters() if "branch.pointwise" in n]
    assert pointwise and all(p.grad is not None and p.grad.abs().sum() > 0 for p in pointwise)
    assert all(p.grad is None for n, p in seeded.named_parameters() if ".branch." not in n)
    assert not any(m.training for m in seeded.body.modules() if isinstance(m, nn.BatchNorm2d))
    seeded.check_host()


def test_an_edited_host_is_noticed(seeded: SeededNetwork):
    with torch.no_grad():
        next(seeded.body.parameters()).add_(1e-6)
    with pytest.raises(InputError, match="the host changed under its grafts"):
        seeded.check_host()


def test_moved_statistics_are_noticed(seeded: SeededNetwork, digit_batch: torch.Tensor):
    seeded.body.train()
    seeded(digit_batch)
    with pytest.raises(InputError, match="the host changed"):
        seeded.check_host()


def test_the_original_is_never_touched(digit_batch: torch.Tensor):
    host = build_host(seed=0)
    before = hash_state(host.state_dict())
    network = attach_seeds(host)
    network.graft("s1", "depthwise")
    perturb(network)
    assert hash_state(host.state_dict()) == before == network.host_hash
    assert host.training and not freeze(host).training
    assert not any(p.requires_grad for p in freeze(host).parameters())


def test_module_for_export_is_plain_and_holds_its_gate(
    trained_host: nn.Module, seeded: SeededNetwork, digit_batch: torch.Tensor
):
    bare = seeded.module_for_export()
    assert [type(m) for m in bare.modules()] == [type(m) for m in trained_host.modules()]
    seeded.graft("s2", "depthwise", intensity=0.75)
    perturb(seeded)
    module = seeded.module_for_export()
    assert torch.equal(module(digit_batch), seeded(digit_batch))
    assert [n for n, m in module.named_modules() if isinstance(m, SeedSite)] == ["s2"]
    assert dict(module.named_buffers())["s2.gate"].item() == 0.75
    seeded.remove("s2")
    assert not torch.equal(module(digit_batch), seeded(digit_batch))


def test_the_export_graph_only_grows_by_the_graft(seeded: SeededNetwork, digit_batch: torch.Tensor):
    def operations(network: SeededNetwork) -> list[str]:
        program = torch.export.export(network.module_for_export(), (digit_batch,))
        return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]

    bare = operations(seeded)
    seeded.graft("s2", "depthwise")
    grown = operations(seeded)
    added = ["aten.conv2d.default", "aten.relu.default", "aten.conv2d.default", "aten.mul.Tensor", "aten.add.Tensor"]
    at = next(i for i in range(len(grown)) if grown[i : i + 5] == added and grown[:i] + grown[i + 5 :] == bare)
    assert at > 0


def test_graft_weights_travel(seeded: SeededNetwork, trained_host: nn.Module, digit_batch: torch.Tensor):
    seeded.graft("s1", "depthwise")
    perturb(seeded)
    other = attach_seeds(trained_host)
    with pytest.raises(InputError, match="do not fit"):
        other.load_graft_state(seeded.graft_state())
    other.graft("s1", "depthwise", seed=9)
    other.load_graft_state(seeded.graft_state())
    assert torch.equal(other(digit_batch), seeded(digit_batch))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.graft("s9", "depthwise"), "no seed site is called 's9'; sites are s1, s2, s3, s4"),
        (lambda n: n.graft("s1", "scale-bn-retune"), "is not removable"),
        (lambda n: n.graft("s1", "depthwise", intensity=1.5), "intensity 1.5"),
        (lambda n: n.remove("s1"), "site s1 is dormant: nothing to remove"),
        (lambda n: n.set_intensity("s1", 0.5), "nothing grows there"),
        (lambda n: (n.graft("s1", "no-op"), n.graft("s1", "no-op")), "holds no-op already"),
    ],
)
def test_wrong_calls_are_refused(seeded: SeededNetwork, call: object, message: str):
    with pytest.raises(InputError, match=message):
        call(seeded)  # type: ignore[operator]


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.out = nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(x))
        return self.twice(self.twice(self.out(x))).mean((2, 3))


def test_sites_of_any_module():
    x = torch.rand(2, 3, 6, 6)
    model = _Shared().eval()
    network = attach_seeds(model, example=x)
    assert network.shapes == {"act": (4, 6, 6)}
    named = attach_seeds(model, sites=["out"], example=x)
    named.graft("out", "depthwise")
    assert torch.equal(named(x), model(x))
    assert hash_state(named.host_state()) == hash_state(model.state_dict())
    assert hash_state(named.host_copy().state_dict()) == hash_state(model.state_dict())
    named.module_for_export()
    assert attach_seeds(model, example=x.numpy()).sites == ("act",)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["twice"], "expected one"),
        (["nowhere"], "is not a module"),
        ([""], "is not a module"),
        ([], "no seed site found"),
    ],
)
def test_places_that_cannot_be_sites(sites: list[str], message: str):
    with pytest.raises(InputError, match=message):
        attach_seeds(_Shared(), sites=sites, example=torch.rand(1, 3, 6, 6))


def test_a_module_without_a_known_input_needs_an_example():
    with pytest.raises(InputError, match="has no input_shape"):
        attach_seeds(_Shared())


class _Named(GraftBlueprint):
    def __init__(self, name: str, version: int, branch: nn.Module | None = None) -> None:
        self.name, self.version, self._branch = name, version, branch

    def _build(self, shape: Shape) -> nn.Module | None:
        return self._branch


def test_the_library():
    assert {"depthwise", "no-op", "scale-bn-retune"} <= set(blueprint_names())
    assert find_blueprint("scale-bn-retune").mergeable and not find_blueprint("depthwise", 1).mergeable
    with pytest.raises(InputError, match="no blueprint is called 'deptwise'") as caught:
        find_blueprint("deptwise")
    assert "depthwise" in caught.value.next_step
    with pytest.raises(InputError, match="v2 was asked for, this library has v1"):
        find_blueprint("depthwise", 2)


@pytest.mark.parametrize(
    ("blueprint", "message"),
    [
        (_Named("depthwise", 2), "registered already, as v1"),
        (_Named("Bad Name", 1), "expected 1 to 64"),
        (_Named("nameless", 0), "expected a version of 1 or more"),
    ],
)
def test_the_registry_refuses(blueprint: Blueprint, message: str):
    find_blueprint("depthwise")
    with pytest.raises(InputError, match=message):
        register(blueprint)


@pytest.mark.parametrize(
    ("branch", "message"),
    [(nn.Identity(), "zero at birth"), (nn.Conv2d(4, 2, 1), "expected the same shape")],
)
def test_a_blueprint_must_keep_its_promise(branch: nn.Module, message: str):
    with pytest.raises(InputError, match=message):
        _Named("liar", 1, branch).build((4, 3, 3), seed=0)


def test_a_blueprint_needs_a_map():
    with pytest.raises(InputError, match=r"expected a site of shape \(C, H, W\) or \(C, L\), got \(4,\)"):
        find_blueprint("depthwise").build((4,), seed=0)  # type: ignore[attr-defined]


def test_the_host_keeps_its_settings():
    assert DigitsHost(classes=3)(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
