"""How much of full fine-tuning's gain removable grafts bring, at what price, and against which rivals.

A host trained on clean data stays frozen. Recipes of `evolve` (at most 10 % and 2 % of its parameters), full
fine-tuning, the BN retune, LoRA alone and adapters alone learn from the same clean and wrong rows; a recipe trains as
it ships, for no more steps than the others and on fewer rows a step. Validation rows of the first host choose: of full
fine-tuning's and the rivals' rates the one that gains most on the first kind; of two recipes of a size, over all kinds,
the one that loses least on clean rows among those that reach the target share, or else the one that gains most. Every
figure comes from test rows, over all hosts and kinds, with intervals as benchmarks/_growth_bounds.py says. LoRA and
adapters are as wide as 10 % of the host's parameters allow; a BN retune has the size it has, and where that is more
than the recipe's the distance is only stated. Cells are kept in build/bench/; a run trains those that are missing for
some minutes, and says so where hosts are left.

``python -m benchmarks.growth --minutes 20`` trains what fits into the time, ``--table`` prints what is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks._growth_bounds import Rows, interval, mean_in_points, ratio_of_sums
from benchmarks._growth_cells import Cell, cell, judged
from benchmarks._growth_peft import Method, fit
from benchmarks._growth_tasks import ground, kinds_of, known, small
from benchmarks._quantize_nets import ECG, Task, tasks
from benchmarks.quantize import row
from kasmina_trainer.evolve.arms import RETUNE
from kasmina_trainer.evolve.growing import FULL as WHOLE
from kasmina_trainer.evolve.recipes import RECIPE_SETTINGS
from kasmina_trainer.training import TrainingSettings

SEEDS, TUNED_ON = 5, 0
MORE_SEEDS = {"digits": 15}
"""Hosts of a data set where five do not decide half a point: each has some 690 test rows of its own, and trains in
seconds. What is pooled over data sets takes the first five of each."""
ROUNDS = 7
MINUTES = 6.0
STEPS, BATCH = 150, 64
KEEP = 0.5
TEN, TWO = "recipe of 10 %", "recipe of 2 %"
SHARE_TARGETS = {TEN: 0.9, TWO: 0.7}
CLEAN_TARGET, COST_TARGET = 0.5, 0.5
LIKE = 1.1
"""Parameters of a BN retune, as a multiple of the recipe's, up to which they are held to be equal."""
FULL = "full fine-tuning"
RIVALS = ("BN retune", "LoRA alone", "adapters alone")
RECIPES = tuple(SHARE_TARGETS)
Plan = Mapping[str, Sequence[Method]]


def _settings(rate: float) -> TrainingSettings:
    return TrainingSettings(steps=STEPS, batch=BATCH, learning_rate=rate, keep=KEEP, fused=True)


def _recipe(name: str, recipe: str, share: float) -> Method:
    """A recipe as it ships: nothing of it is tuned here."""
    return Method(name, RECIPE_SETTINGS[recipe], share=share, recipe=recipe)


PLAN: Plan = {
    FULL: [Method(FULL, _settings(rate), whole=WHOLE) for rate in (2e-2, 7e-3, 2.5e-3)],
    TEN: [_recipe(TEN, "switched-wide", 0.1), _recipe(TEN, "strong", 0.1)],
    TWO: [_recipe(TWO, "switched", 0.02), _recipe(TWO, "light", 0.02)],
    "BN retune": [Method("BN retune", _settings(rate), whole=RETUNE) for rate in (2e-2, 7e-3)],
    "LoRA alone": [Method("LoRA alone", _settings(rate), share=0.1, wide="conv-lora") for rate in (2e-2, 7e-3)],
    "adapters alone": [Method("adapters alone", _settings(rate), share=0.1, wide="adapter") for rate in (2e-2, 7e-3)],
}
"""What is tried of each; the first one alone in a quick run."""


