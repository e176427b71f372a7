"""Every blueprint of the library in an int8 TFLite and an ONNX file: what PyTorch adds, the files add.

One network a kind of port carries every blueprint that fits there, each at a site of its own and each an output of its
own, so that a single conversion proves all of them. What is compared is what a branch adds, not the sum: the host's
value would hide a branch that is wrong.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from kasmina_edge.contracts.manifest import FileEntry, ModelFile, Parity, SelfTest
from kasmina_edge.engines.shadow import Shadow
from kasmina_trainer.blueprints.base import GraftBlueprint, HostBlueprint
from kasmina_trainer.blueprints.conformance import SAMPLE_PORTS, layer_of, perturb
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import blueprint_names, blueprints
from kasmina_trainer.export import judging, onnx, parity, tflite
from kasmina_trainer.export.judging import Judge
from kasmina_trainer.export.layout import as_app, float_outputs
from kasmina_trainer.seeds import SeedSite

Array = npt.NDArray[Any]
MOST_ERROR = 0.1
"""Of what a branch adds in the int8 file, as a share of what it adds in PyTorch; a gate left out would be a third."""
MOST_SUM_ERROR = 0.25
"""The same in the ONNX file, where only the sum can be read, rounded to eight bits of its own range."""

SOME = ("conv-lora", "cross-attention", "fail-safe-gate", "quant-adapter", "se", "sparse-activation")
"""One of each way to be built: beside a layer, on a second value, around another, by clip, by mean, by thresholds."""
QUICK = "some on an image"


class Carrier(nn.Module):
    """A host of one layer, and a site for every blueprint that fits behind it; each site is an output.

    Args:
        port: Where they stand.
        kinds: Which ones.
    """

    def __init__(self, port: Port, kinds: tuple[GraftBlueprint, ...]) -> None:
        super().__init__()
        self.context_shape = port.context
        self.layer = layer_of(port.layer) if port.layer else nn.Identity()
        entering = port.input_shape or port.shape
        self.second = nn.Linear(int(np.prod(entering)), int(np.prod(port.context))) if port.context else nn.Identity()
        self.sites = nn.ModuleDict()
        for kind in kinds:
            branch = kind.build(port, seed=1)
            assert branch is not None
            site = SeedSite(copy.deepcopy(self.layer) if kind.reads == "input" else nn.Identity())
            site.fill(branch, 0.75, torch.device("cpu"), rank=port.rank)
            perturb(branch)
            self.sites[kind.name] = site

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, ...) to one value a site."""
        y = self.layer(x)
        found = []
        for site in self.sites.values():
            reads = getattr(site.branch, "reads", "output")
            if reads == "context":
                assert self.context_shape is not None
                found.append(site(y, site_context=self.second(x.flatten(1)).reshape(-1, *self.context_shape)))
            else:
                found.append(site(x if reads == "input" else y))
        return tuple(found)


@dataclass(frozen=True)
class Made:
    """A carrier and its files."""

    network: Carrier
    frames: Array
    lite: tflite.TfliteExport
    twin: onnx.OnnxExport
    added: dict[str, Array]
    sums: dict[str, Array]


def fitting(port: Port) -> tuple[GraftBlueprint, ...]:
    """The library's removable blueprints that grow something at a port."""
    kinds = [k for k in blueprints() if isinstance(k, GraftBlueprint) and not k.refusal(port)]
    return tuple(kind for kind in kinds if kind.build(port, seed=0) is not None)


def carrier(port: Port, kinds: tuple[GraftBlueprint, ...]) -> Carrier:
    """Trained in no way, but no branch is zero, and each has seen frames in training mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        network = Carrier(port, kinds)
        network.train()
        network(torch.randn(64, *(port.input_shape or port.shape)))
    return network.requires_grad_(False).eval()


def export(port: Port, kinds: tuple[GraftBlueprint, ...]) -> Made:
    """Both files, by the product's own route."""
    network, last = carrier(port, kinds), port.layout is not Layout.TOKENS
    entering = port.input_shape or port.shape
    shape = (*entering[1:], entering[0]) if last and len(entering) > 1 else entering
    frames = np.random.default_rng(0).normal(size=(96, *shape)).astype(np.float32)
    learn, held = frames[:64], frames[64:]
    app = as_app(network, (1, *shape), channels_last=last, output_names=[k.name for k in kinds])
    judge = Judge(float_outputs(app, held), app.output_names, judging.resemblance, judging.ALIKE)
    sites = [f"sites.{kind.name}" for kind in kinds]
    given: dict[str, Any] = {"calibration": learn, "held_out": held, "judge": judge, "channels_last": last}
    lite = tflite.export_tflite(network, sites=sites, **given)
    twin = onnx.export_onnx(network, **given)
    sums = dict(zip(sites, judge.reference, strict=True))
    return Made(network, held, lite, twin, _added(network, app, held, sites), sums)


