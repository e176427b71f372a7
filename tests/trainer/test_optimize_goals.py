"""Goals are held against what is known: an estimate without a band, and inputs that nothing was chosen by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_optimize import outcome, point

from kasmina_trainer.cli import main
from kasmina_trainer.cli import optimize as verb
from kasmina_trainer.optimize.choosing import Goals, Loss, choose, confirmation
from kasmina_trainer.optimize.outcome import Outcome, outcome_page, write_outcome

LONG = st.floats(2.001, 1e6)
SHORT = st.floats(1e-6, 2.0)


# --- an estimate whose band is unknown


@given(LONG)
def test_an_estimate_beyond_the_goal_misses_it_without_a_band(ms: float) -> None:
    found = choose([point("slow", ms=ms, band=None)], Goals(max_ms=2))
    assert found.index is None
    assert found.misses == ((f"takes {ms:.3g} ms by an estimate whose band is unknown, at most 2 are asked for",),)


@given(SHORT)
def test_an_estimate_within_the_goal_keeps_it_and_is_doubted(ms: float) -> None:
    found = choose([point("fast", ms=ms, band=None)], Goals(max_ms=2))
    assert found.index == 0
    assert found.reasons[-1] == (
        f"the latency is not proven to be at most 2 ms: it is estimated at {ms:.3g} ms, and its band is unknown"
    )


def test_a_known_band_is_judged_by_its_fast_end_as_before() -> None:
    assert choose([point("wide", ms=100.0, band=0.99)], Goals(max_ms=2)).index == 0
    assert choose([point("slow", ms=100.0, band=0.9)], Goals(max_ms=2)).index is None
    beyond = choose([point("beyond all", ms=1.0, band=1.5)], Goals(max_ms=0.5))
    assert beyond.index == 0 and "its band ends at 2.5 ms" in beyond.reasons[-1]


def test_what_cannot_be_estimated_at_all_is_told_apart() -> None:
    found = choose([point("unknown", ms=None, band=None)], Goals(max_ms=2))
    assert found.index == 0, "whether it keeps the goal cannot be told"
    assert found.reasons[-1].endswith("nothing is there to estimate it from")
    assert not any("not proven" in reason for reason in choose([point("a", band=None)], Goals()).reasons)


@given(SHORT, st.none() | st.floats(0.0, 0.9))
def test_where_time_is_short_an_estimate_goes_before_none(ms: float, band: float | None) -> None:
    unknown = replace(point("unknown", ms=None, band=None), loss=Loss(0.0, -0.1, 0.1, 500), size_bytes=1)
    known = replace(point("known", ms=ms, band=band), loss=Loss(0.4, 0.3, 0.5, 500), size_bytes=9)
    for points, first in (([unknown, known], 1), ([known, unknown], 0)):
        found = choose(points, Goals(max_loss=0.5, max_ms=2))
        assert found.index == first, "although it loses more and is larger"
        assert "of 1 of them nothing tells the latency, and at most 2 ms are asked for" in found.reasons[1]
    assert choose([unknown, known], Goals(max_loss=0.5)).index == 0, "nobody asked for a latency"
    slow = replace(known, latency_ms=90.0, band=0.1)
    assert choose([unknown, slow], Goals(max_ms=2)).index == 0, "what misses the limit goes before nothing"


# --- fresh inputs


@pytest.mark.parametrize(
    ("fresh", "refuted", "said"),
    [
        (Loss(2.0, 0.6, 3.4, 300), True, "more than the 0.5 that are asked for, the whole interval lies beyond"),
        (Loss(2.0, 0.4, 3.6, 300), False, "the mean lies beyond, the interval on both sides"),
        (Loss(0.3, -0.2, 0.8, 300), False, "the mean lies within, the interval on both sides"),
        (Loss(0.1, -0.2, 0.4, 300), False, "the whole interval keeps that"),
    ],
)
def test_fresh_inputs_are_held_against_the_goal(fresh: Loss, refuted: bool, said: str) -> None:
    told, found = confirmation(Loss(0.2, 0.0, 0.4, 500), fresh, Goals(max_loss=0.5))
    assert found is refuted and told.endswith(said)
    seen = f"{fresh.mean:.2f} points lost on 300 fresh inputs (95 % interval {fresh.low:.2f} to {fresh.high:.2f})"
    assert told.startswith(f"{seen}, 0.20 on the 500 that it was chosen by")
    without = confirmation(Loss(0.2, 0.0, 0.4, 500), fresh, Goals(max_ms=1.0))
    assert without == (f"{seen}, 0.20 on the 500 that it was chosen by", False), "no loss was asked for"


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))
def test_only_an_interval_wholly_beyond_the_goal_refutes(low: float, half: float, more: float, most: float) -> None:
    fresh = Loss(low + half, low, low + half + more, 100)
    assert confirmation(fresh, fresh, Goals(max_loss=most))[1] == (low > most)


def refuted() -> Outcome:
    return replace(outcome(), confirmed=Loss(3.0, 1.2, 4.8, 99))


def test_an_outcome_that_is_refuted_does_not_claim_the_goal(tmp_path: Path) -> None:
    bad, good = refuted(), outcome()
    assert (bad.keeps_goals, bad.refuted) == (False, True) and (good.keeps_goals, good.refuted) == (True, False)
    page = outcome_page(bad)
    assert "and fresh inputs refute it: the goals are not kept." in page and "chosen, refuted by fresh inputs" in page
    assert bad.confirmation in page and "1.20 to 4.80" in bad.confirmation and "0.5" in bad.confirmation
    assert "refute" not in outcome_page(good) and good.confirmation in outcome_page(good)
    figures = json.loads(write_outcome(bad, tmp_path)["figures"].read_bytes())
    assert figures["keeps_goals"] is False and figures["confirmation"] == bad.confirmation
    nothing = outcome({"a": 9, "b": 9, "late": 9})
    assert not nothing.keeps_goals and not nothing.refuted and nothing.confirmation == ""
    assert replace(bad, confirmed=None).keeps_goals


@pytest.mark.parametrize(("made", "code", "word"), [(refuted(), 1, "refuted"), (outcome(), 0, "fresh inputs")])
def test_the_verb_says_so_and_exits_as_for_a_goal_that_is_not_met(
    made: Outcome, code: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (word, made.confirmation) in verb._summary(made, {})
    monkeypatch.setattr("kasmina_trainer.optimize.tasks.read_task", lambda *args: None)
    monkeypatch.setattr("kasmina_trainer.optimize.optimizing.Optimizing", lambda *args, **more: Ready(made))
    assert main(["optimize", "x.pt2", "--profile", "x86-cpu", "--out", str(tmp_path / "out"), "--json"]) == code


class Ready:
    """A search that is over."""

    def __init__(self, made: Outcome) -> None:
        self.made = made

    def run(self) -> Outcome:
        return self.made
