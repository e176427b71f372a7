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
from benchmarks._growth_peft import Method, fit, places_of, plan_of, removed_exactly
from benchmarks._growth_tasks import Ground, ground, known, small
from benchmarks.run import checked
from kasmina_edge.errors import InputError
from kasmina_trainer.training import TrainingSettings

SHORT = TrainingSettings(steps=3, batch=16, learning_rate=1e-2, keep=0.5)
GRAFTS = Method("grafts", SHORT, share=0.1, filters=4, norms=True, wide="conv-lora")


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


def test_recipes_keep_to_their_share_of_every_host() -> None:
    for name in ("digits", "MNIST", "1-D ECG"):
        host, shape = known(name).build(), (1, 1, 128) if name == "1-D ECG" else (1, 28, 28)
        places = places_of(host.eval(), np.zeros((1, *shape), np.float32))
        for method in (GRAFTS, *(forms[0] for own, forms in growth.PLAN.items() if own in growth.RECIPES)):
            arms, norms = plan_of(method, places)
            assert arms and norms


def test_a_recipe_that_cannot_fit_is_refused_with_the_number(place: Ground) -> None:
    places = places_of(place.host, place.clean.train[0])
    with pytest.raises(InputError, match=r"\d+ parameters"):
        plan_of(replace(GRAFTS, share=0.001), places)


def test_training_leaves_the_cell_and_the_grafts_come_out_exactly(place: Ground) -> None:
    before = copy.deepcopy(place.host.state_dict())
    fitted = fit(GRAFTS, place, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in place.host.state_dict().items())
    assert removed_exactly(fitted, place)
    other = replace(place, host=known("digits").build().eval())
    assert not removed_exactly(fitted, other)  # the check can fail


def test_learned_norms_come_back_as_grafts_that_answer_alike(place: Ground) -> None:
    alone = replace(GRAFTS, wide="", filters=0)
    whole = Method("retune", SHORT, whole="scale-bn-retune")
    x = torch.from_numpy(place.target.test[0][:64].copy())
    networks = [fit(method, place, seed=0).network.eval() for method in (alone, whole)]
    with torch.no_grad():
        grown, retuned, host = (network(x) for network in (*networks, place.host))
    torch.testing.assert_close(grown, retuned, rtol=1e-3, atol=1e-3)
    assert float((retuned - host).abs().max()) > 0.05


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


def test_a_careful_choice_takes_gain_only_where_clean_rows_are_kept() -> None:
    def tried(gain: int, loss: int) -> Cell:
        rows = {"validation clean": np.arange(100) >= loss, "validation target": np.arange(100) < gain}
        before = {"validation clean": np.ones(100, bool), "validation target": np.zeros(100, bool)}
        return Cell("digits", 0, "noise", "x", 1, 0.1, 1, 1, 1.0, 1, True, before, rows)

    forms = [tried(50, 3), tried(30, 0), tried(20, 0)]
    assert growth._best(forms, careful=True) == 1
    assert growth._best(forms, careful=False) == 0
    assert growth._best([tried(50, 3), tried(10, 2)], careful=True) == 1


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
