"""The growth loop: graft, learn, measure, judge; the host's hash stands before and after.

Grafts learn from a mix of clean and target inputs: trained on the target alone they take the host's own work away
(`target_only` does that on purpose, for the harmful example).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_trainer.acceptance import DEFAULT_LIMITS, AcceptanceLimits, Ints, Predict
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve.arms import RETUNE, Arm, Candidate, name_of
from kasmina_trainer.evolve.asking import (
    AUTO,
    Choose,
    asked_plan,
    check_groups,
    check_run_seed,
    check_settings,
    chosen,
    noted,
)
from kasmina_trainer.evolve.budget import Allowance, Budget, Deadline
from kasmina_trainer.evolve.events import Event, Listener, together
from kasmina_trainer.evolve.growing import GRAFT_SETTINGS, Ground, Plan, grow_one, ports_of
from kasmina_trainer.evolve.grown import GrownNetwork, Measure
from kasmina_trainer.evolve.intensities import Intensities, check_intensity
from kasmina_trainer.evolve.journal import open_journal
from kasmina_trainer.evolve.judging import Judge
from kasmina_trainer.evolve.rivals import rival_plans
from kasmina_trainer.evolve.samples import border_note, check_shapes, count_classes, held_out
from kasmina_trainer.evolve.selecting import RACE_SHARE, Race, race_rows
from kasmina_trainer.evolve.sensing import sensed
from kasmina_trainer.evolve.showing import shown
from kasmina_trainer.evolve.telling import Hear, Teller, written
from kasmina_trainer.evolve.tensorboard import scalars
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import Progress, TrainingSettings, check_device

RIVAL = RETUNE
_T = TypeVar("_T")


def evolve(
    seeds: SeededNetwork,
    *,
    train: Samples,
    target: Samples,
    holdout_clean: Samples | None = None,
    holdout_target: Samples | None = None,
    blueprint: str | Sequence[Arm | Candidate] = "depthwise",
    sites: Sequence[str] | None = None,
    budget: Budget | Sequence[Budget] | None = None,
    seed: int = 0,
    intensity: Intensities = 1.0,
    target_only: bool = False,
    rival: bool | Sequence[str] = True,
    settings: TrainingSettings | None = None,
    limits: AcceptanceLimits = DEFAULT_LIMITS,
    capture_batches: tuple[str, ...] = (),
    predictor: Callable[[SeededNetwork], Predict] | None = None,
    measure: Measure | None = None,
    clusters: tuple[Ints | None, Ints | None] = (None, None),
    profile: str | None = None,
    device: str = "cpu",
    choose: Choose | None = None,
    folder: Path | None = None,
    resume: bool = False,
    replace_run: bool = False,
    tensorboard: Path | None = None,
    telemetry: Path | Hear | None = None,
    clock: Callable[[], float] = time.monotonic,
    progress: bool = True,
    on_step: Progress | None = None,
    on_event: Listener | None = None,
) -> GrownNetwork:
    """Grow at some sites, from clean and captured samples, and judge it on held-out ones.

    Args:
        seeds: A host with bare seed sites; it is copied, and its host must still be what it was.
        train: Clean inputs (N, ...) and labels that stay in the mix.
        target: Captured and labelled inputs of where the host is weak.
        holdout_clean: Clean rows nothing has trained on. Without it a quarter of ``train`` is set aside; the host may
            know those rows, so the clean loss is then judged more severely than it is.
        holdout_target: Target rows to judge by; without it a quarter of ``target`` is set aside.
        blueprint: Name in the library or of a recipe (`RECIPES`); ``"auto"`` for a race of everything that fits; or
            arms (or tuples of arms that grow together) to race, of which one alone grows without a race.
        sites: Where to grow; the first two sites when left out, and all of them in a race. A retune takes none.
        budget: Most time for training (`Minutes`; the report says when it cut short), most multiply-accumulates a frame
            (`Macs`), most values (`Parameters`); one of them or several.
        seed: Chooses first weights, order, the split and the bootstrap.
        intensity: Blend factor the grafts are judged and shipped at, or levels by blueprint.
        target_only: Leave the clean inputs out of the mix. This is how a harmful graft is made.
        rival: Train the scale/BN retune and full fine-tuning on the same samples as well, for no more steps than the
            graft; or the names of those to train (`RIVALS`).
        settings: How long and how boldly; the blueprint's own when left out.
        limits: What acceptance asks for.
        capture_batches: Digests of the capture batches that ``target`` came from.
        predictor: Gives the function that answers for a network; torch's own when left out.
        measure: Instead of ``predictor``: gives that function and the model file, so that latency, memory and energy on
            ``profile`` are judged as well.
        clusters: Group (patient, scene, recording) of each row of ``holdout_clean`` and of ``holdout_target``.
        profile: Hardware target; it must exist.
        device: ``cpu`` or ``cuda``; the result comes back on the CPU.
        choose: Takes the arms of a race, what the seed sites measure on the target, and what may be spent; gives the
            arms that race, most promising first.
        folder: Where the run is kept, so that it can go on after a kill.
        resume: Go on with the run in ``folder``.
        replace_run: Begin anew where one lies in ``folder``; only when everything else was found good.
        tensorboard: Folder for an event file of scalars.
        telemetry: File to which a `TelemetryRecord` of the seed sites is added, one JSON line each, every
            `RECORD_EVERY` steps while grafts learn and at the end of every training; or a function that gets them.
        clock: Seconds that only go up.
        progress: Show a bar and what was measured so far where stderr is a terminal and nobody listens by ``on_step``;
            it is gone at the end. False: nothing.
        on_step: Called with (steps done, steps asked for), over all trainings together.
        on_event: Hears what happens as it happens.

    Raises:
        InputError: Host changed; unknown blueprint, site or profile; a price over the budget; rows that are too few,
            unlabelled, of one class, or not finite; a held-out row that is trained on; a diverged training; a run
            folder of another host or plan.
    """
    sites, rival = _listed(sites), _listed(rival)
    check_run_seed(seed)
    check_device(device)
    _check_profile(profile)
    seeds.check_host()
    if seeds.grafts:
        raise InputError(
            f"the network holds {len(seeds.grafts)} grafts already", "Remove them, or start from the host."
        )
    classes = count_classes(seeds, train[0]) if len(train[0]) else None
    learn_clean, judge_clean = held_out("train", train, holdout_clean, seed, classes, least=limits.minimum_samples)
    learn_target, judge_target = held_out("target", target, holdout_target, seed, classes, least=limits.minimum_samples)
    check_shapes(
        {"train": learn_clean, "target": learn_target, "held-out train": judge_clean, "held-out target": judge_target}
    )
    check_groups(clusters, holdout_clean, holdout_target)
    check_intensity(intensity)
    allowance, ports = Allowance.of(budget), ports_of(seeds)
    plan, candidates = asked_plan(blueprint, sites, settings, seeds, allowance)
    own = plan.settings if plan is not None else settings or GRAFT_SETTINGS
    check_settings(own)
    asked = plan or candidates
    looked = None
    if plan is None:
        looked = race_rows(learn_clean, learn_target, seed, target_only=target_only)
        candidates = chosen(choose, candidates, lambda: sensed(seeds, learn_target[0]), ports, allowance)
    beside, notes = rival_plans(seeds, rival and blueprint != RIVAL and rival, own)
    notes += border_note("train", train, learn_clean, judge_clean, holdout_clean)
    notes += border_note("target", target, learn_target, judge_target, holdout_target)
    judge = Judge(
        seeds, judge_clean, judge_target, limits, seed,
        clusters=clusters, predictor=predictor, measure=measure, profile=profile,
    )  # fmt: skip
    judge.check()
    with ExitStack() as stack:
        journal = None
        if folder is not None:
            rows = {"clean": learn_clean, "target": learn_target, "hold": judge_clean, "hold-target": judge_target}
            plain: dict[str, Any] = {"seed": seed, "target_only": target_only}
            if telemetry is not None:  # sites that are looked at name their host's tensors otherwise
                plain["telemetry"] = True
            told = noted(seeds, rows, asked, own, allowance, intensity, **plain)
            journal = stack.enter_context(open_journal(folder, told, resume=resume, replace=replace_run))
        on_step, show = stack.enter_context(shown(blueprint, on_step, wanted=progress))
        tell = together(
            [show, on_event, stack.enter_context(scalars(tensorboard)) if tensorboard is not None else None]
        )
        sources = [learn_target] if target_only else [learn_clean, learn_target]
        teller = None
        if telemetry is not None:
            hear = telemetry if callable(telemetry) else stack.enter_context(written(telemetry))
            teller = Teller(hear, sources, allowance, seed, hardware=HardwareReader())
        ground = Ground(
            seeds=seeds,
            sources=sources,
            seed=seed,
            intensity=intensity,
            capture_batches=capture_batches,
            device=device,
            keeps_clean=not target_only,
            deadline=Deadline.after(allowance.seconds, clock, spent_s=journal.spent_s if journal else 0.0),
            journal=journal,
            telemetry=teller,
        )
        track = _Track(on_step)
        race = None
        if looked is not None:
            racing = replace(ground, sources=looked.learn, part="race", deadline=ground.deadline.part(RACE_SHARE))
            race = Race(racing, looked, own, ports, allowance, tell=tell, track=track.more)
            tell(Event("phase", "race", values={"arms": len(candidates)}))
            best = race.winner(candidates, combine=blueprint == AUTO)
            plan = Plan(name_of(best), own, best)
        assert plan is not None
        grown = [_grown(ground, one, judge, on_one, tell) for one, on_one in track.over([plan, *beside])]
    gains = judge.gains(grown[0].network)
    retune = next((g for g in grown[1:] if g.blueprint == RETUNE), None)
    trials = tuple(race.trials) if race is not None else ()
    return replace(grown[0], rival=retune, rivals=tuple(grown[1:]), trials=trials, gains=gains, notes=tuple(notes))


def _grown(ground: Ground, plan: Plan, judge: Judge, on_step: Progress, tell: Listener) -> GrownNetwork:
    """One plan trained and judged."""
    tell(Event("phase", plan.name))
    network, run = grow_one(
        ground, plan, on_step=on_step, watch=lambda step, loss: tell(Event("step", plan.name, step, {"loss": loss}))
    )
    ground.seeds.check_host()
    acceptance, costs = judge(network)
    if acceptance.accepted:
        network.accept(acceptance=acceptance)
    grafts = tuple(g.model_copy(update={"capture_batches": ground.capture_batches}) for g in network.grafts)
    figures = {
        "target": acceptance.target_after,
        "clean": acceptance.clean_after,
        "gain_low": acceptance.gain_low,
        "clean_loss_high": acceptance.clean_loss_high,
        "parameters": sum(graft.parameters for graft in grafts),
    }
    tell(Event("verdict", plan.name, run.steps, figures))
    return GrownNetwork(network, grafts, acceptance, plan.label, run, costs=costs)


@dataclass
class _Track:
    """Steps over all trainings together."""

    on_step: Progress | None
    total: int = 0

    def more(self, steps: int) -> Progress:
        """A progress function for so many more steps."""
        passed = self.total
        self.total += steps

        def report(done: int, asked: int) -> None:
            if self.on_step is not None:
                self.on_step(passed + done, self.total)

        return report

    def over(self, plans: Sequence[Plan]) -> list[tuple[Plan, Progress]]:
        """Plans with their progress functions; all of them count from the beginning."""
        return [(plan, self.more(plan.settings.steps)) for plan in plans]


def _listed(given: _T) -> _T | tuple[str, ...]:
    """One name is a list of one."""
    return (given,) if isinstance(given, str) else given


def _check_profile(profile: str | None) -> None:
    if profile is not None:
        from kasmina_edge.contracts.profile import load_profile

        load_profile(profile)
