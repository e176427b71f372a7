"""Every blueprint keeps every promise at every kind of port; blueprints that break one are found out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from worlds import blueprint_versions

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints import (
    Blueprint,
    BlueprintConfig,
    Cost,
    GraftBlueprint,
    HostBlueprint,
    Layout,
    Port,
    blueprints,
    find_blueprint,
)
from kasmina_trainer.blueprints.base import GraftBlueprint as Base
from kasmina_trainer.blueprints.conformance import PROMISES, SAMPLE_PORTS, broken_promises, layer_of
from kasmina_trainer.blueprints.cost import probes

GRAFTS = [kind for kind in blueprints() if isinstance(kind, GraftBlueprint)]
FITS = {
    "no-op": 8, "depthwise": 6, "adapter": 8, "low-rank-residual": 8, "residual-mlp": 8, "se": 6, "pointwise": 4,
    "conv-lora": 6, "channel-affine": 8, "input-filter": 2, "mini-attention": 5, "cross-attention": 2, "glu": 8,
    "sparse-activation": 8, "denoising-ae": 6, "sliding-conv": 3, "latent-align": 1, "quant-adapter": 8,
    "fail-safe-gate": 8, "switched-adapter": 8,
}  # fmt: skip
OTHER_SETTINGS = {
    "depthwise": {"taps": 3, "filters": 2},
    "adapter": {"bottleneck": 3},
    "low-rank-residual": {"rank": 1},
    "residual-mlp": {"hidden": 5, "depth": 3},
    "se": {"hidden": 2},
    "conv-lora": {"rank": 2},
    "input-filter": {"hidden": 3, "taps": 3},
    "mini-attention": {"size": 5, "tokens": 4, "norm": True},
    "cross-attention": {"size": 5, "tokens": 4, "norm": True},
    "glu": {"hidden": 3},
    "sparse-activation": {"threshold": 0.1},
    "denoising-ae": {"hidden": 3},
    "sliding-conv": {"hidden": 3, "taps": 3, "depth": 3},
    "quant-adapter": {"low": -1.0, "high": 3.0},
    "fail-safe-gate": {"guards": "glu", "settings": {"hidden": 3}, "shut": 2.0},
    "switched-adapter": {"taps": 3, "bottleneck": 3},
}


def named(kind: Blueprint) -> str:
    return blueprint_versions.key(kind)


def test_the_suite_sees_the_whole_library():
    names = {kind.name for kind in blueprints()}
    assert set(FITS) | {"scale-bn-retune"} <= names
    assert len({named(kind) for kind in blueprints()}) == len(blueprints()) >= 20
    assert all(kind.summary and kind.exports for kind in blueprints())
    assert len(PROMISES) == 9


@pytest.mark.parametrize("kind", GRAFTS, ids=named)
def test_a_blueprint_keeps_its_promises(kind: GraftBlueprint):
    fitting = [name for name, port in SAMPLE_PORTS.items() if not kind.refusal(port)]
    assert len(fitting) == FITS.get(kind.name, len(fitting)) > 0
    assert {SAMPLE_PORTS[name].rank for name in fitting} == kind.ranks
    faults = {name: broken_promises(kind, SAMPLE_PORTS[name]) for name in fitting}
    assert not any(faults.values()), faults


@pytest.mark.parametrize("kind", GRAFTS, ids=named)
def test_it_keeps_them_with_other_settings(kind: GraftBlueprint):
    changed = OTHER_SETTINGS.get(kind.name)
    if changed is None:
        assert not kind.Config.model_fields or kind.name not in FITS
        return
    config = kind.Config.parse(changed)
    assert config != kind.Config() and config.digest() != kind.Config().digest()
    assert set(changed) <= set(kind.Config.model_fields)
    fitting = [port for port in SAMPLE_PORTS.values() if not kind.refusal(port, config)]
    assert fitting and [broken_promises(kind, port, config) for port in fitting] == [{} for _ in fitting]


@pytest.mark.parametrize("kind", GRAFTS, ids=named)
def test_its_price_is_a_formula(kind: GraftBlueprint):
    assert type(kind)._cost is not Base._cost
    assert set(kind.exports) == {"tflite-int8", "onnx-qdq"}


@pytest.mark.parametrize("kind", [k for k in GRAFTS if k.Config.model_fields], ids=named)
def test_its_settings_are_frozen_and_have_ranges(kind: GraftBlueprint):
    config = kind.Config()
    name = next(iter(kind.Config.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(config, name, getattr(config, name))
    with pytest.raises(InputError, match="unknown field"):
        kind.Config.parse({"colour": 1})
    for field, default in config.model_dump().items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            with pytest.raises(InputError, match=field):
                kind.Config.parse({field: -(10**9)})
            with pytest.raises(InputError, match=field):
                kind.Config.parse({field: 10**9})


@pytest.mark.parametrize("kind", blueprints(), ids=named)
def test_a_published_version_never_changes(kind: Blueprint):
    """A new version enters the table by `python -m worlds.blueprint_versions`; an old entry is never changed."""
    table, now = blueprint_versions.read(), blueprint_versions.fingerprint(kind)
    assert named(kind) in table, "a new version: run `python -m worlds.blueprint_versions` in tests/"
    published = table[named(kind)]
    assert (now["settings"], now["state"]) == (published["settings"], published["state"])
    assert set(now["outputs"]) == set(published["outputs"])
    for place, numbers in now["outputs"].items():
        assert numbers == pytest.approx(published["outputs"][place], abs=2e-5, rel=1e-4), place


def test_no_published_version_is_gone():
    assert set(blueprint_versions.read()) <= {named(kind) for kind in blueprints()}


# ---- negative controls: each breaks one promise, and the suite says which


class Honest(GraftBlueprint):
    """A 1x1 map that is zero at birth; the children of this class each do one thing wrong."""

    name, version, summary = "honest", 1, "control"

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module | None:
        return self.made(port.channels)

    def made(self, channels: int) -> nn.Module:
        return Part(channels)

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        c = port.channels
        return Cost(c * (c + 1), c * c * port.positions, c * c + 4 * c)


class Part(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)


class FarFromZero(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x) + torch.relu(x - 100)

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Loud(Honest):
    def made(self, channels: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 1)


class Leaking(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x.requires_grad_() if torch.is_grad_enabled() else x)

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Detached(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x).detach() + 0 * sum(p.sum() for p in self.parameters())

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Overwriting(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x.clamp_(-0.5, 0.5))

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Silent(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * self.map(x)

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Unpicklable(Honest):
    def made(self, channels: int) -> nn.Module:
        part = Part(channels)
        vars(part)["note"] = lambda: None
        return part


class BatchBound(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x - x.mean(0, keepdim=True))

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Forgetful(Honest):
    class Shape(Part):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.hidden = torch.randn(1, channels, 1, 1)  # no parameter and no buffer: it does not travel

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x * self.hidden)

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


class Fickle(Honest):
    turns = itertools.count(1)

    def made(self, channels: int) -> nn.Module:
        part = nn.Sequential(nn.Conv2d(channels, channels, 1), Part(channels))
        nn.init.constant_(part[0].weight, next(self.turns))  # type: ignore[arg-type]
        return part

    _cost = GraftBlueprint._cost


class Drawing(Honest):
    def build(self, *args: object, **kwargs: object) -> nn.Module | None:
        torch.rand(1)
        return super().build(*args, **kwargs)  # type: ignore[arg-type]


class Overpriced(Honest):
    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return super()._cost(port, config) + Cost(macs=1)


class Cheap(Honest):
    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        cost = super()._cost(port, config)
        return Cost(cost.parameters, cost.macs, cost.parameters)  # biases of one byte


class Welcoming(Honest):
    def refusal(self, port: Port, config: BlueprintConfig | None = None) -> str:
        return ""


class Mutable(Honest):
    class Config(BlueprintConfig):
        model_config = {"frozen": False}


class MergedWrongly(Honest):
    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        return layer


class MergedInPlace(Honest):
    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        with torch.no_grad():
            layer.weight.mul_(1.5)  # type: ignore[operator, union-attr]
        return None


@pytest.mark.parametrize(
    ("kind", "promise", "words"),
    [
        (FarFromZero, "identity", "outputs change at birth"),
        (Loud, "identity", "zero at birth"),
        (Leaking, "gradients", "a gradient reaches the value it reads"),
        (Detached, "gradients", "can never learn"),
        (Overwriting, "removal", "writes into the value"),
        (Silent, "removal", "adds nothing"),
        (Unpicklable, "copies", "pickle"),
        (BatchBound, "copies", "depends on the other frames"),
        (Forgetful, "copies", "same weights answers otherwise"),
        (Fickle, "determinism", "two kinds of first weights"),
        (Drawing, "determinism", "moves torch's own generator"),
        (Overpriced, "cost", "its formula says"),
        (Cheap, "cost", "its formula says"),
        (Welcoming, "refusals", "RuntimeError"),
        (Mutable, "settings", "not frozen"),
        (MergedWrongly, "merging", "off by"),
        (MergedInPlace, "merging", "changes the layer itself"),
    ],
)
def test_a_broken_promise_is_found(kind: type[GraftBlueprint], promise: str, words: str):
    faults = broken_promises(kind(), SAMPLE_PORTS["image"])
    assert words in faults.get(promise, f"nothing; others: {faults}")


def test_an_honest_blueprint_of_somebody_else_keeps_them_all():
    assert broken_promises(Honest(), SAMPLE_PORTS["image"]) == {}


def test_a_changed_version_does_not_match_the_table():
    honest, louder = blueprint_versions.fingerprint(Honest()), blueprint_versions.fingerprint(Doubled())
    assert honest["state"] == louder["state"] and honest["outputs"] != louder["outputs"]
    adapter = find_blueprint("adapter")
    assert blueprint_versions.fingerprint(adapter)["settings"] != honest["settings"]


class Doubled(Honest):
    class Shape(Part):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.map(x)

    def made(self, channels: int) -> nn.Module:
        return self.Shape(channels)


def test_every_sample_port_is_what_its_layer_makes():
    for port in SAMPLE_PORTS.values():
        if port.layer is not None:
            assert layer_of(port.layer)(torch.zeros(1, *port.source().shape)).shape[1:] == port.shape
    assert {port.layout for port in SAMPLE_PORTS.values()} == set(Layout)


def test_host_blueprints_have_no_site():
    hosts = [kind for kind in blueprints() if isinstance(kind, HostBlueprint)]
    assert [kind.name for kind in hosts] == ["scale-bn-retune"]
    assert all(kind.mergeable and kind.refusal(port) for kind in hosts for port in SAMPLE_PORTS.values())
    assert not any(kind.mergeable for kind in GRAFTS)


def test_a_branch_says_what_it_reads():
    for kind in GRAFTS:
        port = next(port for port in SAMPLE_PORTS.values() if not kind.refusal(port))
        branch = kind.build(port, seed=0)
        if branch is not None:
            assert getattr(branch, "reads", None) == kind.reads
            assert len(probes(branch, port, batch=1)) == (2 if kind.reads == "context" else 1)


@pytest.mark.parametrize("kind", [kind for kind in GRAFTS if kind.name != "no-op"], ids=named)
def test_a_branch_learns_what_a_site_lacks(kind: GraftBlueprint):
    """The site's value comes scaled, shifted and turned; a branch of any kind can bring some of it back."""
    port = next(port for port in SAMPLE_PORTS.values() if not kind.refusal(port))
    branch = kind.build(port, seed=0)
    assert branch is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        given = probes(branch, port, batch=64)
    given = (0.6 * given[0] + 0.4, *given[1:])
    missing = _missing(kind, port, given[0])
    optimizer, losses = torch.optim.Adam(branch.parameters(), lr=0.02), []
    branch.train()
    for _ in range(30):
        loss = (branch(*given) - missing).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(float(missing.square().mean())) and losses[-1] < 0.95 * losses[0]


def _missing(kind: GraftBlueprint, port: Port, read: torch.Tensor) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        if kind.reads == "input":
            assert port.layer is not None
            found: torch.Tensor = layer_of(port.layer)(read)
            return found
    return 0.3 - 0.5 * read
