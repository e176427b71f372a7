"""Who gets what is left: never more than there is, nobody starves, the same answer for the same question."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.nesting import Budget, Fair, Grant, Policy, Priority, Request, arbitrate

POLICIES: tuple[Policy, ...] = (Fair(), Priority(), Priority(ageing=0))
AMOUNTS = st.integers(0, 60)
COSTS = st.builds(Cost, AMOUNTS, AMOUNTS, AMOUNTS)
LIMITS = st.none() | st.integers(0, 100)
BUDGETS = st.builds(Budget, LIMITS, LIMITS, LIMITS)
REQUESTS = st.lists(
    st.builds(
        Request,
        child=st.sampled_from("abcdefghij"),
        cost=COSTS,
        priority=st.integers(-3, 3),
        value=st.floats(0, 1),
        waited=st.integers(0, 9),
        holds=COSTS,
    ),
    max_size=8,
    unique_by=lambda request: request.child,
)


def granted(grants: tuple[Grant, ...], requests: list[Request]) -> Cost:
    names = {grant.child for grant in grants if grant.granted}
    return sum((request.cost for request in requests if request.child in names), start=Cost())


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=REQUESTS, left=BUDGETS, whole=BUDGETS)
def test_what_is_granted_is_never_more_than_there_is(
    policy: Policy, requests: list[Request], left: Budget, whole: Budget
) -> None:
    grants = arbitrate(requests, left, policy, whole=whole)
    assert sorted(grant.child for grant in grants) == sorted(request.child for request in requests)
    assert left.allows(granted(grants, requests)) == ""
    assert all(grant.reason for grant in grants)


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=REQUESTS, left=BUDGETS, seed=st.integers(0, 99))
def test_the_order_of_asking_does_not_matter(policy: Policy, requests: list[Request], left: Budget, seed: int) -> None:
    shuffled = random.Random(seed).sample(requests, len(requests))
    assert arbitrate(shuffled, left, policy) == arbitrate(requests, left, policy)


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=REQUESTS, left=BUDGETS)
def test_nobody_is_refused_while_there_is_room_and_none_is_kept(
    policy: Policy, requests: list[Request], left: Budget
) -> None:
    """Work conservation: what was refused for lack of room does not fit into what is left at the end."""
    requests = [replace(request, waited=0) for request in requests]
    grants = arbitrate(requests, left, policy)
    rest = left.minus(granted(grants, requests))
    by_name = {request.child: request for request in requests}
    assert all(rest.allows(by_name[grant.child].cost) for grant in grants if not grant.granted)


def test_fair_serves_whoever_holds_least() -> None:
    rich = Request("a", Cost(10), holds=Cost(50))
    poor = Request("b", Cost(10))
    (first, second) = arbitrate([rich, poor], Budget(parameters=10), Fair(), whole=Budget(parameters=100))
    assert (first.child, first.granted) == ("b", True)
    assert (second.granted, second.reason) == (False, "10 parameters asked for, 0 left")


def test_fair_looks_at_the_scarcest_of_what_is_asked_for() -> None:
    """Dominant share: 10 of 100 parameters is more than 10 of 1000 MACs."""
    parameters, macs = Request("a", Cost(10, 0)), Request("b", Cost(0, 10))
    order = Fair().order([parameters, macs], Budget(parameters=100, macs=1000))
    assert [request.child for request in order] == ["b", "a"]


def test_priority_serves_the_important_then_the_valuable_then_by_name() -> None:
    requests = [
        Request("d", Cost(1)),
        Request("c", Cost(1)),
        Request("b", Cost(1), value=0.5),
        Request("a", Cost(1), priority=-1, value=9.0),
        Request("e", Cost(1), priority=1),
    ]
    order = Priority().order(requests, Budget())
    assert [request.child for request in order] == ["e", "b", "c", "d", "a"]


def test_a_request_above_the_whole_budget_is_hopeless_and_blocks_nobody() -> None:
    giant = Request("giant", Cost(200), waited=50)
    small = Request("small", Cost(10))
    grants = {g.child: g for g in arbitrate([giant, small], Budget(parameters=20), Fair(), whole=Budget(parameters=99))}
    assert grants["giant"].hopeless and not grants["giant"].granted
    assert "200 parameters asked for, 99 left" in grants["giant"].reason
    assert grants["small"].granted


def test_room_is_kept_for_who_waited_long() -> None:
    large, small = Request("large", Cost(80), waited=4), Request("small", Cost(10))
    fresh = replace(large, waited=3)
    left, whole = Budget(parameters=50), Budget(parameters=100)
    kept = {g.child: g for g in arbitrate([large, small], left, Fair(), whole=whole)}
    assert kept["small"].reason == "room is kept for large"
    assert {g.child: g.granted for g in arbitrate([fresh, small], left, Fair(), whole=whole)}["small"]


def test_asking_twice_in_a_round_is_refused() -> None:
    with pytest.raises(InputError, match="2 requests of 1 children: a ask more than once"):
        arbitrate([Request("a", Cost(1)), Request("a", Cost(2))], Budget(), Fair())


def waits(policy: Policy, victim: Request, newcomer: Request, *, lifetime: int, rounds: int) -> int | None:
    """Rounds until the victim is served while two newcomers arrive every round; None: never in that time.

    Everybody who is served leaves after ``lifetime`` rounds.
    """
    whole = Budget(parameters=100)
    row, standing = [victim], list[tuple[int, Cost]]()
    for now in range(rounds):
        standing = [(until, cost) for until, cost in standing if until > now]
        left = whole.minus(sum((cost for _, cost in standing), start=Cost()))
        row += [replace(newcomer, child=f"n{now:04}{letter}") for letter in "ab"]
        by_name = {request.child: request for request in row}
        for grant in arbitrate(row, left, policy, whole=whole):
            if grant.granted:
                if grant.child == victim.child:
                    return now
                standing.append((now + lifetime, by_name[grant.child].cost))
                del by_name[grant.child]
        row = [replace(request, waited=request.waited + 1) for request in by_name.values()]
    return None


@given(
    size=st.integers(1, 100),
    small=st.integers(1, 100),
    lifetime=st.integers(1, 5),
    patience=st.integers(1, 6),
)
def test_fair_serves_everybody_within_the_bound_that_it_states(
    size: int, small: int, lifetime: int, patience: int
) -> None:
    victim, newcomer = Request("z", Cost(size)), Request("n", Cost(small))
    waited = waits(Fair(patience), victim, newcomer, lifetime=lifetime, rounds=60)
    beside = 2  # those that arrive in the same round are as old as the victim and may come first by name
    assert waited is not None
    assert waited <= patience + (beside + 1) * lifetime


def test_without_age_the_large_and_the_unimportant_starve() -> None:
    """The negative control of the bounds: the same world, policies that know no age."""
    large, small = Request("large", Cost(80)), Request("n", Cost(30))
    assert waits(Fair(patience=10**6), large, small, lifetime=2, rounds=300) is None
    assert waits(Fair(), large, small, lifetime=2, rounds=300) is not None
    low, high = Request("low", Cost(60)), Request("n", Cost(60), priority=2)
    assert waits(Priority(ageing=0), low, high, lifetime=1, rounds=300) is None
    assert waits(Priority(), low, high, lifetime=1, rounds=300) is not None


@given(budget=BUDGETS, cost=COSTS, more=COSTS)
def test_what_is_taken_is_what_is_missing(budget: Budget, cost: Cost, more: Cost) -> None:
    if budget.allows(cost):
        with pytest.raises(InputError, match=r"over budget: .* asked for, .* left"):
            budget.minus(cost)
        return
    rest = budget.minus(cost)
    assert (rest.allows(more) == "") == (budget.allows(cost + more) == "")


def test_a_budget_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="budget of -1 MACs: expected 0 or more"):
        Budget(macs=-1)
