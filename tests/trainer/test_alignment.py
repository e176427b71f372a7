"""Matching a grown network with its parent: an insertion is found wherever it is, and never takes a host's place."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_trainer.export.alignment import best_pairs


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2))))
def test_every_operator_of_the_parent_is_found(parent: list[int], inserted: list[tuple[int, int]]) -> None:
    grown = list(parent)
    for place, kind in inserted:
        grown.insert(min(place, len(grown)), kind)
    gains = [[1 if g == p else None for p in parent] for g in grown]
    pairs = best_pairs(gains)
    assert sorted(pairs.values()) == list(range(len(parent)))
    assert list(pairs) == sorted(pairs) and [pairs[g] for g in sorted(pairs)] == sorted(pairs.values())
    assert all(grown[g] == parent[p] for g, p in pairs.items())


def test_constants_decide_between_equal_kinds() -> None:
    assert best_pairs([[1], [5], [1]]) == {1: 0}


def test_of_equals_the_earlier_is_taken() -> None:
    assert best_pairs([[1], [1]]) == {0: 0}


def test_no_operators() -> None:
    assert best_pairs([]) == {}