def _added(network: Carrier, app: Any, frames: Array, sites: list[str]) -> dict[str, Array]:
    """What each branch adds in PyTorch: the sum less the sum with the gate closed."""
    bare = copy.deepcopy(network)
    for site in bare.sites.values():
        site.gate.zero_()  # type: ignore[operator]
    without = float_outputs(as_app(bare, app.app_shape, channels_last=app.moves_outputs), frames)
    return {s: a - b for s, a, b in zip(sites, float_outputs(app, frames), without, strict=True)}


@cache
def made(name: str) -> Made:
    """All that fits one of the sample ports, or some, in one network; where that fails, those that fail are named."""
    port = SAMPLE_PORTS["image" if name == QUICK else name]
    kinds = tuple(kind for kind in fitting(port) if name != QUICK or kind.name in SOME)
    try:
        return export(port, kinds)
    except Exception as exc:
        raise AssertionError(f"{name}: {', '.join(_failing(port, kinds)) or 'only together'}") from exc


def _failing(port: Port, kinds: tuple[GraftBlueprint, ...]) -> list[str]:
    found = []
    for kind in kinds:
        try:
            export(port, (kind,))
        except Exception as exc:
            found.append(f"{kind.name} ({exc})")
    return found


def shadow_of(found: Made) -> Shadow:
    """The int8 file, to be read inside."""
    file, lite = FileEntry.of("model.tflite", found.lite.data), found.lite
    model = ModelFile(
        file=file,
        engine="litert",
        inputs=lite.inputs,
        outputs=lite.outputs,
        selftest=SelfTest(file=file, samples=1, tolerance=1.0),
        parity=Parity(samples=1, top1_agreement=1.0, max_abs_difference=0.0),
        sites=dict(lite.sites),
    )
    return Shadow(model, lite.data)


def error(given: Array, wanted: Array) -> float:
    """Root mean square of the difference, as a share of what is wanted."""
    return float(np.linalg.norm(given.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def cases() -> list[Any]:
    """A few blueprints quickly, and the whole library at every kind of port in its time."""
    return [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLE_PORTS)]


def in_order(given: Array, wanted: Array) -> Array:
    """Values of a file as PyTorch's answer has them: where nothing but elementwise work follows, a converter leaves
    channels first.
    """
    given = given.reshape(len(given), *given.shape[2:])
    return given if given.shape == wanted.shape else np.moveaxis(given, 1, -1)


def test_the_whole_library_is_in_the_cases() -> None:
    """A blueprint that fits no sample port would never be exported here."""
    seen = {kind.name for port in SAMPLE_PORTS.values() for kind in fitting(port)}
    idle = {k.name for k in blueprints() if isinstance(k, HostBlueprint)} | {"no-op"}
    assert seen | idle == set(blueprint_names()) and not seen & idle
    assert len(seen) >= 17 and set(SOME) <= {kind.name for kind in fitting(SAMPLE_PORTS["image"])}
    assert all(kind.exports == {"tflite-int8", "onnx-qdq"} for kind in blueprints())


@pytest.mark.parametrize("name", cases())
def test_what_a_branch_adds_is_in_the_int8_file(name: str) -> None:
    found = made(name)
    assert set(found.lite.sites) == set(found.added), "a site was not found in the file"
    shadow, rows = shadow_of(found), parity.to_rows(found.frames, found.lite.inputs[0])
    assert set(shadow.grafted) == set(found.added)
    looks = [shadow.look([row[None]]) for row in rows]
    near = {}
    for site, wanted in found.added.items():
        given = in_order(np.stack([look.sites[site].added for look in looks]), wanted)  # type: ignore[misc]
        assert given.shape == wanted.shape and float(np.abs(wanted).max()) > 0.1
        near[site] = error(given, wanted)
        assert error(np.roll(given, given.size // 2 + 1), wanted) > 2 * near[site], site  # the comparison can fail
    assert max(near.values()) <= MOST_ERROR, near


@pytest.mark.parametrize("name", cases())
def test_closing_its_gate_silences_a_branch(name: str) -> None:
    found = made(name)
    shadow, row = shadow_of(found), parity.to_rows(found.frames[:1], found.lite.inputs[0])
    for site in shadow.grafted:
        silent = shadow.silence([site])
        assert silent is not None
        looks = shadow.look([row]).sites, silent.look([row]).sites
        for other in shadow.grafted:
            before, after = looks[0][other].added, looks[1][other].added
            assert before is not None and after is not None
            assert bool(np.abs(before).max() > 0)
            assert np.array_equal(before, after) == (other != site) and bool(after.any()) == (other != site)


@pytest.mark.parametrize("name", cases())
def test_what_a_branch_adds_is_in_the_onnx_file(name: str) -> None:
    found = made(name)
    outputs = dict(zip(found.added, parity.onnx_outputs(found.twin.data, found.frames), strict=True))
    near = {}
    for site, wanted in found.added.items():
        entry = found.sums[site] - wanted
        near[site] = error(outputs[site] - entry, wanted)
    assert max(near.values()) <= MOST_SUM_ERROR, near
