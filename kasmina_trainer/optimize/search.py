"""The search over recipes: a plan, a smoke run, candidates from the store or made, a verdict. Order and result repeat.

What is slow or concerns hardware comes in as a function: `Make` builds a recipe, `Price` tells what a file costs on the
target. The search decides which recipe is next and when to stop; every candidate is kept as soon as it is made, so a
search that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kasmina_edge.errors import KasminaError
from kasmina_trainer.optimize.candidates import Candidate, CandidateStore, key_of
from kasmina_trainer.optimize.choosing import Goals, Point, Verdict, choose, paired_loss
from kasmina_trainer.optimize.recipes import Offer, Recipe


@dataclass(frozen=True)
class Cost:
    """What a file costs on a target; `latency_ms` and `band` are None where that is unknown."""

    latency_ms: float | None
    band: float | None
    fits: bool = True
    why_not: str = ""


Make = Callable[[Recipe], Candidate]
Price = Callable[[bytes], Cost]
More = Callable[[Sequence[Candidate]], Sequence[Offer]]
"""Offers that only measurements can make: mixed precision after sensitivity."""
Said = Callable[[str], None]


@dataclass(frozen=True)
class Identity:
    """What candidates are kept under, besides the recipe: network, data, versions of what writes files."""

    model: str
    data: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Tried:
    """One recipe of a search.

    Attributes:
        offer: The recipe and why it was offered.
        candidate: What it made; None when it was not tried.
        note: Why it was not tried, or why it failed; "" for a candidate.
        kept: It came out of the store.
    """

    offer: Offer
    candidate: Candidate | None
    note: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        tried: Every offer, in order.
        points: Of those that were made, in order.
        verdict: Over `points`.
        candidates: Those of `points`.
        seconds: The search took.
    """

    tried: tuple[Tried, ...]
    points: tuple[Point, ...]
    verdict: Verdict
    candidates: tuple[Candidate, ...]
    seconds: float

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that was taken."""
        return None if self.verdict.index is None else self.candidates[self.verdict.index]


@dataclass
class Search:
    """One search; `run` it once.

    Attributes:
        make: Builds a recipe.
        price: Tells what a file costs on the target.
        baseline: Which held-out rows the float network answers rightly.
        identity: What candidates are kept under.
        goals: What is asked for.
        store: Where candidates are kept; None keeps none.
        more: Offers that depend on what was measured.
        seconds: Most time; None: no limit. A candidate that has begun is finished.
        guess: Seconds a recipe will take, for the limit and the plan.
        said: Told every step.
        clock: Seconds that only go up.
    """

    make: Make
    price: Price
    baseline: tuple[bool, ...]
    identity: Identity
    goals: Goals
    store: CandidateStore | None = None
    more: More | None = None
    seconds: float | None = None
    guess: Callable[[Recipe], float] = field(default=lambda recipe: 0.0)
    said: Said = field(default=lambda text: None)
    clock: Callable[[], float] = time.monotonic

    def run(self, offers: Sequence[Offer], failed: Mapping[str, str] | None = None) -> Found:
        """Try the offers in order, those marked `only_if` while the goals are not kept.

        Args:
            offers: In the order in which they are tried.
            failed: Why recipes of a method are not tried, by the method's name.

        Raises:
            KasminaError: Every recipe failed; the message is the first one's.
        """
        started = self.clock()
        reasons = failed or {}
        tried = [Tried(o, None, reasons[m]) for o in offers if (m := o.recipe.quantize.method) in reasons]
        offers = [o for o in offers if o.recipe.quantize.method not in reasons]
        for offer in (o for o in offers if not o.only_if):
            tried.append(self._try(offer, started))
        if self.more is not None:
            made = [t.candidate for t in tried if t.candidate is not None]
            for offer in self.more(made):
                tried.append(self._try(offer, started))
        for offer in (o for o in offers if o.only_if):
            if self._points(tried) and self._verdict(tried).index is not None:
                tried.append(Tried(offer, None, "not needed: the goals are kept without it"))
            else:
                tried.append(self._try(offer, started))
        candidates = tuple(t.candidate for t in tried if t.candidate is not None)
        if not candidates:
            raise KasminaError(f"no recipe could be made: {tried[0].note if tried else 'none was offered'}")
        return Found(tuple(tried), self._points(tried), self._verdict(tried), candidates, self.clock() - started)

    def kept(self, recipe: Recipe) -> Candidate | None:
        """The candidate of a recipe that the store holds."""
        return None if self.store is None else self.store.get(self._key(recipe), recipe)

    def _try(self, offer: Offer, started: float) -> Tried:
        recipe = offer.recipe
        kept = self.kept(recipe)
        if kept is not None:
            self.said(f"{recipe.name}: kept from before")
            return Tried(offer, kept, kept=True)
        left = None if self.seconds is None else self.seconds - (self.clock() - started)
        if left is not None and left < self.guess(recipe):
            return Tried(offer, None, f"no time: {max(0.0, left):.0f} s left, some {self.guess(recipe):.0f} s needed")
        self.said(f"{recipe.name}: {offer.why}")
        try:
            candidate = self.make(recipe)
        except KasminaError as exc:
            return Tried(offer, None, exc.message)
        if self.store is not None:
            self.store.put(self._key(recipe), candidate)
        return Tried(offer, candidate)

    def _key(self, recipe: Recipe) -> str:
        return key_of(recipe, self.identity.model, self.identity.data, self.identity.versions)

    def _points(self, tried: Sequence[Tried]) -> tuple[Point, ...]:
        return tuple(self.point(t.candidate) for t in tried if t.candidate is not None)

    def point(self, candidate: Candidate) -> Point:
        """A candidate's figures on the target."""
        cost = self.price(candidate.data)
        return Point(
            candidate.recipe.name, paired_loss(self.baseline, candidate.right), len(candidate.data), cost.latency_ms,
            cost.band, cost.fits, cost.why_not,
        )  # fmt: skip

    def _verdict(self, tried: Sequence[Tried]) -> Verdict:
        return choose(self._points(tried), self.goals)
