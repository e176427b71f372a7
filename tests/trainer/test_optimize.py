"""Choice, plan, store and search: no choice rests on what cannot be told, and nothing is made twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.tflite_models import conv_tflite

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer.optimize.candidates import MODEL as STORED_MODEL
from kasmina_trainer.optimize.candidates import RESULT, Candidate, CandidateStore, key_of
from kasmina_trainer.optimize.choosing import Goals, Loss, Point, choose, paired_loss, pareto
from kasmina_trainer.optimize.outcome import MODEL, PAGE, RECIPE, Outcome, outcome_page, write_outcome
from kasmina_trainer.optimize.recipes import Offer, Recipe, RecipeFile, mixed, offers, read_recipe, write_recipe
from kasmina_trainer.optimize.search import Cost, Found, Identity, Search
from kasmina_trainer.quantization.config import QuantizeConfig

IDENTITY = Identity("a" * 64, "b" * 64, {"numpy": "1"})
X86 = load_profile("x86-cpu")
MCU = load_profile("stm32l4r5")
FILE = conv_tflite()


def point(name: str, loss: float = 0.0, size: int = 1000, ms: float | None = 1.0, band: float | None = 0.1) -> Point:
    return Point(name, Loss(loss, loss - 0.2, loss + 0.2, 500), size, ms, band)


def recipe(name: str, **changes: object) -> Recipe:
    return Recipe(name=name, quantize=QuantizeConfig.parse({"headroom": 0.0, **changes}))


def offer(name: str, *, only_if: bool = False, **changes: object) -> Offer:
    return Offer(recipe(name, **changes), "why", only_if)


class Maker:
    """Makes candidates out of nothing; counts them."""

    def __init__(self, wrong: dict[str, int] | None = None, rows: int = 100) -> None:
        self.wrong, self.rows, self.made = wrong or {}, rows, list[str]()

    def __call__(self, asked: Recipe) -> Candidate:
        self.made.append(asked.name)
        right = tuple(i >= self.wrong.get(asked.name, 0) for i in range(self.rows))
        return Candidate(asked, FILE, right, right, 1.5, ("note",))


def searching(make: Callable[[Recipe], Candidate], store: CandidateStore | None = None, **changes: object) -> Search:
    goals = changes.pop("goals", Goals(max_loss=0.5))
    base = Search(make, lambda data: Cost(1.0, 0.1), (True,) * 100, IDENTITY, goals, store)  # type: ignore[arg-type]
    return replace(base, **changes)  # type: ignore[arg-type]


# --- choosing


def test_latencies_within_the_band_are_a_tie_that_accuracy_decides() -> None:
    found = choose([point("fast", 0.4, ms=1.0), point("right", 0.1, ms=1.15)], Goals(max_loss=0.5))
    assert found.index == 1
    assert "2 tie (latencies differ by less than the band): decided by accuracy" in found.reasons


def test_latencies_beyond_the_band_are_not() -> None:
    found = choose([point("fast", 0.4, ms=1.0), point("right", 0.1, ms=1.3)], Goals(max_loss=0.5))
    assert found.index == 0
    assert "1 of them are slower by more than the band" in found.reasons


def test_equal_accuracy_is_decided_by_size_then_by_order() -> None:
    assert choose([point("a", size=900), point("b", size=800)], Goals()).index == 1
    found = choose([point("a"), point("b")], Goals())
    assert found.index == 0
    assert any(reason.endswith("decided by order") for reason in found.reasons)


def test_an_unknown_band_decides_nothing() -> None:
    points = [point("slow", 0.0, ms=9.0, band=None), point("fast", 0.2, ms=1.0, band=None)]
    found = choose(points, Goals())
    assert found.index == 0
    assert any("no latency can be told" in r for r in found.reasons)
    assert choose([point("known", 0.2), points[0]], Goals()).index == 1, "nor against one that is known"


def test_goals_are_kept_or_the_nearest_is_told() -> None:
    points = [point("a", 0.6), point("b", 0.2, size=5000), point("c", 0.3, ms=3.0)]
    assert choose(points, Goals(0.5, 2.0, 2.0)).index is None
    assert choose(points, Goals(0.5, 2.0, 2.0)).reasons[1].startswith("nearest is b: has 5.0 kB, at most 2")
    assert choose(points, Goals(0.5, 2.0)).index == 1
    lacking = replace(points[1], fits=False, why_not="RAM: 9 bytes needed, 8 there")
    assert choose([lacking], Goals()).misses == (("RAM: 9 bytes needed, 8 there",),)


def test_a_band_that_reaches_over_the_goal_is_no_miss_but_told() -> None:
    found = choose([point("a", ms=2.1)], Goals(max_ms=2.0))
    assert found.index == 0
    assert "the latency is not proven to be at most 2 ms: its band ends at 2.31 ms" in found.reasons
    assert choose([point("a", ms=2.3)], Goals(max_ms=2.0)).index is None


def test_a_loss_whose_interval_ends_above_the_goal_is_told() -> None:
    reasons = choose([point("a", 0.4)], Goals(max_loss=0.5)).reasons
    assert any("not proven to be at most 0.5" in reason and "ends at 0.60" in reason for reason in reasons)
    assert not any("not proven" in reason for reason in choose([point("a", 0.2)], Goals(max_loss=0.5)).reasons)


POINTS = st.lists(
    st.builds(
        point, st.just("p"), st.sampled_from([0.0, 0.2, 0.4, 0.8]), st.integers(1, 4).map(lambda k: k * 1000),
        st.sampled_from([1.0, 1.1, 2.0]), st.sampled_from([0.1, 0.3]),
    ), min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(POINTS, st.sampled_from([None, 0.1, 0.5]), st.sampled_from([None, 1.5]), st.sampled_from([None, 2.5]))
def test_what_is_chosen_keeps_the_goals_and_nothing_clearly_better_does(
    points: list[Point], loss: float | None, ms: float | None, kb: float | None
) -> None:
    found = choose(points, Goals(loss, ms, kb))
    kept = [i for i, misses in enumerate(found.misses) if not misses]
    assert (found.index is None) == (not kept)
    if found.index is None:
        return
    best = points[found.index]
    assert found.index in kept
    for i in kept:
        assert not points[i].slowest_ms < best.fastest_ms, "faster beyond both bands"
        same_time = points[i].latency_ms == best.latency_ms and points[i].band == best.band
        assert not (same_time and points[i].loss.mean < best.loss.mean)


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_the_front_holds_what_nothing_beats(points: list[Point]) -> None:
    front = pareto(points)
    assert front

    def key(p: Point) -> tuple[float, float, float]:
        return p.loss.mean, float(p.size_bytes), p.latency_ms or 0.0

    for i, p in enumerate(points):
        beaten = any(all(a <= b for a, b in zip(key(q), key(p), strict=True)) and key(q) != key(p) for q in points)
        first = next(j for j, q in enumerate(points) if key(q) == key(p))
        assert (i in front) == (not beaten and first == i)


def test_paired_loss_knows_what_it_does_not_know() -> None:
    same = paired_loss([True] * 400, [True] * 400)
    assert same.mean == 0 and same.low < 0 < same.high
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        before = rng.random(300) < 0.95
        after = np.where(rng.random(300) < 0.02, ~before, before)
        expected = 100 * (0.95 * 0.02 - 0.05 * 0.02)
        found = paired_loss(before.tolist(), after.tolist())
        assert found.low < found.mean < found.high
        inside += found.low <= expected <= found.high
    assert 0.92 <= inside / 400 <= 1.0
    with pytest.raises(InputError, match="paired loss of 2 and 3 rows"):
        paired_loss([True] * 2, [True] * 3)


@pytest.mark.parametrize(("name", "value"), [("max_loss", -1.0), ("max_ms", 0.0), ("max_kb", float("nan"))])
def test_senseless_goals_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match="expected a number above 0"):
        Goals(**{name: value})


# --- recipes and the store


def test_a_target_is_offered_what_it_computes() -> None:
    eight = X86.model_copy(update={"weight_bits": (8,)})
    names = [o.recipe.name for o in offers(eight)]
    assert names[0] == "ptq mse" and names == [o.recipe.name for o in offers(eight)]
    assert not any("4-bit" in name or "pruned" in name for name in names)
    four = X86.model_copy(update={"weight_bits": (4, 8), "runtime": "LiteRT"})
    assert sum("4-bit" in o.recipe.name for o in offers(four)) == 2
    assert not any("4-bit" in o.recipe.name for o in offers(load_profile("coral-usb")))
    pruned = [o.recipe for o in offers(X86, pruning=(0.25, 0.5)) if o.recipe.prune]
    assert [r.prune for r in pruned] == [0.25, 0.5]


def test_mixed_recipes_name_what_is_not_8_bits() -> None:
    made = mixed("m", {"b": 4, "a": 8}, QuantizeConfig())
    assert made.quantize.per_layer == {"b": 4}


def recipe_file(**changes: object) -> RecipeFile:
    made = RecipeFile(
        recipe=recipe("r"), model="a" * 64, data="b" * 64, versions={"numpy": "1"}, profile="p", file="c" * 64
    )
    return made.model_copy(update=changes)


def test_a_recipe_file_comes_back_and_says_what_differs(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r.json", recipe_file())
    first = (tmp_path / "r.json").read_bytes()
    made = read_recipe(tmp_path / "r.json")
    assert made == recipe_file()
    write_recipe(tmp_path / "r.json", made)
    assert (tmp_path / "r.json").read_bytes() == first
    assert made.differences("a" * 64, "b" * 64, {"numpy": "1", "other": "2"}) == ()
    told = made.differences("d" * 64, "e" * 64, {"numpy": "2"})
    assert len(told) == 3 and "numpy is 2, the recipe was made with 1" in told[2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON"), ("{}", "field required"), ('{"extra": 1}', "r.json"),
        (json.dumps(recipe_file().model_dump(mode="json") | {"surprise": 1}), "surprise: unknown field"),
        (json.dumps(recipe_file().model_dump(mode="json") | {"file": "short"}), "file"),
    ],
)  # fmt: skip
def test_a_malformed_recipe_file_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=told):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(InputError, match="no such recipe"):
        read_recipe(tmp_path / "gone.json")


def test_a_trial_comes_back_whole(tmp_path: Path) -> None:
    store, candidate = CandidateStore(tmp_path), Maker({"r": 3}, rows=21)(recipe("r"))
    key = key_of(candidate.recipe, "a" * 64, "b" * 64, {})
    assert store.get(key, candidate.recipe) is None
    store.put(key, candidate)
    assert store.get(key, candidate.recipe) == candidate
    renamed = candidate.recipe.model_copy(update={"name": "other"})
    assert store.get(key, renamed) == replace(candidate, recipe=renamed), "a name is no work"
    assert key_of(renamed, "a" * 64, "b" * 64, {}) == key


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_trial_is_no_trial(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("store")
    store, candidate = CandidateStore(folder), Maker()(recipe("r"))
    store.put("k" * 64, candidate)
    name = data.draw(st.sampled_from([RESULT, STORED_MODEL]))
    path = folder / "kk" / ("k" * 64) / name
    body = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        path.write_bytes(body[: data.draw(st.integers(0, len(body) - 2))])
    else:
        place = data.draw(st.integers(0, len(body) - 2))
        body[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(body)
    found = store.get("k" * 64, candidate.recipe)
    assert found is None or found == candidate, (
        "a change of white space or of an escape may pass; another value may not"
    )


def test_settings_that_play_no_part_are_no_part_of_the_key() -> None:
    def key(**changes: object) -> str:
        return key_of(recipe("r", **changes), "a" * 64, "b" * 64, {})

    assert key() == key(qat_steps=7, seed=3) == key(percentile=99.0)
    assert key(method="qat") != key(method="qat", qat_steps=7)
    assert key(calibration="percentile") != key(calibration="percentile", percentile=99.0)


@pytest.mark.parametrize("what", ["recipe", "model", "data", "versions"])
def test_a_key_is_made_of_everything(what: str) -> None:
    base = {"recipe": recipe("r"), "model": "a", "data": "b", "versions": {"numpy": "1"}}
    other = {"recipe": recipe("r", equalize=True), "model": "x", "data": "x", "versions": {"numpy": "2"}}

    def key(of: dict[str, object]) -> str:
        return key_of(of["recipe"], of["model"], of["data"], of["versions"])  # type: ignore[arg-type]

    assert key(base) != key(base | {what: other[what]})


# --- the search

OFFERS = (offer("a"), offer("b", equalize=True), offer("late", only_if=True, method="qat"))


def test_what_is_not_needed_is_not_made() -> None:
    make = Maker()
    found = searching(make).run(OFFERS)
    assert make.made == ["a", "b"]
    assert found.tried[2].note == "not needed: the goals are kept without it"
    make = Maker({"a": 5, "b": 5})
    found = searching(make).run(OFFERS)
    assert make.made == ["a", "b", "late"]
    assert found.chosen is not None and found.chosen.recipe.name == "late"


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Interrupted(Maker):
        def __call__(self, asked: Recipe) -> Candidate:
            if len(self.made) == 1:
                raise KeyboardInterrupt
            return super().__call__(asked)

    first, again = Interrupted(), Maker()
    with pytest.raises(KeyboardInterrupt):
        searching(first, CandidateStore(tmp_path)).run(OFFERS)
    found = searching(again, CandidateStore(tmp_path)).run(OFFERS)
    assert (first.made, again.made) == (["a"], ["b"])
    assert [t.kept for t in found.tried] == [True, False, False]
    whole = searching(Maker()).run(OFFERS)
    assert (whole.points, whole.verdict) == (found.points, found.verdict)


def test_a_damaged_trial_is_made_again(tmp_path: Path) -> None:
    searching(Maker(), CandidateStore(tmp_path)).run(OFFERS)
    victim = sorted(tmp_path.rglob(STORED_MODEL))[0]
    victim.write_bytes(b"rubbish")
    make = Maker()
    searching(make, CandidateStore(tmp_path)).run(OFFERS)
    assert len(make.made) == 1
    make = Maker()
    searching(make, CandidateStore(tmp_path)).run(OFFERS)
    assert make.made == []


def test_a_recipe_that_fails_is_noted_and_others_go_on() -> None:
    class Failing(Maker):
        def __call__(self, asked: Recipe) -> Candidate:
            if asked.name in self.wrong:
                raise KasminaError(f"{asked.name} does not convert")
            return super().__call__(asked)

    found = searching(Failing({"a": 1})).run(OFFERS)
    assert found.tried[0].note == "a does not convert"
    assert [p.name for p in found.points] == ["b"]
    with pytest.raises(KasminaError, match="no recipe could be made: a does not convert"):
        searching(Failing({"a": 1, "b": 1, "late": 1})).run(OFFERS)


def test_a_time_limit_leaves_out_what_would_not_end_in_time() -> None:
    now = [0.0]

    class Slow(Maker):
        def __call__(self, asked: Recipe) -> Candidate:
            now[0] += 40
            return super().__call__(asked)

    make = Slow({"a": 5, "b": 5})
    found = searching(make, seconds=100.0, guess=lambda r: 30.0, clock=lambda: now[0]).run(OFFERS)
    assert make.made == ["a", "b"]
    assert found.tried[2].note == "no time: 20 s left, some 30 s needed"
    assert found.seconds == 80.0


def test_measurement_may_offer_more() -> None:
    def more(made: Sequence[Candidate]) -> Sequence[Offer]:
        assert [t.recipe.name for t in made] == ["a", "b"]
        return (offer("mixed", weight_bits=4),)

    make = Maker()
    found = searching(make, more=more).run(OFFERS)
    assert make.made == ["a", "b", "mixed"]
    assert [p.name for p in found.points] == ["a", "b", "mixed"]


def test_methods_that_failed_the_smoke_run_are_left_out() -> None:
    make = Maker({"a": 9, "b": 9})
    found = searching(make).run(OFFERS, {"qat": "smoke run failed: no"})
    assert make.made == ["a", "b"]
    assert (found.tried[0].offer.recipe.name, found.tried[0].note) == ("late", "smoke run failed: no")
    assert found.chosen is None


# --- what is left

HOSTILE = "<script>x</script>"


def outcome(wrong: dict[str, int] | None = None) -> Outcome:
    found: Found = searching(Maker(wrong)).run(OFFERS)
    return Outcome(HOSTILE, MCU, Goals(max_loss=0.5), found, 0.98, 4000, Loss(0.1, -0.2, 0.4, 99), IDENTITY)


def test_an_outcome_leaves_page_figures_recipe_and_file(tmp_path: Path) -> None:
    made = outcome()
    paths = write_outcome(made, tmp_path)
    assert set(paths) == {"model", "recipe", "page", "figures"}
    assert made.found.chosen is not None
    assert (tmp_path / MODEL).read_bytes() == made.found.chosen.data
    assert read_recipe(tmp_path / RECIPE).file == made.found.chosen.digest
    figures = json.loads(paths["figures"].read_bytes())
    assert figures["chosen"] == 0 and len(figures["points"]) == 2
    page = (tmp_path / PAGE).read_text()
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert "a was chosen of 2 recipes." in page and "Where the time goes" in page
    nothing = outcome({"a": 9, "b": 9, "late": 9})
    assert set(write_outcome(nothing, tmp_path)) == {"page", "figures"}
    assert not (tmp_path / MODEL).exists(), "an earlier search's file is not left behind"
    assert "No recipe keeps the goals." in outcome_page(nothing)


# --- a real network
