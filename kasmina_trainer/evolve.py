"""The growth loop: graft, learn, measure, judge; the host's hash stands before and after.

Grafts learn from a mix of clean and target inputs: trained on the target alone they take the host's own work away
(`target_only` does that on purpose, for the harmful example).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_edge.errors import InputError
from kasmina_trainer.acceptance import DEFAULT_LIMITS, AcceptanceLimits, Predict, measure_acceptance
from kasmina_trainer.blueprints.registry import HostBlueprint, find_blueprint
from kasmina_trainer.datasets.digits import Samples, image_digests
from kasmina_trainer.datasets.scenes import HOLDOUT_SHARE, set_aside
from kasmina_trainer.growth_report import GrowthReport, Row
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import (
    Minutes,
    Progress,
    TrainingRun,
    TrainingSettings,
    as_tensors,
    check_device,
    predict_labels,
)
from kasmina_trainer.training import train as fit_parameters

RIVAL = "scale-bn-retune"
GRAFT_SETTINGS = TrainingSettings(steps=350, learning_rate=1e-2, keep=0.5)
RETUNE_SETTINGS = TrainingSettings(steps=200, learning_rate=5e-3, keep=0.5)
DEFAULT_SITES = 2
SMALLEST_SOURCE = 20


@dataclass(frozen=True)
class GrownNetwork:
    """What `evolve` gives: a network, what grew in it, and the measurement that accepts or refuses it.

    Attributes:
        network: The host with its grafts, on the CPU; after a retune, the new host.
        grafts: As the manifest will name them, with the capture batches they learned from.
        acceptance: Verdict on held-out data.
        blueprint: What was grown.
        run: How the training went.
        rival: The scale/BN retune of the same host on the same samples, or None when it was not asked for.
    """

    network: SeededNetwork
    grafts: tuple[Graft, ...]
    acceptance: Acceptance
    blueprint: str
    run: TrainingRun
    rival: GrownNetwork | None = None

    def report(self) -> GrowthReport:
        """What grew where, its price, and the gain with its bounds; a table in a terminal and in a notebook."""
        rows = [
            _row("host", self.acceptance, before=True),
            _row(self._label(), self.acceptance, parameters=self.parameters),
        ]
        if self.rival is not None:
            rival = self.rival
            rows.append(_row(f"{rival.blueprint} instead", rival.acceptance, parameters=rival.parameters))
        return GrowthReport(tuple(rows), self.acceptance, self.run)

    @property
    def parameters(self) -> int:
        """Values that the growth added or changed."""
        return sum(graft.parameters for graft in self.grafts)

    def with_acceptance(self, acceptance: Acceptance) -> GrownNetwork:
        """The same network under another measurement, for example of the quantized file."""
        return replace(self, acceptance=acceptance)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the seed sites."""
        return self.network.sites

    def module_for_export(self) -> nn.Module:
        """As `SeededNetwork.module_for_export`."""
        return self.network.module_for_export()

    def _label(self) -> str:
        return f"+ {self.blueprint}@{','.join(g.site for g in self.grafts)}" if self.grafts else f"+ {self.blueprint}"


