"""``optimize``: a task, a target and goals in; a smoke run, a search, an outcome out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.hardware_simulator import HardwareContext, read_workload
from kasmina_edge.storage import make_private_folder, write_durable
from kasmina_trainer.export.parity import float_logits
from kasmina_trainer.optimize.building import Builder, Prune, Task
from kasmina_trainer.optimize.candidates import Candidate, CandidateStore, versions
from kasmina_trainer.optimize.choosing import Goals, paired_loss
from kasmina_trainer.optimize.outcome import MODEL, Outcome
from kasmina_trainer.optimize.recipes import Offer, Recipe, RecipeFile, offers
from kasmina_trainer.optimize.search import Cost, Identity, Price, Said, Search
from kasmina_trainer.optimize.widths import mixed_offers
from kasmina_trainer.quantization.config import QuantizeConfig

CONVERSION_S = 6.0
"""Seconds that converting, quantizing and asking a small network take on one core."""
_SMOKE_STEPS = 2
_STEP_COST = 6.0


@dataclass(frozen=True)
class Settings:
    """How a search is run.

    Attributes:
        qat_steps: Optimiser steps of recipes that train.
        headroom: Share by which activation ranges are widened; 0 for a network that nothing will grow on.
        seed: Of the training.
        minutes: Most time; None: no limit.
        smoke: Run the whole path on a few rows first.
        pruning: Shares of channels to offer; used where a pruner is passed in.
    """

    qat_steps: int = 300
    headroom: float = 0.0
    seed: int = 0
    minutes: float | None = None
    smoke: bool = True
    pruning: Sequence[float] = (0.25, 0.5)


@dataclass(frozen=True)
class Planned:
    """A recipe of the plan: why it is there, what it will cost, and whether it is there already."""

    offer: Offer
    seconds: float
    kept: bool


class Optimizing:
    """One search over recipes for a network on a target.

    Args:
        task: Network and data.
        name: Of the network, for people.
        profile: The target.
        goals: What is asked for.
        settings: How.
        store: Where candidates are kept.
        prune: Takes channels away; None: no recipe prunes.
        said: Told every step.
        clock: Seconds that only go up.
    """

    def __init__(
        self,
        task: Task,
        name: str,
        profile: HardwareProfile,
        goals: Goals,
        *,
        settings: Settings | None = None,
        store: CandidateStore | None = None,
        prune: Prune | None = None,
        said: Said = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task, self.name, self.profile, self.goals = task, name, profile, goals
        self.settings = settings or Settings()
        self._said, self._clock, self._prune = said, clock, prune
        self._builder = Builder(task, prune=prune, clock=clock)
        self.identity = Identity(task.model_digest(), task.data_digest(), versions())
        s = self.settings
        self.offers = offers(
            profile, qat_steps=s.qat_steps, seed=s.seed, headroom=s.headroom, pruning=s.pruning if prune else ()
        )
        self._step_s: float | None = None
        self._search = Search(
            self._builder.build, price_on(profile), self._builder.float_right(), self.identity, goals, store,
            more=self._more, seconds=None if s.minutes is None else 60 * s.minutes, guess=self.guess, said=said,
            clock=clock,
        )  # fmt: skip

    def plan(self) -> tuple[Planned, ...]:
        """The recipes in the order in which they would be tried; choices of mixed precision come with measurement."""
        return tuple(
            Planned(offer, self.guess(offer.recipe), self._search.kept(offer.recipe) is not None)
            for offer in self.offers
        )

    def guess(self, recipe: Recipe) -> float:
        """Seconds that a recipe will take on this machine: a conversion, and a timed forward pass for every step."""
        if recipe.quantize.method != "qat":
            return CONVERSION_S
        if self._step_s is None:
            batch = self.task.learn[: recipe.quantize.qat_batch]
            began = self._clock()
            float_logits(self.task.module, batch)
            self._step_s = _STEP_COST * (self._clock() - began)
        return CONVERSION_S + recipe.quantize.qat_steps * self._step_s

    def run(self) -> Outcome:
        """Smoke run, search, confirmation on fresh rows.

        Raises:
            KasminaError: The smoke run failed, or every recipe did.
        """
        failed = self.smoke() if self.settings.smoke else {}
        found = self._search.run(self.offers, failed)
        confirmed = None
        if found.chosen is not None:
            confirmed = paired_loss(self._builder.float_right("final"), found.chosen.final)
        right = self._builder.float_right()
        accuracy = None if self.task.labels is None else sum(right) / len(right)
        size = 4 * sum(p.numel() for p in self.task.module.parameters())
        return Outcome(
            self.name, self.profile, self.goals, found, accuracy, size, confirmed, self.identity
        )  # fmt: skip

    def smoke(self) -> dict[str, str]:
        """One recipe of each method on a few rows and steps, where there is something new to make.

        Returns:
            Why a method fails, by its name; its recipes are left out of the search.

        Raises:
            KasminaError: All of them fail: what would have failed after hours.
        """
        new = [o.recipe for o in self.offers if self._search.kept(o.recipe) is None]
        if not any(self._search.kept(o.recipe) is None for o in self.offers if not o.only_if):
            return {}
        small = Builder(self.task.small(), prune=self._prune, clock=self._clock, like=self._builder)
        failed: dict[str, KasminaError] = {}
        methods = {recipe.quantize.method: recipe for recipe in reversed(new)}
        for method, recipe in sorted(methods.items()):
            self._said(f"smoke run: {recipe.name} on {len(small.task.learn)} rows")
            brief = recipe.quantize.model_copy(update={"qat_steps": min(_SMOKE_STEPS, recipe.quantize.qat_steps)})
            try:
                small.build(recipe.model_copy(update={"quantize": brief}))
            except KasminaError as exc:
                failed[method] = exc
        if failed and len(failed) == len(methods):
            raise next(iter(failed.values()))
        return {method: f"smoke run failed: {exc.message}" for method, exc in failed.items()}

    def _more(self, made: Sequence[Candidate]) -> Sequence[Offer]:
        if not any(offer.recipe.quantize.weight_bits == 4 for offer in self.offers):
            return ()
        try:
            return mixed_offers(self.task, QuantizeConfig(headroom=self.settings.headroom, seed=self.settings.seed))
        except KasminaError as exc:
            self._said(f"no mixed precision: {exc.message}")
            return ()


def price_on(profile: HardwareProfile) -> Price:
    """What a file costs on a target; asked once for every file."""
    known: dict[str, Cost] = {}

    def price(data: bytes) -> Cost:
        key = sha256_hex(data)
        if key not in known:
            known[key] = _cost(data, profile)
        return known[key]

    return price


def rerun(made: RecipeFile, task: Task, out: Path, *, prune: Prune | None = None) -> Path:
    """Make a recipe's file again.

    Args:
        made: The recipe with what its bytes depend on.
        task: Network and data as they were.
        out: Folder for the file.
        prune: As of `Optimizing`.

    Raises:
        InputError: Network, data or packages are not those of the recipe; the message names what differs.
        KasminaError: They are, and the file is another one all the same.
    """
    differences = made.differences(task.model_digest(), task.data_digest(), versions())
    if differences:
        raise InputError(
            f"this recipe does not promise the same file here: {'; '.join(differences)}",
            "Use the network, data and packages it was made with, or search again.",
        )
    candidate = Builder(task, prune=prune).build(made.recipe)
    if candidate.digest != made.file:
        raise KasminaError(f"the recipe gave file {candidate.digest[:12]}, it was written for {made.file[:12]}")
    make_private_folder(out)
    write_durable(out / MODEL, candidate.data, mode=0o644)
    return out / MODEL


def _cost(data: bytes, profile: HardwareProfile) -> Cost:
    workload = read_workload(data)
    try:
        estimate = HardwareContext(profile).estimate(workload)
    except InputError:
        return Cost(None, None)
    lacks = "; ".join(
        f"{f.memory}: {f.needed_bytes} bytes needed, {f.there_bytes} there"
        for f in estimate.memory if f.must and not f.ok
    )  # fmt: skip
    return Cost(estimate.latency_ms, estimate.band, estimate.fits, lacks)