@dataclass(frozen=True)
class Results:
    """Cells of one data set: those of every method stand in the same order of (seed, kind)."""

    task: Task
    cells: Mapping[str, Sequence[Cell]]
    chosen: Mapping[str, Method]

    def rows(self, first: str, *others: str, part: str = "target") -> list[Rows]:
        """Differences that a method made, line by line with those of others."""
        out = []
        for at, own in enumerate(self.cells[first]):
            lines = [_change(own, part), *(_change(self.cells[name][at], part) for name in others)]
            tested = (own.task, -1 if self.task.shared_test else own.seed)
            out.append(Rows((own.task, own.seed), tested, np.stack(lines)))
        return out

    def first(self, hosts: int) -> Results:
        """The cells of the first so many hosts."""
        kept = {name: [each for each in cells if each.seed < hosts] for name, cells in self.cells.items()}
        return replace(self, cells=kept)

    @property
    def hosts(self) -> int:
        """How many hosts are whole."""
        return len({each.seed for each in self.cells[FULL]})

    @property
    def how(self) -> str:
        """What the figures rest on."""
        own = self.cells[FULL]
        rows = len(own[0].after["test target"])
        told = f"{self.hosts} hosts, {len({each.kind for each in own})} kinds, {rows:,} test rows"
        return told + ("; labels are a detector's, not an expert's" if self.task.name == ECG else "")


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Shares, clean losses, distances to the rivals and costs, for each data set and for all together."""
    if quick:
        return table([_quick()], stated=True)
    _fill(MINUTES, list(tasks()), quiet=True)
    found = [each for name in tasks() if (each := collected(name, range(hosts_of(name)))) is not None]
    if not found:
        raise RuntimeError(f"no host is whole after {MINUTES:g} minutes: python -m benchmarks.growth goes on")
    return table(found, timed={each.task.name: in_turns(each) for each in found})


def hosts_of(name: str) -> int:
    """How many hosts of a data set are measured."""
    return MORE_SEEDS.get(name, SEEDS)


def in_turns(found: Results, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Processor time of whole trainings over that of full fine-tuning, recipe by recipe, all of a round in turns."""
    place = ground(found.task, TUNED_ON, kinds_of(found.task)[0])
    ratios: dict[str, list[float]] = {name: [] for name in RECIPES}
    for turn in range(rounds):
        order = (FULL, *RECIPES)[:: 1 if turn % 2 else -1]
        spent = {name: fit(found.chosen[name], place, seed=turn).run.seconds for name in order}
        for name in RECIPES:
            ratios[name].append(spent[name] / spent[FULL])
    return ratios


def table(
    found: Sequence[Results], *, stated: bool = False, timed: Mapping[str, Mapping[str, Sequence[float]]] | None = None
) -> list[dict[str, Any]]:
    """Rows of the printed table.

    Args:
        found: One a data set.
        stated: Figures without targets, where there are too few cells to judge.
        timed: By data set, what `in_turns` gives; None: the times of the cells, which were not trained in turns.
    """
    out: list[dict[str, Any]] = []
    groups = [(each.task.name, [each]) for each in found]
    if len(found) > 1:
        groups.append(("all data sets", [each.first(SEEDS) for each in found]))
    for name, members in groups:
        for recipe in RECIPES:
            out += _shares(name, members, recipe)
            out += _distances(name, members, recipe)
        out += _costs(name, members, timed)
        wanted = [hosts_of(each.task.name) if len(members) == 1 else SEEDS for each in members]
        short = [
            f"{e.task.name} {e.hosts} of {most}" for e, most in zip(members, wanted, strict=True) if e.hosts < most
        ]
        if short and not stated:
            told = f"; NOT YET all hosts: {', '.join(short)}; python -m benchmarks.growth goes on"
            out = [
                {**each, "ok": False, "how": each["how"] + told}
                if each["name"].startswith(f"growth, {name}:")
                else each
                for each in out
            ]
    exact = [each.removed for results in found for name in RECIPES for each in results.cells[name]]
    how = f"{len(exact)} grown networks: grafts taken out, answers to 256 rows and the host's digest compared"
    share = float(np.mean([bool(each) for each in exact]))
    out.append(row("growth: removal bit-identical", 1.0, share, "of networks", share == 1.0, how))
    return [{**each, "target": None, "ok": True} if stated and "removal" not in each["name"] else each for each in out]


def collected(name: str, seeds: Iterable[int]) -> Results | None:
    """The cells of one data set that are kept; hosts that are not whole are left out, and None is what is left of none.

    Args:
        name: Of the data set.
        seeds: Hosts.
    """
    task = known(name)
    chosen = chosen_methods(name, PLAN, only_kept=True)
    if chosen is None:
        return None
    cells: dict[str, list[Cell]] = {method: [] for method in chosen}
    for seed in seeds:
        found = {
            own: [cell(name, seed, kind, method, only_kept=True) for kind in kinds_of(task)]
            for own, method in chosen.items()
        }
        if all(each is not None for line in found.values() for each in line):
            for own, line in found.items():
                cells[own] += [each for each in line if each is not None]
    return Results(task, cells, chosen) if cells[FULL] else None


