"""How the MNIST-C benchmark trains: a recipe of removable grafts, and full fine-tuning, by the same loop and rows.

The recipe is a filter at the input, a low-rank branch beside every layer, and batch norms that learn in training mode
and come back as removable channel affines, so that the host keeps its bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from kasmina_trainer.blueprints.registry import HostBlueprint, find_blueprint
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.seeds.discovery import find_ports
from kasmina_trainer.training import TrainingRun, TrainingSettings, as_tensors, train

RETUNE, AFFINE = "scale-bn-retune", "channel-affine"


@dataclass(frozen=True)
class Form:
    """One way to meet the fifteen kinds.

    Attributes:
        name: For tables and files.
        settings: How long and how boldly.
        rank: Of the branch beside every layer; 0: the host itself is trained as a whole.
        filters: Hidden channels of the filter at the input.
    """

    name: str
    settings: TrainingSettings
    rank: int = 0
    filters: int = 16


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        network: Answers pictures; a `SeededNetwork` where it grew, a host of its own where the host was trained.
        parameters: Values that were added or changed.
        run: Steps and seconds.
    """

    network: nn.Module
    parameters: int
    run: TrainingRun


def fit(form: Form, host: nn.Module, clean: Samples, wrong: Sequence[Samples], *, seed: int) -> Fitted:
    """Train one form on clean and wrong rows, an equal part of each batch from each; the host is left as it was."""
    sources = [as_tensors(part, "cpu") for part in (clean, *wrong)]
    learn = partial(train, sources=sources, teacher=host, settings=form.settings, seed=seed)
    if not form.rank:
        own = copy.deepcopy(host).requires_grad_(True)
        run = learn(own, list(own.parameters()), training_modules=[own])
        return Fitted(own.eval(), sum(p.numel() for p in own.parameters()), run)
    example = torch.from_numpy(np.array(clean[0][:1]))
    found = find_ports(host, example)
    layers = tuple(port.name for port in found if port.layer is not None and port.what != "norm")
    norms = tuple(name for name, module in host.named_modules() if isinstance(module, nn.BatchNorm2d))
    learner = _grown(host, form, layers, (), example, seed)
    modules = [learner.body.get_submodule(name) for name in norms]
    parameters = learner.graft_parameters()
    for module in modules:
        parameters += list(module.requires_grad_(True).parameters())
    run = learn(learner, parameters, training_modules=[*modules, *_branches(learner)])
    network = _removable(host, learner, form, layers, example, seed)
    return Fitted(network, sum(p.numel() for p in network.graft_parameters()), run)


def removed_exactly(network: SeededNetwork, host: nn.Module, rows: Samples) -> bool:
    """Whether a grown network without its grafts answers as the host does, bit for bit, and its host kept its bytes."""
    network.check_host()
    bare = copy.deepcopy(network)
    for site in tuple(bare.growths):
        bare.remove(site)
    x, _ = as_tensors(rows, "cpu")
    with torch.no_grad():
        return torch.equal(bare.eval()(x), host.eval()(x))


def _branches(network: SeededNetwork) -> list[nn.Module]:
    found = (network.site(name).branch for name in network.growths)
    return [branch for branch in found if branch is not None]


def _grown(
    host: nn.Module, form: Form, layers: tuple[str, ...], norms: tuple[str, ...], example: torch.Tensor, seed: int
) -> SeededNetwork:
    """The host with branches at birth."""
    network = attach_seeds(host, ["input", *layers, *norms], example=example)
    network.graft("input", "input-filter", config={"hidden": form.filters, "taps": 5}, seed=seed)
    for name in layers:
        network.graft(name, "conv-lora", config={"rank": form.rank}, seed=seed)
    for name in norms:
        network.graft(name, AFFINE, seed=seed)
    return network


def _removable(
    host: nn.Module, learner: SeededNetwork, form: Form, layers: tuple[str, ...], example: torch.Tensor, seed: int
) -> SeededNetwork:
    """The learner's branches, and its norms as channel affines, on the untouched host."""
    kind = find_blueprint(RETUNE)
    assert isinstance(kind, HostBlueprint)
    affines = kind.as_grafts(host, learner.host_copy())
    assert affines is not None
    network = _grown(host, form, layers, tuple(affines), example, seed)
    state = network.graft_state() | learner.graft_state()
    for site, branch in affines.items():
        state |= {f"{site}.branch.{name}": value for name, value in branch.state_dict().items()}
    network.load_graft_state(state)
    return network.eval()
