"""Recipes, rivals, and how each of them is trained: all on the same rows, by the same loop.

A recipe is a set of removable grafts. Batch norms learn in training mode, as in `scale-bn-retune`, together with the
branches, and come back as removable channel affines (`HostBlueprint.as_grafts`), so that the host keeps its bytes.
Rivals in the manner of the Hugging Face package PEFT, by the library's own blueprints: LoRA beside every dense layer
(Hu et al. 2021) and bottleneck adapters behind every norm (Houlsby et al. 2019; Rebuffi et al. 2018).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks._growth_tasks import Array, Ground
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import GraftBlueprint, HostBlueprint, find_blueprint
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve.arms import Arm, Candidate, price_of
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.seeds.discovery import find_ports
from kasmina_trainer.training import TrainingRun, TrainingSettings, as_tensors, train

RETUNE, AFFINE = "scale-bn-retune", "channel-affine"
WIDEST = 64


@dataclass(frozen=True)
class Method:
    """One way to meet the target.

    Attributes:
        name: For tables and files.
        settings: How long and how boldly; the data set says how far rows are moved.
        share: Most parameters, as a share of the host's; the widest part takes what is left of it.
        filters: Hidden channels of the filter at the input; 0: none.
        norms: Whether batch norms learn, the early ones first where not all fit the share.
        wide: Blueprint that takes the rest of the share: ``conv-lora``, ``adapter`` or none.
        whole: ``scale-bn-retune`` or ``full``: the host itself is trained.
    """

    name: str
    settings: TrainingSettings
    share: float = 1.0
    filters: int = 0
    norms: bool = False
    wide: str = ""
    whole: str = ""


@dataclass(frozen=True)
class Places:
    """Where things may stand in one host, in order of flow."""

    ports: Mapping[str, Port]
    layers: tuple[str, ...]
    norms: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        network: Answers rows; a `SeededNetwork` where it grew, a host of its own where the host was trained.
        parameters: Values that were added or changed.
        run: Steps, peak bytes, and seconds of processor time.
    """

    network: nn.Module
    parameters: int
    run: TrainingRun


def places_of(host: nn.Module, x: Array) -> Places:
    """Ports of a host."""
    found = find_ports(host, torch.from_numpy(np.array(x[:1])))
    return Places(
        {port.name: Port(port.name, port.shape, port.layout, port.layer, port.input_shape) for port in found},
        tuple(port.name for port in found if port.layer is not None and port.layer.groups == 1 and port.what != "norm"),
        tuple(port.name for port in found if port.what == "norm"),
        sum(p.numel() for p in host.parameters()),
    )


def plan_of(method: Method, places: Places) -> tuple[Candidate, tuple[str, ...]]:
    """Arms that a method grows, and the norms that learn beside them, within its share of the host's parameters.

    Raises:
        InputError: Not even the narrowest form fits.
    """
    left = int(method.share * places.parameters)
    arms: list[Arm] = []
    if method.filters:
        kind = _graft("input-filter")
        arms.append(Arm(kind.name, ("input",), kind.Config(hidden=method.filters)))  # type: ignore[call-arg]
        left -= price_of((arms[-1],), places.ports).parameters
    norms = []
    for name in places.norms if method.norms else ():
        price = 2 * places.ports[name].channels
        if price > left:
            break
        norms.append(name)
        left -= price
    if method.wide:
        arms.append(_widest(method.wide, places, left))
        left -= price_of((arms[-1],), places.ports).parameters
    if left < 0:
        raise InputError(f"{method.name}: {-left} parameters over {method.share:.0%} of {places.parameters}")
    return tuple(arms), tuple(norms)