def chosen_methods(name: str, plan: Plan, *, only_kept: bool = False) -> dict[str, Method] | None:
    """The form of each method that validation rows of one host choose; None where cells are missing."""
    out: dict[str, Method] = {}
    whole: list[Cell] | None = []
    for own, forms in plan.items():
        tried = [_tried(name, own, form, only_kept=only_kept) for form in forms]
        found = [line for line in tried if line is not None]
        if own in RECIPES:
            whole = _tried(name, own, out[FULL], only_kept=only_kept)
        if len(found) < len(tried) or whole is None:
            return None
        out[own] = forms[_best(found, SHARE_TARGETS[own] * _gain(whole) if own in RECIPES else None)]
    return out


def _tried(name: str, own: str, form: Method, *, only_kept: bool) -> list[Cell] | None:
    """Cells of the first host that choose: one kind for a rate, all of them for a recipe."""
    kinds = kinds_of(known(name)) if own in RECIPES else kinds_of(known(name))[:1]
    found = [cell(name, TUNED_ON, kind, form, only_kept=only_kept) for kind in kinds]
    kept = [each for each in found if each is not None]
    return kept if len(kept) == len(kinds) else None


def _gain(cells: Sequence[Cell]) -> float:
    return sum(each.gain("validation") for each in cells)


def _best(tried: Sequence[Sequence[Cell]], enough: float | None = None) -> int:
    """The form that gains most; of those that gain enough, the one that loses least on clean rows."""
    fair = [at for at, cells in enumerate(tried) if enough is not None and _gain(cells) >= enough]
    if fair:
        return min(fair, key=lambda at: sum(each.loss("validation") for each in tried[at]))
    return max(range(len(tried)), key=lambda at: _gain(tried[at]))


def _change(each: Cell, part: str) -> Any:
    name = f"test {part}"
    return each.after[name].astype(np.int8) - each.before[name].astype(np.int8)


def _shares(name: str, members: Sequence[Results], recipe: str) -> list[dict[str, Any]]:
    how = "; ".join(each.how for each in members) if len(members) == 1 else f"{len(members)} data sets pooled"
    gains = interval([line for each in members for line in each.rows(recipe, FULL)], ratio_of_sums)
    clean = interval([line for each in members for line in each.rows(recipe, part="clean")], mean_in_points)
    own = [line for each in members for line in each.cells[recipe]]
    size, accuracy = max(line.share for line in own), _accuracy(members, recipe)
    told = (
        f"{how}; 95 % {gains.low:.3f} to {gains.high:.3f}; {size:.2%} of the host's parameters; wrong rows "
        f"{_accuracy(members, '')} -> {accuracy} %, full fine-tuning {_accuracy(members, FULL)} %; "
        f"{_form(members, recipe)}"
    )
    mean, high = -clean.value, -clean.low
    target, limit = SHARE_TARGETS[recipe], PLAN[recipe][0].share
    return [
        row(f"growth, {name}: {recipe}, share of full fine-tuning's gain", target, gains.value, "",
            gains.value >= target and size <= limit, told),
        row(f"growth, {name}: {recipe}, clean loss, upper 95 % bound", CLEAN_TARGET, high, "points",
            high <= CLEAN_TARGET, f"{how}; mean {mean:+.3f} points, lower bound {-clean.high:+.3f}"),
    ]  # fmt: skip


def _distances(name: str, members: Sequence[Results], recipe: str) -> list[dict[str, Any]]:
    out = []
    for rival in {TEN: RIVALS, TWO: RIVALS[:1]}.get(recipe, ()):
        lines = [
            Rows(line.cluster, line.rows, (line.values[:1] - line.values[1:]).astype(np.int8))
            for each in members
            for line in each.rows(recipe, rival)
        ]
        found = interval(lines, mean_in_points)
        theirs = max(line.share for each in members for line in each.cells[rival])
        ours = max(line.share for each in members for line in each.cells[recipe])
        equal = rival != RIVALS[0] or theirs <= LIKE * ours
        told = (
            f"lower end of 95 %, mean {found.value:+.2f}, upper end {found.high:+.2f} points of accuracy on wrong "
            f"rows; the rival {_accuracy(members, rival)} % with {theirs:.2%} of the parameters, the recipe {ours:.2%}"
            f"{'' if equal else ', so it is only stated'}; {_form(members, rival)}"
        )
        out.append(
            row(f"growth, {name}: {recipe} over {rival}", 0.0 if equal else None, found.low, "points",
                found.low > 0 or not equal, told)
        )  # fmt: skip
    return out


