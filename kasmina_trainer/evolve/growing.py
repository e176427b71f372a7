"""One growth trained from birth: grafts at sites, or a retune of the host; the host's hash stands before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.contracts.manifest import Graft
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import HostBlueprint, find_blueprint
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve.arms import RETUNE, SHIPPED_AS, Arm, Candidate, name_of
from kasmina_trainer.evolve.budget import Deadline
from kasmina_trainer.evolve.intensities import Intensities, levels_of
from kasmina_trainer.evolve.journal import Journal
from kasmina_trainer.evolve.meeting import begin, meet, settle
from kasmina_trainer.evolve.opening import Lesson, opened
from kasmina_trainer.evolve.recipes import RECIPE_SETTINGS, RECIPES, SWITCHED
from kasmina_trainer.evolve.telling import Teller
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.seeds.integrity import GradientGuard
from kasmina_trainer.training import (
    Progress,
    Thinned,
    TrainingRun,
    TrainingSettings,
    Watch,
    as_tensors,
    channels_last,
    one_core,
)
from kasmina_trainer.training import train as fit_parameters

GRAFT_SETTINGS = TrainingSettings(steps=350, learning_rate=1e-2, keep=0.5)
RETUNE_SETTINGS = TrainingSettings(steps=200, learning_rate=5e-3, keep=0.5)
FULL_SETTINGS = TrainingSettings(steps=350, learning_rate=1e-2, keep=0.5)
FULL = "full-fine-tune"
DEFAULT_SITES = 2
CHECKPOINT_EVERY = 50  # steps
GUARD_EVERY = 25


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long.

    Attributes:
        name: For reports and progress.
        settings: How long and how boldly.
        candidate: Grafts to grow; () where the host itself is trained.
        host: A host blueprint, or `FULL`: every parameter of the host.
        label: What reports call it.
    """

    name: str
    settings: TrainingSettings
    candidate: Candidate = ()
    host: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        own = self.host or "+".join(dict.fromkeys(arm.blueprint for arm in self.candidate))
        object.__setattr__(self, "label", self.label or own)

    def key(self, part: str) -> str:
        """Digest of what is trained in one part of a run, for the journal."""
        arms = [
            [a.blueprint, find_blueprint(a.blueprint).version, list(a.sites), a.config.digest() if a.config else ""]
            for a in self.candidate
        ]
        whole = {"part": part, "host": self.host, "arms": arms, "settings": asdict(self.settings)}
        return hashlib.sha256(canonical_bytes(whole)).hexdigest()[:24]


@dataclass(frozen=True)
class Ground:
    """What every training of one run stands on.

    Attributes:
        seeds: The bare host; copied for each growth.
        sources: Rows to learn from; clean ones first unless ``keeps_clean`` is off.
        seed: Of first weights and order.
        intensity: Blend factor of all grafts, or levels by blueprint.
        capture_batches: Where the target came from.
        device: Where torch computes.
        keeps_clean: The host's own answers to the first source are kept.
        deadline: When training ends.
        part: ``whole``, or the name of a part of the rows; one key of the journal.
        journal: Remembers what was trained; None: nothing is written.
        telemetry: Looks at seed sites while grafts learn; None: nobody does.
    """

    seeds: SeededNetwork
    sources: Sequence[Samples]
    seed: int
    intensity: Intensities
    capture_batches: tuple[str, ...]
    device: str
    keeps_clean: bool
    deadline: Deadline
    part: str = "whole"
    journal: Journal | None = None
    telemetry: Teller | None = None


def default_settings(blueprint: str) -> TrainingSettings:
    """How long and how boldly a blueprint, or a recipe, trains when nothing else is said.

    Raises:
        InputError: No such blueprint.
    """
    if blueprint in RECIPES:
        return RECIPE_SETTINGS.get(blueprint, GRAFT_SETTINGS)
    if blueprint == FULL:
        return FULL_SETTINGS
    return RETUNE_SETTINGS if isinstance(find_blueprint(blueprint), HostBlueprint) else GRAFT_SETTINGS


def bare(seeds: SeededNetwork, host: nn.Module | None = None, merged: tuple[Graft, ...] = ()) -> SeededNetwork:
    """Another network with the same places: of the same host, or of one with the same modules."""
    return seeds.fresh(host, merged=merged)


def ports_of(seeds: SeededNetwork) -> dict[str, Port]:
    """Sites by name, in order of flow."""
    return dict(seeds.ports)