def fit(method: Method, ground: Ground, *, seed: int) -> Fitted:
    """Train one method on the clean and the wrong rows of a cell; the cell's host is left as it was."""
    settings = replace(method.settings, shift=ground.task.settings.shift)
    sources = [as_tensors(ground.clean.train, "cpu"), as_tensors(ground.target.train, "cpu")]
    learn = partial(train, sources=sources, teacher=ground.host, settings=settings, seed=seed, clock=time.process_time)
    if method.whole:
        return _host_trained(method.whole, ground.host, learn)
    places = places_of(ground.host, ground.clean.train[0])
    arms, norms = plan_of(method, places)
    example = torch.from_numpy(ground.clean.train[0][:1].copy())
    learner = grown(ground.host, arms, example, seed=seed)
    parameters, modules = learner.graft_parameters(), [learner.body.get_submodule(name) for name in norms]
    for module in modules:
        parameters += [p.requires_grad_(True) for p in module.parameters()]  # type: ignore[misc]
    run = learn(learner, parameters, training_modules=modules)
    network = _removable(ground.host, learner, arms, norms, example, seed)
    return Fitted(network, sum(p.numel() for p in network.graft_parameters()), run)


def grown(host: nn.Module, arms: Candidate, example: torch.Tensor, *, seed: int) -> SeededNetwork:
    """A host with branches at birth."""
    network = attach_seeds(host, [site for arm in arms for site in arm.sites] or ["input"], example=example)
    for arm in arms:
        for site in arm.sites:
            network.graft(site, arm.blueprint, config=arm.config, seed=seed)
    return network


@torch.no_grad()
def right(network: nn.Module, samples: Samples) -> Array:
    """Which rows are answered rightly.  # (N,) bool"""
    x, y = as_tensors(samples, "cpu")
    network.eval()
    found = [network(x[i : i + 500]).argmax(1) == y[i : i + 500] for i in range(0, len(x), 500)]
    return torch.cat(found).numpy()


def removed_exactly(fitted: Fitted, ground: Ground) -> bool:
    """Whether the answers of a grown network without its grafts are the host's, bit for bit; its host's bytes as well.

    Raises:
        InputError: The host's bytes changed.
    """
    network = fitted.network
    assert isinstance(network, SeededNetwork)
    network.check_host()
    bare = copy.deepcopy(network)
    for site in tuple(bare.growths):
        bare.remove(site)
    x, _ = as_tensors((ground.target.test[0][:256], ground.target.test[1][:256]), "cpu")
    with torch.no_grad():
        return torch.equal(bare.eval()(x), ground.host.eval()(x))


def _removable(
    host: nn.Module, learner: SeededNetwork, arms: Candidate, norms: tuple[str, ...], example: torch.Tensor, seed: int
) -> SeededNetwork:
    """The learner's branches, and its norms as channel affines, on the untouched host."""
    if not norms:
        return learner
    kind = find_blueprint(RETUNE)
    assert isinstance(kind, HostBlueprint)
    affines = kind.as_grafts(host, learner.host_copy())
    assert affines is not None
    network = grown(host, (*arms, *((Arm(AFFINE, tuple(affines)),) if affines else ())), example, seed=seed)
    state = network.graft_state() | learner.graft_state()
    for site, branch in affines.items():
        state |= {f"{site}.branch.{name}": value for name, value in branch.state_dict().items()}
    network.load_graft_state(state)
    return network


def _host_trained(whole: str, host: nn.Module, learn: partial[TrainingRun]) -> Fitted:
    own = copy.deepcopy(host)
    own.requires_grad_(False)
    if whole == "full":
        parameters, modules = list(own.parameters()), [own]
        count = sum(p.numel() for p in parameters)
    else:
        kind = find_blueprint(whole)
        assert isinstance(kind, HostBlueprint)
        parameters, modules = kind.tuned(own)
        count = kind.count(own)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return Fitted(own, count, learn(own, parameters, training_modules=modules))


def _widest(blueprint: str, places: Places, most: int) -> Arm:
    """A blueprint at every place that it is for, as wide as the parameters allow."""
    kind = _graft(blueprint)
    field = "rank" if blueprint == "conv-lora" else "bottleneck"
    sites = places.layers if blueprint == "conv-lora" else places.norms
    best: Arm | None = None
    for width in range(1, WIDEST + 1):
        arm = Arm(blueprint, sites, kind.Config(**{field: width}))
        if price_of((arm,), places.ports).parameters > most:
            break
        best = arm
    if best is None:
        raise InputError(f"{blueprint} at {len(sites)} places does not fit into {most} parameters")
    return best


def _graft(name: str) -> GraftBlueprint:
    kind = find_blueprint(name)
    assert isinstance(kind, GraftBlueprint)
    return kind
