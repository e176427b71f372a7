"""Which candidate grows: a race on rows of its own, then what won it in combinations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.datasets.scenes import HOLDOUT_SHARE, divide
from kasmina_trainer.evolve.arms import Candidate, name_of, price_of
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.evolve.events import Event, Listener
from kasmina_trainer.evolve.growing import Ground, Plan, grow_one, likelihood
from kasmina_trainer.evolve.racing import KEPT, rungs, score, survivors
from kasmina_trainer.evolve.recipes import CLEAN_PRICE, combinations, norm_names
from kasmina_trainer.growth_report import Trial
from kasmina_trainer.training import Progress, TrainingSettings

RACE_SHARE = 0.5  # of the time that is left, and of the steps of the growth itself


@dataclass(frozen=True)
class RaceRows:
    """Rows that a race learns from and rows that it looks at; the gate's rows are in neither."""

    learn: tuple[Samples, ...]
    clean: Samples
    target: Samples


def race_rows(clean: Samples, target: Samples, seed: int, *, target_only: bool) -> RaceRows:
    """A quarter of the rows to learn from is looked at instead, whole scenes of it.

    Raises:
        InputError: There are too few scenes for that.
    """
    parts = []
    for name, (x, y) in (("train", clean), ("target", target)):
        divided = divide(x, share=HOLDOUT_SHARE, seed=seed + 1)
        if not divided.judge.any() or not divided.learn.any():
            raise InputError(
                f"{name}: {len(x)} rows to learn from show too few scenes to set a quarter aside for a race",
                "Capture more scenes, or grow one blueprint by name, which races nothing.",
            )
        parts.append(((x[divided.learn], y[divided.learn]), (x[divided.judge], y[divided.judge])))
    learn = (parts[1][0],) if target_only else (parts[0][0], parts[1][0])
    return RaceRows(learn, parts[0][1], parts[1][1])


class Race:
    """Successive halving over candidates, then combinations of the best.

    Args:
        ground: Whose sources are `RaceRows.learn`.
        rows: What is looked at.
        settings: Of the growth that follows; a race's last round has `RACE_SHARE` of its steps.
        ports: Sites by name.
        allowance: What no combination may exceed.
        tell: Hears what happens.
        track: Gives a progress function for so many more steps.
    """

    def __init__(
        self,
        ground: Ground,
        rows: RaceRows,
        settings: TrainingSettings,
        ports: Mapping[str, Port],
        allowance: Allowance,
        *,
        tell: Listener,
        track: Callable[[int], Progress],
    ) -> None:
        self._ground, self._rows, self._ports, self._allowance = ground, rows, ports, allowance
        self._settings = replace(settings, steps=max(1, round(settings.steps * RACE_SHARE)))
        self._tell, self._track = tell, track
        host = ground.seeds
        self._before = (likelihood(host, rows.target), likelihood(host, rows.clean))
        self._known: dict[tuple[str, int], float] = {}
        self.trials: list[Trial] = []

    def winner(self, candidates: Sequence[Candidate], *, combine: bool) -> Candidate:
        """The candidate to grow.

        Args:
            candidates: At least one.
            combine: Also try the best ones together, and the recipes.
        """
        ranked = list(candidates)
        rounds = rungs(len(candidates), self._settings.steps)
        kept = [*(rung.arms for rung in rounds[1:]), KEPT]
        for number, (rung, keep) in enumerate(zip(rounds, kept, strict=True)):
            ranked = self._round(ranked, number, rung.steps, keep=keep)
            if self._ground.deadline.passed:
                return ranked[0]
        if combine:
            together = combinations(
                ranked[:KEPT], self._ports, self._allowance, norm_names(self._ground.seeds.host_copy())
            )
            ranked = self._round(list(together), len(rounds), self._settings.steps, keep=1)
        return ranked[0]

    def _round(self, candidates: list[Candidate], number: int, steps: int, *, keep: int) -> list[Candidate]:
        """Best first; what the deadline leaves unmeasured is dropped."""
        named = {name_of(candidate): candidate for candidate in candidates}
        scores: dict[str, float] = {}
        for name, candidate in named.items():
            if scores and self._ground.deadline.passed:
                break
            scores[name] = self._score(name, candidate, steps)
        best = survivors(scores, keep)
        prices = {name: price_of(named[name], self._ports).parameters for name in scores}
        self.trials += [Trial(n, number, steps, scores[n], prices[n], n in best) for n in scores]
        self._tell(Event("rung", f"round {number + 1}", steps, {"arms": len(scores), "score": scores[best[0]]}))
        return [named[name] for name in best]

    def _score(self, name: str, candidate: Candidate, steps: int) -> float:
        if (name, steps) in self._known:
            return self._known[name, steps]
        plan = Plan(name, replace(self._settings, steps=steps), candidate)
        network, _ = grow_one(self._ground, plan, on_step=self._track(steps), watch=_watch(self._tell, name))
        after = likelihood(network, self._rows.target), likelihood(network, self._rows.clean)
        found = score(self._before[0], after[0], self._before[1], after[1], CLEAN_PRICE)
        values = {"score": found, "target": after[0], "clean": after[1], "steps": steps}
        self._tell(Event("arm", name, steps, {**values, "parameters": price_of(candidate, self._ports).parameters}))
        self._known[name, steps] = found
        return found


def _watch(tell: Listener, name: str) -> Callable[[int, float], None]:
    return lambda step, loss: tell(Event("step", name, step, {"loss": loss}))