def grow_one(
    ground: Ground, plan: Plan, *, on_step: Progress | None = None, watch: Watch | None = None
) -> tuple[SeededNetwork, TrainingRun]:
    """Train one plan, or take what the journal has of it; the network comes back on the CPU."""
    if plan.host:
        return _retune(ground, plan, on_step, watch)
    network, rates, gains = _planted(ground, plan)
    norms = {site for arm in plan.candidate if arm.blueprint == RETUNE for site in arm.sites}
    modules: list[nn.Module] = [network]
    begun_s = ground.deadline.clock()
    lesson = _met(ground, plan, network)
    learning = [p for p in network.graft_parameters() if p.requires_grad]
    groups = [(rate, network.graft_parameters(site)) for site, rate in rates.items()]
    met_s = ground.deadline.clock() - begun_s
    for site in sorted(norms):
        norm = network.body.get_submodule(site)
        learning += list(norm.requires_grad_(True).parameters())
        modules.append(norm)
    run = TrainingRun(steps=0, asked_steps=0, loss=0.0, seconds=0.0)
    if learning:
        guard = nullcontext() if norms else GradientGuard(network, every=GUARD_EVERY)
        state = partial(_whole_state, network) if norms else network.graft_state
        looked: AbstractContextManager[Watch | None] = nullcontext(watch)
        if ground.telemetry is not None and not _is_done(ground, plan):
            looked = ground.telemetry.over(network, plan.name, watch)
        with guard, looked as watch:
            hooks = {"groups": groups, "on_step": on_step, "watch": watch}
            run = _trained(ground, plan, network, learning, modules, state, lesson, **hooks)
    network.cpu().eval()
    for parameter in learning:
        parameter.grad = None
    settle(network)
    if norms:
        network = _shipped(ground, plan, network, norms)
    for site, gain in gains.items():
        network.set_intensity(site, gain)
    network.check_host()
    return network, replace(run, seconds=run.seconds + met_s)


def _met(ground: Ground, plan: Plan, network: SeededNetwork) -> Lesson:
    """Show both kinds of rows to branches that tell them apart; what is left to learn from then."""
    sources = [as_tensors(source, "cpu") for source in ground.sources]
    whole = Lesson(sources)
    if not ground.keeps_clean or len(sources) != 2:
        return whole
    shift = plan.settings.shift
    with channels_last(network):
        if not meet(network, sources[0][0], sources[1][0], seed=ground.seed, shift=shift):
            return whole
        if any(arm.blueprint != SWITCHED for arm in plan.candidate):
            begin(network)
            return whole
        left = opened(network, sources[0], seed=ground.seed, shift=shift)
    begin(network)
    if not left.share:
        return Lesson(sources[1:], keeps_clean=False)
    return Lesson([(left.x, left.y), sources[1]], Thinned(left.share))


def _whole_state(network: SeededNetwork) -> dict[str, torch.Tensor]:
    """Host and grafts under names that stay the same whoever looks at the sites."""
    return {**{f"host.{name}": value for name, value in network.host_state().items()}, **network.graft_state()}


def _is_done(ground: Ground, plan: Plan) -> bool:
    return ground.journal is not None and ground.journal.has(plan.key(ground.part))


def _planted(ground: Ground, plan: Plan) -> tuple[SeededNetwork, dict[str, float], dict[str, float]]:
    """The grafts of a plan at birth, factors of the learning rate that are not 1, and blend factors, by site."""
    network = bare(ground.seeds)
    rates: dict[str, float] = {}
    gains: dict[str, float] = {}
    for arm in plan.candidate:
        rate, config, gain = levels_of(ground.intensity, arm)
        gains |= dict.fromkeys(arm.sites, gain)
        for site in arm.sites if arm.blueprint != RETUNE else ():
            network.graft(site, arm.blueprint, seed=ground.seed, config=config)
            if rate != 1.0:
                rates[site] = rate
    return network, rates, gains


def _shipped(ground: Ground, plan: Plan, learned: SeededNetwork, norms: set[str]) -> SeededNetwork:
    """The same grafts on the untouched host, and what its norms learned as removable branches behind them.

    Raises:
        InputError: A norm's scale is zero, which hides what it had learned before.
    """
    kind = find_blueprint(RETUNE)
    assert isinstance(kind, HostBlueprint)
    branches = kind.as_grafts(ground.seeds.host_copy(), learned.host_copy())
    if branches is None:
        raise InputError(
            f"{plan.name}: a batch norm's scale is 0, so that its retune cannot be shipped as a removable branch",
            f"Leave {RETUNE} out, or grow it alone as a new host.",
        )
    network, _, _ = _planted(ground, plan)
    network.load_graft_state(learned.graft_state())
    for site in (site for site in network.sites if site in norms):
        network.graft(site, SHIPPED_AS[RETUNE], seed=ground.seed)
        branch = network.site(site).branch
        if site in branches and branch is not None:
            branch.load_state_dict(branches[site].state_dict())
    for parameter in network.graft_parameters():
        parameter.grad = None
    return network.eval()