def evolve(
    seeds: SeededNetwork,
    *,
    train: Samples,
    target: Samples,
    holdout_clean: Samples | None = None,
    holdout_target: Samples | None = None,
    blueprint: str = "depthwise",
    sites: Sequence[str] | None = None,
    budget: Minutes | None = None,
    seed: int = 0,
    intensity: float = 1.0,
    target_only: bool = False,
    rival: bool = True,
    settings: TrainingSettings | None = None,
    limits: AcceptanceLimits = DEFAULT_LIMITS,
    capture_batches: tuple[str, ...] = (),
    predictor: Callable[[SeededNetwork], Predict] | None = None,
    profile: str | None = None,
    device: str = "cpu",
    clock: Callable[[], float] = time.monotonic,
    on_step: Progress | None = None,
) -> GrownNetwork:
    """Grow a blueprint at some sites, from clean and captured samples, and judge it on held-out ones.

    Args:
        seeds: A host with bare seed sites; it is copied, and its host must still be what it was.
        train: Clean inputs (N, C, H, W) and labels that stay in the mix.
        target: Captured and labelled inputs of where the host is weak.
        holdout_clean: Clean rows nothing has trained on. Without it a quarter of ``train`` is set aside; the host may
            know those rows, so the clean loss is then judged more severely than it is.
        holdout_target: Target rows to judge by; without it a quarter of ``target`` is set aside.
        blueprint: Name in the library.
        sites: Where to grow; the first two sites when left out. A retune takes none.
        budget: Most time for training; the report says when it cut short.
        seed: Chooses first weights, order, the split and the bootstrap.
        intensity: Blend factor the grafts are judged and shipped at.
        target_only: Leave the clean inputs out of the mix. This is how a harmful graft is made.
        rival: Train the scale/BN retune on the same samples as well, for no more steps than the graft.
        settings: How long and how boldly; the blueprint's own when left out.
        limits: What acceptance asks for.
        capture_batches: Digests of the capture batches that ``target`` came from.
        predictor: Gives the function that answers for a network; torch's own when left out.
        profile: Hardware target, for the record; it must exist.
        device: ``cpu`` or ``cuda``; the result comes back on the CPU.
        clock: Seconds that only go up.
        on_step: Called with (steps done, steps asked for), over all trainings together.

    Raises:
        InputError: Host changed; unknown blueprint, site or profile; too few rows; a held-out row that is trained on.
    """
    check_device(device)
    _check_profile(profile)
    seeds.check_host()
    if seeds.grafts:
        raise InputError(
            f"the network holds {len(seeds.grafts)} grafts already", "Remove them, or start from the host."
        )
    learn_clean, judge_clean = _held_out("train", train, holdout_clean, seed)
    learn_target, judge_target = _held_out("target", target, holdout_target, seed)
    sources = [learn_target] if target_only else [learn_clean, learn_target]
    answers = predictor or torch_predictor
    deadline = clock() + budget.seconds if budget is not None else None
    own = settings or default_settings(blueprint)
    beside = default_settings(RIVAL)
    plans = [(blueprint, own)]
    if rival and blueprint != RIVAL:
        plans.append((RIVAL, replace(beside, steps=min(beside.steps, own.steps))))
    total = sum(plan.steps for _, plan in plans)
    grown: list[GrownNetwork] = []
    passed = 0
    for name, plan in plans:

        def report_step(done: int, asked: int, passed: int = passed) -> None:
            if on_step is not None:
                on_step(passed + done, total)

        network, run = _grow(
            seeds,
            name,
            sites if name == blueprint else None,
            sources,
            plan,
            seed=seed,
            intensity=intensity,
            capture_batches=capture_batches,
            device=device,
            keeps_clean=not target_only,
            deadline=deadline,
            clock=clock,
            on_step=report_step,
        )
        seeds.check_host()
        acceptance = measure_acceptance(
            answers(seeds), answers(network), judge_clean, judge_target, limits=limits, seed=seed
        )
        if acceptance.accepted:
            network.accept()
        grafts = tuple(g.model_copy(update={"capture_batches": capture_batches}) for g in network.grafts)
        grown.append(GrownNetwork(network, grafts, acceptance, name, run))
        passed += plan.steps
    return replace(grown[0], rival=grown[1] if len(grown) > 1 else None)


def default_settings(blueprint: str) -> TrainingSettings:
    """How long and how boldly a blueprint trains when nothing else is said.

    Raises:
        InputError: No such blueprint.
    """
    return RETUNE_SETTINGS if isinstance(find_blueprint(blueprint), HostBlueprint) else GRAFT_SETTINGS


def torch_predictor(network: SeededNetwork) -> Predict:
    """Answers of the float network."""
    return lambda x: predict_labels(network, x)


