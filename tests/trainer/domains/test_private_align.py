"""Alignment on private pairs: one pair's reach is bounded, the noise is what was paid for, and the turn still helps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kasmina_edge.errors import InputError
from kasmina_trainer.multimodal.membership import attack, how_well, judged
from kasmina_trainer.multimodal.privacy_accountant import Budget, epsilon_of, most_area
from kasmina_trainer.multimodal.private_align import PrivateTurn, align_privately, release, solve, sum_openly
from kasmina_trainer.multimodal.private_sums import (
    GRID,
    MOST_PAIRS,
    Adjacency,
    gaussian,
    noisy_cross,
    noisy_square,
    on_grid,
    reach,
    seeded,
)
from kasmina_trainer.multimodal.retrieval import recall, unit
from kasmina_trainer.multimodal.towers import WIDTH, ImageTower
from kasmina_trainer.seeds import attach_seeds, outputs_equal

ANY = arrays(np.float64, (3, 5), elements=st.floats(-1e100, 1e100))


def turned_pairs(rows: int, *, width: int = 16, noise: float = 0.05, seed: int = 0) -> tuple[Any, Any]:
    """Texts, and pictures that are the texts turned by a rotation unknown to the fit."""
    rng = np.random.default_rng((seed, 0))
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(width, width)))[0]
    texts = unit(rng.normal(size=(rows, width)))
    return unit(texts @ turn + noise * rng.normal(size=texts.shape)), texts


def contribution(image: Any, text: Any, square: float) -> Any:
    """What one pair adds to a release, in the coordinates of its norm."""
    seen, said = on_grid(image[None]), on_grid(text[None])
    both = noisy_cross(said, seen, 0.0, bytes), square * noisy_square(seen, 0.0, bytes)
    return np.concatenate([part.ravel() for part in both])


@settings(max_examples=100, deadline=None)
@given(pairs=arrays(np.float64, (4, 5), elements=st.floats(-1e100, 1e100)), square=st.floats(0, 3))
def test_no_pair_reaches_further_than_the_bound(pairs: Any, square: float) -> None:
    one = contribution(pairs[0], pairs[1], square)
    other = contribution(pairs[2], pairs[3], square)
    assert np.linalg.norm(one) <= reach("add-or-remove", square=square) * (1 + 1e-12)
    assert np.linalg.norm(one - other) <= reach("replace", square=square) * (1 + 1e-12)


def test_the_bounds_are_reached_so_that_no_noise_is_wasted() -> None:
    east, north = np.eye(5)[0], np.eye(5)[1]
    assert np.linalg.norm(contribution(east, north, 0.7)) == pytest.approx(
        reach("add-or-remove", square=0.7), rel=4 * GRID
    )
    opposite = contribution(east, north, 0.0) - contribution(east, -north, 0.0)
    assert np.linalg.norm(opposite) == pytest.approx(reach("replace"), rel=4 * GRID)


@settings(max_examples=100, deadline=None)
@given(values=ANY)
def test_vectors_on_the_grid_are_never_longer_than_1_and_point_the_same_way(values: Any) -> None:
    whole = on_grid(values)
    assert (whole == np.trunc(whole)).all()
    assert ((whole**2).sum(1) <= GRID**-2).all(), "in whole numbers: no rounding is forgiven"
    peak = np.abs(values).max(1, keepdims=True)
    even = values / np.where(peak == 0, 1, peak)
    length = np.maximum(peak * np.linalg.norm(even, axis=1, keepdims=True), 1)
    assert np.abs(whole * GRID - values / length).max() <= GRID


@given(rows=st.permutations(list(range(40))))
@settings(max_examples=30, deadline=None)
def test_the_sum_of_pairs_does_not_depend_on_their_order(rows: list[int]) -> None:
    images, texts = turned_pairs(40)
    assert (sum_openly(images[rows], texts[rows]).cross == sum_openly(images, texts).cross).all()


def test_a_sum_is_the_sum() -> None:
    images, texts = turned_pairs(500)
    assert np.abs(sum_openly(images, texts).cross - texts.T @ images).max() < 500 * 2 * GRID
    assert np.abs(sum_openly(images, texts).square - images.T @ images).max() < 500 * 2 * GRID


def test_the_noise_is_normal_and_of_the_size_that_was_paid_for() -> None:
    drawn = gaussian(400_001, seeded(3))
    assert drawn.shape == (400_001,)
    assert abs(drawn.mean()) < 0.006
    assert drawn.std() == pytest.approx(1, abs=0.004)
    for limit in (1.0, 2.0, 3.0):
        expected = math.erfc(limit / math.sqrt(2))
        assert (np.abs(drawn) > limit).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / len(drawn)))
    assert np.corrcoef(drawn[:200_000], drawn[200_001:])[0, 1] == pytest.approx(0, abs=0.01)


def test_symmetric_noise_is_drawn_once_and_smaller_off_the_diagonal() -> None:
    none = np.zeros((0, 200))
    noise = noisy_square(none, 2.0, seeded(0))
    assert (noise == noise.T).all()
    assert np.diag(noise).std() == pytest.approx(2.0, rel=0.15)
    assert noise[np.triu_indices(200, 1)].std() == pytest.approx(math.sqrt(2), rel=0.02)


def test_what_leaves_is_on_the_grid_with_or_without_a_pair() -> None:
    images, texts = turned_pairs(9)
    for rows in (9, 8, 0):
        left = release(images[:rows], texts[:rows], Budget(1.0), entropy=seeded(1))
        for part in (left.cross, left.square):
            assert (part / GRID**2 == np.rint(part / GRID**2)).all()


def test_the_strongest_attacker_comes_to_the_bound_and_not_above_it() -> None:
    """Who knows all other pairs, and which one is in question, tells no better than two normals apart by mu."""
    images, texts = turned_pairs(5, width=4)
    budget, runs = Budget(4.0), 800
    rest = sum_openly(images[:-1], texts[:-1])
    scores: dict[int, Any] = {}
    for rows in (5, 4):
        found = []
        for i in range(runs):
            left = release(images[:rows], texts[:rows], budget, entropy=seeded(10 * i + rows))
            assert left.cost is not None
            own = left.cost.square
            sums = np.concatenate([(left.cross - rest.cross).ravel(), own * (left.square - rest.square).ravel()])
            found.append(float(sums @ contribution(images[-1], texts[-1], own)))
        scores[rows] = np.array(found)
    area = float((scores[5][:, None] > scores[4][None]).mean())
    assert area == pytest.approx(most_area(budget.mu), abs=0.03)
    halved = float((scores[5][:, None] > scores[4][None] + 1.0).mean())
    assert halved < area - 0.1, "the attack is one that can fail"


def test_a_release_says_exactly_what_it_cost() -> None:
    images, texts = turned_pairs(50)
    kinds: dict[Adjacency, float] = {
        "add-or-remove": math.hypot(1, 0.7),
        "replace": math.hypot(2, math.sqrt(2) * 0.7),
    }
    for adjacency, reaches in kinds.items():
        cost = release(images, texts, Budget(3.0), adjacency=adjacency, entropy=seeded(0)).cost
        assert cost is not None
        assert cost.epsilon == pytest.approx(3.0)
        assert cost.epsilon == epsilon_of(cost.mu, 1e-5) <= 3.0 * (1 + 1e-12)
        assert cost.sigma == pytest.approx(reaches / Budget(3.0).mu)
        assert "50" not in str({**vars(cost), "mu": 0}), "the number of pairs is private"


def test_a_seed_gives_the_same_bytes_and_the_system_does_not() -> None:
    images, texts = turned_pairs(50)
    one, same = (align_privately(images, texts, Budget(4.0), entropy=seeded(5)).matrix.tobytes() for _ in range(2))
    first, second = (align_privately(images, texts, Budget(4.0)).matrix.tobytes() for _ in range(2))
    assert one == same
    assert len({one, first, second}) == 3


def test_a_turn_is_learned_and_costs_more_the_less_may_be_told() -> None:
    images, texts = turned_pairs(3000)
    fresh, said = turned_pairs(200, seed=1)
    found = {None: recall(solve(sum_openly(images, texts))(fresh), said).first}
    for epsilon in (4.0, 0.02):
        turns = [align_privately(images, texts, Budget(epsilon), entropy=seeded(i)) for i in range(3)]
        found[epsilon] = float(np.mean([recall(turn(fresh), said).first for turn in turns]))
    assert recall(fresh, said).first < 0.1, "without the turn nothing is found"
    assert found[None] > 0.98
    assert found[4.0] > 0.95
    assert found[0.02] < 0.7, "and privacy that hides everything teaches nothing"


def test_no_pairs_at_all_teach_nothing() -> None:
    empty = np.zeros((0, 16))
    images, texts = turned_pairs(300)
    bare = solve(sum_openly(empty, empty))
    assert np.allclose(bare.matrix, np.eye(16), atol=1e-6)
    noise = align_privately(empty, empty, Budget(4.0), entropy=seeded(0))
    assert recall(noise(images), texts).first < 0.1


def test_the_graft_says_what_the_turn_says_and_leaves_without_a_trace() -> None:
    torch.manual_seed(0)
    tower = ImageTower().eval()
    seeds = attach_seeds(tower)
    turn = PrivateTurn(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32), None)
    pictures = torch.rand(5, 3, 32, 32)
    before = seeds.host_hash
    turn.graft_on(seeds)
    with torch.no_grad():
        assert np.abs(unit(seeds(pictures).numpy()) - turn(tower(pictures).numpy())).max() < 1e-5
    seeds.set_intensity("site", 0.0)
    assert outputs_equal(seeds, tower, pictures)
    seeds.remove("site")
    assert outputs_equal(seeds, tower, pictures)
    assert seeds.host_hash == seeds.current_host_hash() == before
    with pytest.raises(InputError, match="64"):
        PrivateTurn(np.eye(8, dtype=np.float32), None).graft_on(seeds)


def test_attacks_find_the_members_of_an_overfitted_turn_and_not_those_of_a_private_one() -> None:
    images, texts = turned_pairs(40, width=32, noise=0.5)
    overfitted = attack(images, texts, lambda a, b, i: solve(sum_openly(a, b), pull=1e-4), fits=16)
    private = attack(images, texts, lambda a, b, i: align_privately(a, b, Budget(1.0), entropy=seeded(i)), fits=16)
    for name in ("loss", "likelihood"):
        assert overfitted[name].area > 0.99
        assert overfitted[name].hits > 0.9
        assert overfitted[name].most_area is None
        bound = private[name].most_area
        assert bound == most_area(Budget(1.0).mu)
        assert private[name].area_range[0] < bound
        assert private[name].area < 0.6


def test_scores_that_know_nothing_are_judged_as_guessing() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((16, 400)) < 0.5
    leak = judged(rng.normal(size=inside.shape), inside, mu=None, seed=0)
    assert leak.area_range[0] < 0.5 < leak.area_range[1]
    assert leak.hits == pytest.approx(0.01, abs=0.006)
    assert "named at 1% false alarms" in str(leak)
    knowing = judged(inside + 0.0, inside, mu=0.5, seed=0)
    assert (knowing.area, knowing.hits) == (1, 1)
    assert "at most" in str(knowing)


def test_how_well_is_minus_the_squared_distance() -> None:
    images, texts = turned_pairs(6)
    turn = PrivateTurn(np.eye(16, dtype=np.float32), None)
    assert how_well(turn, images, texts) == pytest.approx(-(np.linalg.norm(images - texts, axis=1) ** 2))


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), "as many"), (np.ones(4), np.ones(4), "expected"),
        (np.full((2, 4), np.nan), np.ones((2, 4)), "finite"), (np.ones((2, 0)), np.ones((2, 0)), "expected"),
        (np.zeros((MOST_PAIRS + 1, 1)), np.zeros((MOST_PAIRS + 1, 1)), "at most"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_summed_are_refused(images: Any, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        release(images, texts, Budget(1.0))


def test_settings_out_of_range_are_refused() -> None:
    images, texts = turned_pairs(10)
    with pytest.raises(InputError, match="weight"):
        release(images, texts, Budget(1.0), square=0.0)
    with pytest.raises(InputError, match="pull"):
        solve(sum_openly(images, texts), pull=0.0)
    with pytest.raises(InputError, match="adjacency"):
        reach("nobody")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="4 fits"):
        attack(images, texts, lambda a, b, i: solve(sum_openly(a, b)), fits=4)