def likelihood(network: nn.Module, samples: Samples, device: str = "cpu", *, batch: int = 256) -> float:
    """Mean probability that a network gives to the right class: a finer measure than accuracy on few rows."""
    x, y = as_tensors(samples, device)
    network.to(device).eval()
    with torch.no_grad(), one_core():
        parts = [
            network(x[i : i + batch]).softmax(1).gather(1, y[i : i + batch, None]).sum()
            for i in range(0, len(x), batch)
        ]
    network.cpu()
    return float(torch.stack(parts).sum()) / max(1, len(x))


def _retune(
    ground: Ground, plan: Plan, on_step: Progress | None, watch: Watch | None
) -> tuple[SeededNetwork, TrainingRun]:
    """The host's own parameters, those of a blueprint or all."""
    host = ground.seeds.host_copy().to(ground.device)
    if plan.host == FULL:
        parameters, modules, version = list(host.parameters()), [host], 1
        count = sum(p.numel() for p in parameters)
    else:
        kind = find_blueprint(plan.host)
        assert isinstance(kind, HostBlueprint)
        parameters, modules = kind.tuned(host)
        version, count = kind.version, kind.count(host)
    for parameter in parameters:
        parameter.requires_grad_(True)
    run = _trained(ground, plan, host, parameters, modules, host.state_dict, on_step=on_step, watch=watch)
    record = Graft(
        blueprint=plan.host,
        blueprint_version=version,
        site="host",
        intensity=1.0,
        parameters=count,
        mergeable=True,
        capture_batches=ground.capture_batches,
    )
    return bare(ground.seeds, host.cpu(), (record,)), run


def _trained(
    ground: Ground,
    plan: Plan,
    network: nn.Module,
    parameters: list[nn.Parameter],
    modules: list[nn.Module],
    state: Callable[[], Mapping[str, torch.Tensor]],
    lesson: Lesson | None = None,
    **hooks: Any,
) -> TrainingRun:
    """Fit the parameters; ``state`` gives the network's own tensors that the journal keeps of the result."""
    key, journal = plan.key(ground.part), ground.journal
    found = journal.finished(key) if journal is not None else None
    if journal is not None and found is not None:
        run, arrays = found
        own = state()
        if any(name not in arrays or arrays[name].shape != tuple(value.shape) for name, value in own.items()):
            raise InputError(
                f"{journal.result_file(key)}: {len(arrays)} tensors, other ones than the {len(own)} of {plan.name}",
                "Remove it; that part is trained again.",
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(torch.from_numpy(np.array(arrays[name])))
        if hooks.get("on_step") is not None:
            hooks["on_step"](plan.settings.steps, plan.settings.steps)
        return run
    network.to(ground.device)
    lesson = lesson or Lesson([as_tensors(source, "cpu") for source in ground.sources])
    keeps = ground.keeps_clean and lesson.keeps_clean
    teacher = ground.seeds.host_copy().to(ground.device) if keeps else None
    begun = journal.unfinished(key, before=plan.settings.steps) if journal is not None else None
    checkpoint = partial(journal.checkpoint, key) if journal is not None else None
    run = fit_parameters(
        network,
        parameters,
        [(x.to(ground.device), y.to(ground.device)) for x, y in lesson.sources],
        training_modules=modules,
        teacher=teacher,
        thinned=lesson.thinned,
        settings=plan.settings,
        seed=ground.seed,
        deadline_s=ground.deadline.at_s,
        clock=ground.deadline.clock,
        state=begun,
        on_checkpoint=checkpoint,
        checkpoint_every=CHECKPOINT_EVERY,
        **hooks,
    )
    if journal is not None:
        journal.finish(key, run, {name: value.detach().cpu().numpy() for name, value in state().items()})
    return run


def plan_for(blueprint: str, sites: Sequence[str], settings: TrainingSettings) -> Plan:
    """A blueprint by name at sites, or a retune of the host.

    Raises:
        InputError: No such blueprint, or a retune that was given sites.
    """
    if isinstance(find_blueprint(blueprint), HostBlueprint):
        if sites:
            raise InputError(f"blueprint {blueprint} retunes the whole host and takes no sites, got {', '.join(sites)}")
        return Plan(blueprint, settings, host=blueprint)
    candidate = (Arm(blueprint, tuple(sites)),)
    return Plan(name_of(candidate), settings, candidate)