def _grow(
    seeds: SeededNetwork,
    name: str,
    sites: Sequence[str] | None,
    sources: Sequence[Samples],
    settings: TrainingSettings,
    *,
    seed: int,
    intensity: float,
    capture_batches: tuple[str, ...],
    device: str,
    keeps_clean: bool,
    deadline: float | None,
    clock: Callable[[], float],
    on_step: Progress,
) -> tuple[SeededNetwork, TrainingRun]:
    """Train one blueprint; the network comes back on the CPU."""
    kind = find_blueprint(name)
    tensors = [as_tensors(source, device) for source in sources]
    teacher = seeds.host_copy().to(device) if keeps_clean else None
    started = clock()
    if isinstance(kind, HostBlueprint):
        if sites:
            raise InputError(f"blueprint {name} retunes the whole host and takes no sites, got {', '.join(sites)}")
        host = seeds.host_copy().to(device)
        parameters, modules = kind.tuned(host)
        for parameter in parameters:
            parameter.requires_grad_(True)
        run = fit_parameters(
            host,
            parameters,
            tensors,
            training_modules=modules,
            teacher=teacher,
            settings=settings,
            seed=seed,
            deadline_s=deadline,
            clock=clock,
            on_step=on_step,
        )
        record = Graft(
            blueprint=kind.name,
            blueprint_version=kind.version,
            site="host",
            intensity=1.0,
            parameters=kind.count(host),
            mergeable=True,
            capture_batches=capture_batches,
        )
        return SeededNetwork(host.cpu(), seeds.shapes, merged=(record,)), run
    network = SeededNetwork(seeds.host_copy(), seeds.shapes)
    for site in sites if sites is not None else seeds.sites[:DEFAULT_SITES]:
        network.graft(site, name, seed=seed)
    network.to(device)
    learning = network.graft_parameters()
    run = TrainingRun(steps=0, asked_steps=0, loss=0.0, seconds=clock() - started)
    if learning:
        run = fit_parameters(
            network,
            learning,
            tensors,
            training_modules=[network],
            teacher=teacher,
            settings=settings,
            seed=seed,
            deadline_s=deadline,
            clock=clock,
            on_step=on_step,
        )
    network.cpu().eval()
    for parameter in learning:
        parameter.grad = None
    for site in {graft.site for graft in network.grafts}:
        network.set_intensity(site, intensity)
    network.check_host()
    return network, run


def _held_out(name: str, samples: Samples, holdout: Samples | None, seed: int) -> tuple[Samples, Samples]:
    """Rows to learn from and rows to judge by, none of them in both."""
    x, y = np.asarray(samples[0], dtype=np.float32), np.asarray(samples[1], dtype=np.int64)
    if len(x) != len(y):
        raise InputError(f"{name}: {len(x)} inputs and {len(y)} labels")
    if holdout is None:
        aside = set_aside(x, share=HOLDOUT_SHARE, seed=seed)
        holdout = x[aside], y[aside]
        x, y = x[~aside], y[~aside]
    else:
        holdout = np.asarray(holdout[0], dtype=np.float32), np.asarray(holdout[1], dtype=np.int64)
        shared = set(image_digests(x)) & set(image_digests(holdout[0]))
        if shared:
            raise InputError(f"{name}: {len(shared)} held-out inputs are trained on as well: the gate would be a leak")
    if len(x) < SMALLEST_SOURCE:
        raise InputError(f"{name}: {len(x)} rows to learn from, at least {SMALLEST_SOURCE} are needed")
    return (x, y), holdout


def _check_profile(profile: str | None) -> None:
    if profile is not None:
        from kasmina_edge.contracts.profile import load_profile

        load_profile(profile)


def _row(name: str, acceptance: Acceptance, *, parameters: int = 0, before: bool = False) -> Row:
    return Row(
        name=name,
        clean=acceptance.clean_before if before else acceptance.clean_after,
        target=acceptance.target_before if before else acceptance.target_after,
        parameters=parameters,
        accepted=None if before else acceptance.accepted,
    )
