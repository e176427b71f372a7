"""Races, budgets, recipes: pure parts of a growth."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.evolve import Macs, Parameters, parse_budget
from kasmina_trainer.evolve.arms import Arm, check_candidate, fitting_arms, name_of, price_of
from kasmina_trainer.evolve.budget import Allowance, Deadline
from kasmina_trainer.evolve.intensities import levels_of, parse_intensities
from kasmina_trainer.evolve.racing import rungs, score, survivors
from kasmina_trainer.evolve.recipes import Part, combinations, written_out
from kasmina_trainer.intensity_scaler import Intensity
from kasmina_trainer.training import Minutes

PORTS = {name: Port.of(shape, name) for name, shape in {"s1": (6, 8, 8), "s2": (8, 4, 4), "s3": (8, 4, 4)}.items()}
FREE = Allowance()


@settings(max_examples=80, deadline=None)
@given(arms=st.integers(1, 200), steps=st.integers(1, 400), keep=st.integers(1, 6))
def test_a_race_halves_its_arms_and_never_shortens(arms: int, steps: int, keep: int):
    found = rungs(arms, steps, keep=keep)
    assert found[0].arms == arms and found[-1].steps == steps and found[-1].arms <= max(arms, 2 * keep)
    for first, second in pairwise(found):
        assert keep < second.arms <= -(-first.arms // 2) and second.steps > first.steps
    work = sum(rung.arms * rung.steps for rung in found)
    if steps >= 15 * 2 ** len(found):
        even = len(found) * arms * steps / 2 ** (len(found) - 1)
        assert work <= even + 2 * steps, "every round costs about the same"


def test_the_best_arm_survives_every_round():
    scores = {f"arm{i:02d}": i / 10 for i in range(16)}
    left = list(scores)
    for rung in rungs(16, 100):
        left = list(survivors({name: scores[name] for name in left}, max(3, rung.arms // 2)))
        assert left[0] == "arm15"
    assert survivors({"a": 1.0, "b": 1.0}, 1) == ("a",)
    assert survivors({}, 2) == ()


def test_clean_loss_is_dear_and_clean_gain_is_worth_nothing():
    assert score(0.4, 0.6, 0.9, 0.9, 3.0) == pytest.approx(0.2)
    assert score(0.4, 0.6, 0.9, 0.8, 3.0) == pytest.approx(-0.1)
    assert score(0.4, 0.6, 0.9, 1.0, 3.0) == pytest.approx(0.2)


def test_a_race_of_nothing_is_refused():
    with pytest.raises(InputError, match="a race of 0 arms, 10 steps"):
        rungs(0, 10)


def test_budgets_are_read_and_kept():
    assert parse_budget("90s") == Minutes(1.5) and parse_budget("1h") == Minutes(60)
    assert parse_budget("2M") == Macs(2_000_000) and parse_budget("2.5%", 1000) == Parameters(25)
    for wrong in ("", "5", "m", "5 m", "-5m", "10%", "5d", "1e3k"):
        with pytest.raises(InputError, match="expected a time"):
            parse_budget(wrong)
    with pytest.raises(InputError, match="0 MACs"):
        parse_budget("0k")
    allowance = Allowance.of([Minutes(2), Macs(500), Macs(300), Parameters(9)])
    assert allowance == Allowance(120.0, 300, 9)
    assert allowance.refusal(Cost(9, 300, 0)) == ""
    assert allowance.refusal(Cost(9, 301, 0)) == "301 MACs a frame, the budget leaves 300"
    assert allowance.refusal(Cost(10, 1, 0)) == "10 parameters, the budget leaves 9"
    assert allowance.minus(Cost(4, 100, 0)) == Allowance(120.0, 200, 5)


def test_a_deadline_has_parts_and_remembers_what_was_spent():
    now = [100.0]
    deadline = Deadline.after(60.0, lambda: now[0], spent_s=20.0)
    assert deadline.at_s == 140.0 and not deadline.passed
    half = deadline.part(0.5)
    assert half.at_s == 120.0
    now[0] = 130.0
    assert half.passed and not deadline.passed
    assert Deadline.after(None, lambda: now[0]).part(0.5).at_s is None


def test_every_fitting_arm_is_offered_and_dear_ones_are_not():
    arms = fitting_arms(PORTS, FREE)
    assert Arm("depthwise", ("s2",)) in arms and not any(arm.blueprint == "no-op" for arm in arms)
    limit = Allowance(parameters=150)
    cheap = fitting_arms(PORTS, limit)
    assert set(cheap) < set(arms)
    assert all(price_of((arm,), PORTS).parameters <= 150 for arm in cheap)
    assert fitting_arms(PORTS, FREE, names=["depthwise"]) == tuple(Arm("depthwise", (s,)) for s in PORTS)


@pytest.mark.parametrize(
    ("candidate", "allowance", "message", "step"),
    [
        ((Arm("depthwise", ("s9",)),), FREE, "no seed site is called 's9'; sites are s1, s2, s3", "Did you mean s"),
        ((Arm("deptwise", ("s1",)),), FREE, "no blueprint is called 'deptwise'", "Did you mean depthwise"),
        ((Arm("input-filter", ("s1",)),), FREE, "input-filter: site s1: it stands at the site 'input'", "fit"),
        ((Arm("depthwise", ()),), FREE, "blueprint depthwise: no site was named", ""),
        ((Arm("depthwise", ("s1",)), Arm("no-op", ("s1",))), FREE, "site s1 is asked for twice", ""),
        (
            (Arm("depthwise", ("s1",)),),
            Allowance(macs=10),
            r"\d+ MACs a frame, the budget leaves 10",
            "Raise the budget",
        ),
        ((Arm("depthwise", ("s1", "s2")),), Allowance(parameters=200), r"\d+ parameters, the budget leaves 200", ""),
    ],
)
def test_what_cannot_grow_is_told_at_once(candidate: tuple[Arm, ...], allowance: Allowance, message: str, step: str):
    with pytest.raises(InputError, match=message) as caught:
        check_candidate(candidate, PORTS, allowance)
    assert step in (caught.value.next_step or "")


def test_combinations_stay_inside_the_budget_and_differ():
    ranked = [(Arm("depthwise", ("s2",)),), (Arm("depthwise", ("s1",)),), (Arm("depthwise", ("s3",)),)]
    found = combinations(ranked, PORTS, FREE)
    assert found[0] == ranked[0] and len({name_of(c) for c in found}) == len(found) > 2
    assert (Arm("depthwise", ("s1", "s2")),) in found, "the two best arms together"
    single = price_of(ranked[0], PORTS).parameters
    tight = combinations(ranked, PORTS, Allowance(parameters=single))
    assert all(price_of(c, PORTS).parameters <= single for c in tight) and tight[0] == ranked[0]
    assert combinations([], PORTS, FREE) == ()


def test_a_recipe_finds_its_places_or_none():
    both = (Part("depthwise", "early"), Part("no-op", "rest"))
    assert written_out(both, PORTS) == (Arm("depthwise", ("s1", "s2")), Arm("no-op", ("s3",)))
    assert written_out((Part("depthwise", "input"),), PORTS) is None
    with_input = {"input": Port.of((1, 8, 8), "input"), **PORTS}
    assert written_out((Part("depthwise", "input"), *both), with_input) == (
        Arm("depthwise", ("input",)),
        Arm("depthwise", ("s1", "s2")),
        Arm("no-op", ("s3",)),
    )
    assert written_out((Part("nothing-like-it", "rest"),), PORTS) is None


def test_intensities_are_read_and_looked_up():
    assert parse_intensities([]) == 1.0 and parse_intensities(["0.25"]) == 0.25
    levels = parse_intensities(["0.5", "depthwise=0.75", "depthwise.learning_rate=2"])
    assert levels_of(levels, Arm("depthwise", ("s1",))) == (2.0, None, 0.75)
    assert levels_of(levels, Arm("no-op", ("s1",))) == (1.0, None, 0.5)
    assert levels_of({"depthwise": Intensity(gain=0.5)}, Arm("no-op", ("s1",))) == (1.0, None, 1.0)
    for wrong, message in (
        ("fast", "expected a number"),
        ("deptwise=1", "no blueprint is called"),
        ("depthwise.speed=1", "speed"),
        ("depthwise=1.5", "depthwise"),
        ("depthwise.width=0", "width"),
        ("1.5", "expected 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            parse_intensities([wrong])
