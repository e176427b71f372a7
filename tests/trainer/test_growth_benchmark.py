"""The growth benchmark: its quick form goes the whole way, and its intervals say what they should."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import growth, growth_overhead
from benchmarks._growth_bounds import Rows, interval, mean_in_points, ratio_of_sums
from benchmarks._growth_cells import Cell, _packed, _unpacked, judged
from benchmarks._growth_peft import Method, candidate_of, fit, removed_exactly
from benchmarks._growth_tasks import Ground, ground, known, small
from benchmarks.run import checked
from kasmina_edge.errors import InputError
from kasmina_trainer.evolve import Parameters, evolve, sites_for
from kasmina_trainer.evolve.arms import SHIPPED_AS
from kasmina_trainer.evolve.recipes import RECIPE_SETTINGS
from kasmina_trainer.seeds import attach_seeds
from kasmina_trainer.training import TrainingSettings

SHORT = TrainingSettings(steps=3, batch=16, learning_rate=1e-2, keep=0.5)
GRAFTS = Method("grafts", SHORT, share=0.1, recipe="strong")
SWITCHED = Method("switched", SHORT, share=0.1, recipe="switched-wide")


@pytest.fixture(scope="module")
def place() -> Ground:
    return ground(small(known("digits"), steps=20), 0, "contrast", most=200)


def test_the_quick_form_states_every_figure_and_judges_removal() -> None:
    found = [checked(row, "growth") for row in growth.rows(quick=True)]
    names = [row["name"] for row in found]
    assert len(names) == len(set(names))
    for word in (
        "10 %",
        "2 %",
        "BN retune",
        "LoRA alone",
        "adapters alone",
        "training time",
        "peak memory",
        "clean loss",
    ):
        assert any(word in name for name in names), word
    assert all(np.isfinite(row["measured"]) for row in found)
    judged_rows = [row for row in found if row["target"] is not None]
    assert [row["name"] for row in judged_rows] == ["growth: removal bit-identical"]
    assert judged_rows[0]["measured"] == 1.0


def test_methods_keep_to_their_share_of_every_host() -> None:
    grafts = [form for forms in growth.PLAN.values() for form in forms if not form.whole]
    for name in ("digits", "MNIST", "1-D ECG"):
        host, shape = known(name).build().eval(), (1, 1, 128) if name == "1-D ECG" else (1, 28, 28)
        size = sum(p.numel() for p in host.parameters())
        for method in (GRAFTS, *grafts):
            arms, sites = candidate_of(method, host, torch.zeros(1, *shape))
            seeds = attach_seeds(host, sites, example=torch.zeros(1, *shape))
            for arm in arms:
                for site in arm.sites:
                    seeds.graft(site, SHIPPED_AS.get(arm.blueprint, arm.blueprint), config=arm.config)
            measured = sum(v.numel() for k, v in seeds.graft_state().items() if k.endswith(("toward", "start")))
            grown = sum(p.numel() for p in seeds.graft_parameters()) + measured
            assert 0.005 * size < grown <= method.share * size, (name, method.recipe or method.wide)


def test_a_recipe_trains_as_it_ships(place: Ground) -> None:
    """The benchmark's training and `evolve`'s, on the same rows, give the same bytes."""
    for name, recipe in (("two", "switched"), ("two", "light")):
        method = Method(name, replace(SHORT, shift=place.task.settings.shift), share=0.02, recipe=recipe)
        measured = fit(method, place, seed=0)
        example = torch.from_numpy(place.clean.train[0][:1].copy())
        seeds = attach_seeds(place.host, sites_for(recipe, place.host, example), example=example)
        budget = Parameters(sum(graft.parameters for graft in measured.network.grafts))
        grown = evolve(
            seeds, train=place.clean.train, target=place.target.train, blueprint=recipe, budget=budget, rival=False,
            holdout_clean=place.clean.validation, holdout_target=place.target.validation, settings=method.settings,
        )  # fmt: skip
        mine, theirs = measured.network.graft_state(), grown.network.graft_state()
        assert list(mine) == list(theirs) and all(torch.equal(value, theirs[key]) for key, value in mine.items())
    shipped = [form for name in growth.RECIPES for form in growth.PLAN[name]]
    assert shipped and all(form.settings == RECIPE_SETTINGS[form.recipe] for form in shipped)


def test_no_recipe_takes_more_steps_or_rows_than_full_fine_tuning() -> None:
    full = growth.PLAN[growth.FULL][0].settings
    for form in (form for forms in growth.PLAN.values() for form in forms):
        assert form.settings.steps <= full.steps and form.settings.batch <= full.batch


def test_a_recipe_that_cannot_fit_is_refused_with_the_number(place: Ground) -> None:
    example = torch.from_numpy(place.clean.train[0][:1].copy())
    for method in (GRAFTS, SWITCHED):
        with pytest.raises(InputError, match=r"\d+ parameters"):
            candidate_of(replace(method, share=0.0005), place.host, example)


def test_training_leaves_the_cell_and_the_grafts_come_out_exactly(place: Ground) -> None:
    before = copy.deepcopy(place.host.state_dict())
    fitted = fit(GRAFTS, place, seed=0)
    assert removed_exactly(fitted, place)
    fitted = fit(SWITCHED, place, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in place.host.state_dict().items())
    assert removed_exactly(fitted, place)
    other = replace(place, host=known("digits").build().eval())
    assert not removed_exactly(fitted, other)  # the check can fail


def test_cells_survive_their_file(place: Ground) -> None:
    made = judged(place, GRAFTS)
    back = _unpacked(_packed(made))
    for part, rows in made.after.items():
        np.testing.assert_array_equal(back.after[part], rows)
    assert replace(back, before={}, after={}) == replace(made, before={}, after={})


def line(host: int, gains: np.ndarray, rows: int | None = None) -> Rows:
    return Rows(("digits", host), ("digits", host if rows is None else rows), gains.astype(np.int8))


def test_a_known_share_lies_inside_and_equal_methods_do_not_differ() -> None:
    rng = np.random.default_rng(0)
    cells = []
    for host in range(5):
        for _ in range(3):
            full = rng.random(500) < 0.5
            cells.append(line(host, np.stack([full & (rng.random(500) < 0.8), full])))
    share = interval(cells, ratio_of_sums, draws=300)
    assert share.low < 0.8 < share.high
    assert share.high - share.low < 0.1
    same = [line(each.cluster[1], each.values[:1] - each.values[:1]) for each in cells]
    assert interval(same, mean_in_points, draws=50).low == 0.0  # 0 is not above 0: no win is claimed


def test_hosts_that_differ_widen_the_interval_more_than_kinds_do() -> None:
    def width(of_host: bool) -> float:
        cells = [
            line(host, np.full((1, 200), (host if of_host else kind) % 2), rows=0)
            for host in range(6)
            for kind in range(6)
        ]
        found = interval(cells, mean_in_points, draws=400)
        return found.high - found.low

    assert width(of_host=True) > 1.5 * width(of_host=False)


def test_a_recipe_is_chosen_by_clean_rows_once_it_gains_enough() -> None:
    def tried(gain: int, loss: int) -> Cell:
        rows = {"validation clean": np.arange(100) >= loss, "validation target": np.arange(100) < gain}
        before = {"validation clean": np.ones(100, bool), "validation target": np.zeros(100, bool)}
        return Cell("digits", 0, "noise", "x", 1, 0.1, 1, 1, 1.0, 1, True, before, rows)

    forms = [[tried(50, 3), tried(40, 0)], [tried(30, 0), tried(45, 1)], [tried(20, 0), tried(20, 0)]]
    assert growth._best(forms) == 0, "a rate: by gain alone"
    assert growth._best(forms, 70.0) == 1, "the first two gain enough, and the second loses less"
    assert growth._best(forms, 80.0) == 0
    assert growth._best(forms, 30.0) == 2
    assert growth._best(forms, 99.0) == 0, "none gains enough"


def test_overheads_are_measured_in_turns_and_a_slower_side_shows() -> None:
    def work(amount: int) -> float:
        return float(np.linalg.norm(np.arange(amount, dtype=np.float64)))

    alike = growth_overhead.in_turns(lambda: work(20000), lambda: work(20000), 30, 3)
    slower = growth_overhead.in_turns(lambda: work(20000), lambda: work(200000), 30, 3)
    assert growth_overhead.median_interval(slower)[0] > growth_overhead.median_interval(alike)[1]


def test_the_quick_form_of_the_overheads() -> None:
    found = [checked(row, "growth_overhead") for row in growth_overhead.rows(quick=True)]
    assert len(found) == 7
    assert all(row["target"] is None and 0 < row["measured"] < np.inf for row in found)
