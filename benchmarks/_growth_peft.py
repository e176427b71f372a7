"""Recipes, rivals, and how each of them is trained: by the code that `evolve` trains with, on the same rows.

A recipe is one of `evolve`'s own, made to fit a share of the host's parameters. Rivals are made as the Hugging Face
package PEFT does, of the library's own blueprints: LoRA beside every dense layer (Hu et al. 2021), or bottleneck
adapters behind every norm (Houlsby et al. 2019; Rebuffi et al. 2018). A BN retune and full fine-tuning make a new host.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks._growth_tasks import Array, Ground
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import GraftBlueprint, HostBlueprint, find_blueprint
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve.arms import RETUNE, Arm, Candidate, price_of
from kasmina_trainer.evolve.budget import Allowance, Deadline
from kasmina_trainer.evolve.growing import FULL, Plan, grow_one
from kasmina_trainer.evolve.growing import Ground as Rows
from kasmina_trainer.evolve.recipes import SWITCHED, named_recipe, norm_names, sites_for, within
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.seeds.discovery import find_ports
from kasmina_trainer.training import TrainingRun, TrainingSettings, as_tensors

WIDEST = 64


@dataclass(frozen=True)
class Method:
    """One way to meet the target.

    Attributes:
        name: For tables and files.
        settings: How long and how boldly; the data set says how far rows are moved.
        share: Most values, learned and measured, as a share of the host's parameters.
        recipe: One of `evolve`'s, narrowed until it fits the share.
        wide: Blueprint at every place that it is for, as wide as the share allows: ``conv-lora`` or ``adapter``.
        whole: ``scale-bn-retune`` or ``full-fine-tune``: the host itself is trained.
    """

    name: str
    settings: TrainingSettings
    share: float = 1.0
    recipe: str = ""
    wide: str = ""
    whole: str = ""


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        network: Answers rows; without grafts where the host was trained.
        parameters: Values that were added or changed, measured constants among them.
        run: Steps, peak bytes, and seconds of processor time.
    """

    network: SeededNetwork
    parameters: int
    run: TrainingRun


def candidate_of(method: Method, host: nn.Module, example: torch.Tensor) -> tuple[Candidate, tuple[str, ...]]:
    """What a method grows within its share of the host's parameters, and the sites that it needs.

    Raises:
        InputError: Not even the narrowest form fits.
    """
    most = int(method.share * sum(p.numel() for p in host.parameters()))
    if method.wide:
        found = {port.name: port for port in find_ports(host, example)}
        ports = {name: Port(p.name, p.shape, p.layout, p.layer, p.input_shape) for name, p in found.items()}
        sites = tuple(
            name
            for name, port in found.items()
            if (port.what == "norm" if method.wide == "adapter" else _is_dense(port) and port.what != "norm")
        )
        return (_widest(method.wide, sites, ports, most),), sites
    sites = sites_for(method.recipe, host, example)
    ports = attach_seeds(host, sites, example=example).ports
    whole = named_recipe(method.recipe, ports, norm_names(host))
    for left in range(most, 0, -1):
        candidate = within(whole, ports, Allowance(parameters=left))
        if _size(candidate, ports) <= most:
            return candidate, sites
        if price_of(candidate, ports).parameters > left:
            break
    raise InputError(
        f"{method.name}: {_size(candidate, ports)} parameters, {most} are {method.share:.1%} of the host's"
    )


def fit(method: Method, ground: Ground, *, seed: int) -> Fitted:
    """Train one method on the clean and the wrong rows of a cell; the cell's host is left as it was."""
    example = torch.from_numpy(ground.clean.train[0][:1].copy())
    candidate, sites = ((), ("input",)) if method.whole else candidate_of(method, ground.host, example)
    rows = Rows(
        seeds=attach_seeds(ground.host, sites, example=example),
        sources=[ground.clean.train, ground.target.train],
        seed=seed,
        intensity=1.0,
        capture_batches=(),
        device="cpu",
        keeps_clean=True,
        deadline=Deadline.after(None, time.process_time),
    )
    settings = replace(method.settings, shift=ground.task.settings.shift)
    network, run = grow_one(rows, Plan(method.name, settings, candidate, host=method.whole))
    if method.whole:
        return Fitted(network, _changed(method.whole, ground.host), run)
    return Fitted(network, _size(candidate, rows.seeds.ports), run)


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
    fitted.network.check_host()
    bare = copy.deepcopy(fitted.network)
    for site in tuple(bare.growths):
        bare.remove(site)
    x, _ = as_tensors((ground.target.test[0][:256], ground.target.test[1][:256]), "cpu")
    with torch.no_grad():
        return torch.equal(bare.eval()(x), ground.host.eval()(x))


def _size(candidate: Candidate, ports: Mapping[str, Port]) -> int:
    """Values that learn, and the constants that a switched branch measures: one a channel, and one."""
    measured = sum(ports[site].channels + 1 for arm in candidate if arm.blueprint == SWITCHED for site in arm.sites)
    return price_of(candidate, ports).parameters + measured


def _changed(whole: str, host: nn.Module) -> int:
    if whole == FULL:
        return sum(p.numel() for p in host.parameters())
    kind = find_blueprint(RETUNE)
    assert isinstance(kind, HostBlueprint)
    return kind.count(host)


def _is_dense(port: Port) -> bool:
    return port.layer is not None and port.layer.groups == 1


def _widest(blueprint: str, sites: tuple[str, ...], ports: Mapping[str, Port], most: int) -> Arm:
    """A blueprint at every place that it is for, as wide as the parameters allow."""
    kind = find_blueprint(blueprint)
    assert isinstance(kind, GraftBlueprint)
    field = "rank" if blueprint == "conv-lora" else "bottleneck"
    best: Arm | None = None
    for width in range(1, WIDEST + 1):
        arm = Arm(blueprint, sites, kind.Config.parse({field: width}))
        if price_of((arm,), ports).parameters > most:
            break
        best = arm
    if best is None:
        raise InputError(f"{blueprint} at {len(sites)} places does not fit into {most} parameters")
    return best
