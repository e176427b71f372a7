"""What single blueprints do, beside the promises that all of them keep (tests/conformance/test_blueprints.py)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints import (
    Cost,
    GraftBlueprint,
    Layer,
    Layout,
    Port,
    Width,
    blueprint,
    find_blueprint,
    register,
    registry,
)
from kasmina_trainer.blueprints.attention import AttentionBranch, AttentionConfig
from kasmina_trainer.blueprints.conformance import SAMPLE_PORTS, perturb
from kasmina_trainer.blueprints.fail_safe import FailSafeBranch
from kasmina_trainer.blueprints.gated import SparseBranch
from kasmina_trainer.blueprints.quant_adapter import QuantAdapterBranch
from kasmina_trainer.blueprints.retune import ScaleBnRetune
from kasmina_trainer.hosts import build_host
from kasmina_trainer.seeds import hash_state

IMAGE = SAMPLE_PORTS["image"]


def grafts(name: str) -> GraftBlueprint:
    kind = find_blueprint(name)
    assert isinstance(kind, GraftBlueprint)
    return kind


def built(name: str, port: Port, **settings: object) -> nn.Module:
    kind = grafts(name)
    branch = kind.build(port, seed=0, config=kind.Config.parse(settings))
    assert branch is not None
    return branch


# ---- ports


def test_a_port_is_its_shape_where_a_shape_is_wanted():
    port = Port.of((6, 7, 9), "s1")
    assert (port[0], port[1:], len(port), list(port), min(port[1:])) == (6, (7, 9), 3, [6, 7, 9], 7)
    assert (port.rank, port.channels, port.positions, port.channel_shape) == (3, 6, 63, (1, 6, 1, 1))
    tokens = SAMPLE_PORTS["tokens"]
    assert (tokens.channels, tokens.positions, tokens.channel_shape) == (8, 5, (1, 1, 8))
    assert tokens.other().layout is Layout.TOKENS and IMAGE.other().layout is Layout.IMAGE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Port.of((1, 2, 3, 4)), r"\(C, H, W\), \(C, L\) or \(C,\), got \(1, 2, 3, 4\)"),
        (lambda: Port.of((0, 2)), r"got \(0, 2\)"),
        (lambda: Port("s1", (4, 4), Layout.IMAGE), r"site s1: expected a shape \(C, H, W\), got \(4, 4\)"),
        (lambda: Port.of((4,)).source(), "leaves no convolution or linear layer"),
        (lambda: Port.of((4,)).other(), "offers no second value"),
    ],
)
def test_a_port_that_is_none(make: object, message: str):
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "port", "message"),
    [
        ("depthwise", SAMPLE_PORTS["tokens"], r"\(C, H, W\) or \(C, L\), got \(5, 8\) tokens"),
        ("latent-align", IMAGE, r"expected a site of shape \(C,\), got \(6, 7, 9\)"),
        ("conv-lora", SAMPLE_PORTS["input"], "this site leaves none"),
        ("cross-attention", SAMPLE_PORTS["strided"], "offers none"),
        ("input-filter", IMAGE, "'input' alone, got 's1'"),
        ("sliding-conv", IMAGE, "got a map of height 7"),
        ("sliding-conv", Port.of((3, 4)), "reaches 4 samples to either side, got a series of 4"),
        ("denoising-ae", Port.of((3, 1, 1)), "2 places or more, got 1"),
        ("mini-attention", Port.of((3, 1, 1)), "2 places or more, got 1"),
    ],
)
def test_refusals_carry_both_numbers(name: str, port: Port, message: str):
    with pytest.raises(InputError, match=message) as caught:
        grafts(name).build(port, seed=0)
    assert caught.value.next_step.startswith("Blueprints that fit: ") and name not in caught.value.next_step.split(", ")
    with pytest.raises(InputError, match=message):
        grafts(name).cost(port)


def test_layers_that_cannot_have_a_branch_beside_them():
    grouped = Port("s", (4, 6, 6), Layout.IMAGE, Layer("conv2d", 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), 4), (4, 6, 6))
    assert "1 group, got 4 groups" in grafts("conv-lora").refusal(grouped)
    bare = Port("s", (4, 4, 4), Layout.IMAGE, Layer("conv2d", 3, 4, (3, 3), (1, 1), (0, 0), (1, 1)), (3, 6, 6))
    assert "makes (6, 6) of its input, got a site of (4, 4)" in grafts("pointwise").refusal(bare)
    assert not grafts("conv-lora").refusal(bare)
    assert "linear layer" in grafts("pointwise").refusal(
        Port("s", (4, 4), Layout.SERIES, Layer("linear", 3, 4), (4, 3))
    )
    for name in ("low-rank-residual", "pointwise"):
        branch = built(name, grouped)
        layer = nn.Conv2d(4, 4, 3, 1, 1, groups=4)
        assert grafts(name).merged(grouped, branch, layer, 1.0) is None
    assert grafts("channel-affine").merged(grouped, built("channel-affine", grouped), layer, 1.0) is not None
    assert grafts("conv-lora").merged(IMAGE, built("conv-lora", IMAGE), nn.ReLU(), 1.0) is None


def test_settings_of_another_blueprint_are_refused():
    with pytest.raises(InputError, match="expected settings of type AdapterConfig, got GluConfig") as caught:
        grafts("adapter").build(IMAGE, seed=0, config=grafts("glu").Config())
    assert "bottleneck" in caught.value.next_step


# ---- settings and prices


def test_width_scales_what_is_marked_and_stays_in_range():
    config = grafts("residual-mlp").Config.parse({"hidden": 10, "depth": 3})
    assert config.scaled(0.5).model_dump() == {"hidden": 5, "depth": 3}
    assert config.scaled(1e-6).model_dump()["hidden"] == 1 and config.scaled(4000).model_dump()["hidden"] == 1024
    with pytest.raises(InputError, match="width 0: expected a factor above 0"):
        config.scaled(0)
    guard = grafts("fail-safe-gate").Config.parse({"guards": "glu", "settings": {"hidden": 6}})
    assert guard.scaled(0.5).model_dump()["settings"] == {"hidden": 3}
    assert Width() == Width()


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "macs", "size"),
    [
        ("depthwise", (16, 16, 16), 688, 256 * (16 * 25 + 256), 16 * 25 + 256 + 4 * 32 + 1),
        ("adapter", (16, 8, 8), 2 * 16 * 8 + 8 + 16, 64 * 256, 256 + 4 * 24 + 1),
        ("se", (16, 8, 8), 2 * 16 * 8 + 8 + 16, 256, 256 + 4 * 24 + 1),
        ("channel-affine", (16, 8, 8), 32, 0, 33),
        ("no-op", (16, 8, 8), 0, 0, 0),
    ],
)
def test_prices_worked_out_by_hand(name: str, shape: tuple[int, ...], parameters: int, macs: int, size: int):
    assert grafts(name).cost(shape) == Cost(parameters, macs, size)


def test_a_version_of_a_name_comes_from_where_the_name_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})
    monkeypatch.setattr(registry, "_LIBRARY", ())

    class Ours(GraftBlueprint):
        def _build(self, port: Port, config: object) -> None:
            return None

    first = blueprint("ours", version=1)(type("First", (Ours,), {}))
    blueprint("ours", version=3)(type("Third", (Ours,), {}))
    assert find_blueprint("ours").version == 3 and isinstance(find_blueprint("ours", 1), first)
    with pytest.raises(InputError, match="v2 was asked for, this library has v1, v3"):
        find_blueprint("ours", 2)
    with pytest.raises(InputError, match="registered already, as v1, v3"):
        register(find_blueprint("ours", 3))
    stranger = type("Stranger", (Ours,), {"__module__": "elsewhere", "name": "ours", "version": 4})
    with pytest.raises(InputError, match="registered already"):
        register(stranger())


# ---- what they compute


def test_a_sparse_activation_is_a_soft_threshold():
    branch = built("sparse-activation", IMAGE, threshold=0.5)
    assert isinstance(branch, SparseBranch)
    x = torch.linspace(-2, 2, 2 * 6 * 63).reshape(2, 6, 7, 9)
    wanted = torch.relu(x - 0.5) - torch.relu(-x - 0.5)
    assert torch.allclose(branch.shrunk(x), wanted, atol=1e-6)
    assert bool((branch.shrunk(x)[x.abs() <= 0.5] == 0).all()) and bool((wanted[x.abs() > 0.5] != 0).all())


def test_a_quant_adapter_learns_on_the_steps_of_int8():
    branch = built("quant-adapter", IMAGE, low=-1.0, high=3.0)
    assert isinstance(branch, QuantAdapterBranch)
    x = torch.linspace(-4, 6, 200)
    assert torch.allclose(branch.eval().held(x), x.clamp(-1, 3), atol=1e-6)
    steps = (branch.train().held(x) + 1) / (4 / 255)
    assert torch.allclose(steps, steps.round(), atol=1e-4) and 50 < len(steps.round().unique()) <= 256
    x.requires_grad_()
    branch.held(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad != 0, (x > -1) & (x < 3))
    with pytest.raises(InputError, match="expected low below high, got 3 and 1"):
        grafts("quant-adapter").Config.parse({"low": 3, "high": 1})


@pytest.mark.parametrize("place", ["image", "series", "tokens", "vector"])
def test_a_fail_safe_gate_is_open_on_what_it_knows_and_shut_on_the_rest(place: str):
    port = SAMPLE_PORTS[place]
    branch = built("fail-safe-gate", port)
    assert isinstance(branch, FailSafeBranch)
    perturb(branch)
    seen = torch.rand(40, *port.shape)
    assert bool((branch.eval().opening(seen) == 1).all())  # nothing seen yet, and nothing to add
    branch.train()
    branch(seen[:20])
    branch(seen[20:])
    assert bool((branch.eval().opening(seen) == 1).all())
    assert torch.equal(branch(seen), branch.guarded(seen))
    strange = seen + 3
    assert bool((branch.opening(strange) == 0).all()) and not bool(branch(strange).any())
    somewhat = branch.opening(seen + 0.3 * (branch.high - branch.low).mean())
    assert bool((somewhat < 1).any())
    twin = copy.deepcopy(built("fail-safe-gate", port))
    twin.load_state_dict(branch.state_dict())
    assert torch.equal(twin(strange), branch(strange)) and torch.equal(twin(seen), branch(seen))


def test_a_silent_channel_does_not_shut_the_gate():
    branch = built("fail-safe-gate", Port.of((8, 4, 4)))
    assert isinstance(branch, FailSafeBranch)
    seen = torch.rand(40, 8, 4, 4)
    seen[:, 0] = 0
    branch.train()(seen)
    seen[:, 0] = 1e-3
    assert bool((branch.eval().opening(seen) == 1).all())


def test_a_fail_safe_gate_guards_what_has_a_branch():
    kind = grafts("fail-safe-gate")
    for name, words in (
        ("no-op", "no branch of its own"),
        ("conv-lora", "no branch"),
        ("adaptr", "is called 'adaptr'"),
    ):
        assert words in kind.refusal(IMAGE, kind.Config.parse({"guards": name}))
    deep = kind.Config.parse({"guards": "latent-align"})
    assert "it guards latent-align, and that says: expected a site of shape (C,)" in kind.refusal(IMAGE, deep)
    with pytest.raises(InputError, match="unknown field"):
        kind.build(IMAGE, seed=0, config=kind.Config.parse({"settings": {"colour": 1}}))
    with pytest.raises(InputError, match="expected begins below shut"):
        kind.Config.parse({"begins": 1, "shut": 0.5})


@pytest.mark.parametrize(("shape", "tokens"), [((2, 9, 7), 4), ((2, 5, 5), 64), ((2, 100, 3), 10), ((2, 13, 1), 2)])
def test_attention_looks_at_every_place(shape: tuple[int, ...], tokens: int):
    port = Port.of(shape)
    branch = AttentionBranch(port, port, AttentionConfig(tokens=tokens))
    x = torch.zeros(1, *shape, requires_grad=True)
    averaged = branch._averaged(x)
    assert 1 < averaged.shape[2] * averaged.shape[3] <= max(tokens, 2)
    averaged.sum().backward()
    assert x.grad is not None and bool((x.grad > 0).all())


def test_cross_attention_answers_with_the_second_value():
    kind = grafts("cross-attention")
    branch = kind.build(IMAGE, seed=0)
    assert branch is not None
    perturb(branch)
    x, context = torch.rand(2, 6, 7, 9), torch.rand(2, 5, 3, 2)
    assert not torch.allclose(branch(x, context), branch(x, context + 1), atol=1e-3)


def test_a_retune_as_removable_branches():
    host = build_host(seed=0).eval()
    tuned = copy.deepcopy(host)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in tuned.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert value is not None
                    value.add_(0.3 * torch.rand(value.shape, generator=generator))
    grown = ScaleBnRetune().as_grafts(host, tuned)
    assert grown is not None and len(grown) == sum(isinstance(m, nn.BatchNorm2d) for m in host.modules())
    parent = hash_state(host.state_dict())
    regrown = copy.deepcopy(host)
    for name, branch in grown.items():

        def add(_m: nn.Module, _i: object, y: torch.Tensor, branch: nn.Module = branch) -> torch.Tensor:
            return y + branch(y)

        regrown.get_submodule(name).register_forward_hook(add)
    x = torch.rand(4, 1, 16, 16)
    assert torch.allclose(regrown(x), tuned(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(host(x), tuned(x), rtol=1e-2, atol=1e-2)
    assert ScaleBnRetune().as_grafts(host, copy.deepcopy(host)) == {}
    assert hash_state(host.state_dict()) == parent != hash_state(tuned.state_dict())
    with torch.no_grad():
        next(m for m in host.modules() if isinstance(m, nn.BatchNorm2d)).weight[0] = 0
    assert ScaleBnRetune().as_grafts(host, tuned) is None


@pytest.mark.parametrize(("layer", "size"), [(nn.Conv1d(2, 3, 3, 1, 1), (2, 9)), (nn.Linear(2, 3), (2,))])
def test_a_retune_of_one_axis_or_none(layer: nn.Module, size: tuple[int, ...]):
    host = nn.Sequential(layer, nn.BatchNorm1d(3)).eval()
    tuned = copy.deepcopy(host)
    nn.init.constant_(tuned[1].weight, 1.5)  # type: ignore[arg-type]
    grown = ScaleBnRetune().as_grafts(host, tuned)
    assert grown is not None and set(grown) == {"1"}
    x = torch.rand(2, *size)
    assert torch.allclose(host(x) + grown["1"](host(x)), tuned(x), atol=1e-5)
    alone = nn.Sequential(nn.BatchNorm1d(3)).eval()
    other = copy.deepcopy(alone)
    nn.init.constant_(other[0].weight, 1.5)  # type: ignore[arg-type]
    assert ScaleBnRetune().as_grafts(alone, other) is None