def _costs(
    name: str, members: Sequence[Results], timed: Mapping[str, Mapping[str, Sequence[float]]] | None
) -> list[dict[str, Any]]:
    out = []
    for recipe in reversed(RECIPES):
        own = [line for each in members for line in each.cells[recipe]]
        full = [line for each in members for line in each.cells[FULL]]
        turns = [a.seconds / b.seconds for a, b in zip(own, full, strict=True)]
        told = "of the cells, not trained in turns"
        if timed is not None:
            turns = [ratio for each in members for ratio in timed[each.task.name][recipe]]
            told = f"of {len(turns)} rounds of whole trainings in turns"
        slower = float(np.median(turns))
        larger = float(np.median([a.peak_bytes / b.peak_bytes for a, b in zip(own, full, strict=True)]))
        sizes = dict.fromkeys(f"{line.steps} steps of {line.batch} rows" for line in own)
        how = f"{' or '.join(sizes)} against {full[0].steps} of {full[0].batch}"
        out += [
            row(f"growth, {name}: training time, {recipe}", COST_TARGET, slower, "x full", slower <= COST_TARGET,
                f"{how}; processor time, median {told}, {min(turns):.2f} to {max(turns):.2f}"),
            row(f"growth, {name}: peak memory of learning, {recipe}", COST_TARGET, larger, "x full",
                larger <= COST_TARGET, f"{how}; values kept for the way back, gradients and moments, counted"),
        ]  # fmt: skip
    return out


def _accuracy(members: Sequence[Results], method: str) -> str:
    cells = [line for each in members for line in each.cells[method or FULL]]
    found = [(line.after if method else line.before)["test target"].mean() for line in cells]
    return f"{100 * float(np.mean(found)):.1f}"


def _form(members: Sequence[Results], method: str) -> str:
    told = [(each.chosen[method].recipe, each.chosen[method].settings) for each in members]
    forms = (f"{recipe} {at.steps}x{at.batch}".strip() + f", rate {at.learning_rate:g}, keep {at.keep:g}"
             for recipe, at in told)  # fmt: skip
    return " or ".join(dict.fromkeys(forms))


def _quick() -> Results:
    """One host that learned for a moment, one kind, a dozen steps: the whole way in seconds."""
    task = small(known("digits"), steps=20)
    place = ground(task, 0, "contrast", most=200)
    forms = {
        own: replace(first, settings=replace(first.settings, steps=12, batch=min(first.settings.batch, 16)))
        for own, (first, *_) in PLAN.items()
    }
    return Results(task, {own: [judged(place, form)] for own, form in forms.items()}, forms)


def _fill(minutes: float, names: Sequence[str], *, quiet: bool = False) -> None:
    """Train cells until the time is over, host by host; the first cell of a data set with every form of each method."""
    end = time.monotonic() + 60 * minutes
    for seed in range(max(map(hosts_of, names))):
        for name in (each for each in names if seed < hosts_of(each)):
            for kind in kinds_of(known(name)):
                methods: Iterable[Method]
                if seed == TUNED_ON and kind == kinds_of(known(name))[0]:
                    methods = [form for forms in PLAN.values() for form in forms]
                else:
                    methods = (chosen_methods(name, PLAN) or {}).values()
                for method in methods:
                    if time.monotonic() > end:
                        return
                    found = cell(name, seed, kind, method)
                    assert found is not None
                    if quiet:
                        continue
                    form = f"{method.name} {method.recipe}, rate {method.settings.learning_rate:g}"
                    print(
                        f"{name} {seed} {kind}: {form}: gain {found.gain():.1f}, clean loss {found.loss():+.2f}, "
                        f"{found.share:.2%}, {found.seconds:.1f} s", flush=True,
                    )  # fmt: skip


def main() -> None:
    """Fill the cells, or print what they say so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--only", nargs="+", choices=list(tasks()), default=list(tasks()))
    parser.add_argument("--table", action="store_true", help="train nothing")
    asked = parser.parse_args()
    if not asked.table:
        _fill(asked.minutes, asked.only)
    found = [each for name in asked.only if (each := collected(name, range(hosts_of(name)))) is not None]
    for line in table(found) if found else []:
        mark = "" if line["target"] is None else "ok" if line["ok"] else "MISSED"
        print(f"{line['name']}: {line['measured']:.3f} {line['unit']} (target {line['target']}) {mark}; {line['how']}")


if __name__ == "__main__":
    main()
