"""Blobs, purity, drift by schedule, and the early warning: against formulas, scikit-learn, scipy and river."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from benchmarks import _drift_bound
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.gaussian import (
    Blobs,
    DriftingBlobs,
    DriftWarning,
    Schedule,
    blob_splits,
    contingency,
    make_blobs,
    moved,
    purity,
    spread,
)
from kasmina_trainer.datasets.gaussian.describing import describe
from kasmina_trainer.datasets.gaussian.drifting import KINDS, Kind
from kasmina_trainer.datasets.gaussian.scanning import SURE, WINDOWS, MeanScan

BLOBS = make_blobs(1, blobs=3, overlap=0.05)


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 6), st.sampled_from([0.02, 0.1, 0.2]), st.floats(1, 4))
@settings(max_examples=5, deadline=None)
def test_blobs_have_the_overlap_imbalance_and_shape_that_were_asked_for(
    seed: int, count: int, dimensions: int, overlap: float, stretch: float
) -> None:
    try:
        found = make_blobs(
            seed, blobs=count, dimensions=dimensions, overlap=overlap, imbalance=stretch, anisotropy=stretch
        )
    except InputError:
        assert overlap == 0.2 and stretch > 1.5  # few of one share or shape cannot overlap so much
        reject()
    estimate = found.bayes_purity(60_000, seed + 1)
    assert abs(1 - estimate.value - overlap) < 0.002 + 4 * estimate.error
    assert found.shares.max() / found.shares.min() == pytest.approx(stretch)
    for factor in found.factors:
        values = np.linalg.eigvalsh(factor @ factor.T)
        if dimensions > 1:
            assert math.sqrt(values.max() / values.min()) == pytest.approx(stretch, rel=1e-6)
        assert np.prod(values) == pytest.approx(1.0)


def test_posteriors_are_those_of_the_textbook() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy, the oracle of densities, is not installed")
    found = make_blobs(5, blobs=4, dimensions=3, imbalance=5, anisotropy=3)
    x, _ = found.draw(200, np.random.default_rng(0))
    densities = np.stack(
        [
            share * stats.multivariate_normal(mean, factor @ factor.T).pdf(x.astype(np.float64))
            for mean, factor, share in zip(found.means, found.factors, found.shares, strict=True)
        ],
        1,
    )
    wanted = densities / densities.sum(1, keepdims=True)
    assert np.allclose(found.posterior(x), wanted, atol=1e-9)
    assert np.array_equal(found.best(x), wanted.argmax(1))


def test_the_purity_of_two_round_blobs_is_the_normal_integral() -> None:
    for apart in (1.0, 2.0, 4.0):
        two = Blobs(np.array([[0.0, 0.0], [apart, 0.0]]), np.stack([np.eye(2)] * 2), np.array([0.5, 0.5]))
        wanted = 0.5 * math.erfc(-apart / 2 / math.sqrt(2))
        estimate = two.bayes_purity(50_000, 3)
        assert abs(estimate.value - wanted) < 4 * estimate.error
        x, y = two.draw(50_000, np.random.default_rng(4))
        assert abs(purity(two.best(x), y) - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / len(y))


def test_the_stated_error_is_the_spread_over_seeds() -> None:
    many = [BLOBS.bayes_purity(2000, seed) for seed in range(200)]
    assert np.std([e.value for e in many]) == pytest.approx(np.mean([e.error for e in many]), rel=0.2)


def test_no_clustering_by_position_beats_the_best_purity() -> None:
    """Cells of any fineness, judged on points of their own, stay below; cells judged on few points do not."""
    estimate = BLOBS.bayes_purity()
    x, y = BLOBS.draw(200_000, np.random.default_rng(0))
    cells = np.floor(x / 0.5).astype(np.int64) @ np.array([1000, 1])
    assert purity(cells, y) < estimate.value + 4 * estimate.error + 0.002
    assert purity(np.arange(50), y[:50]) == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60), st.permutations(range(5)))
@settings(max_examples=60, deadline=None)
def test_purity_is_a_share_that_names_do_not_change(pairs: list[tuple[int, int]], names: list[int]) -> None:
    clusters, classes = np.array(pairs).T
    found = purity(clusters, classes)
    assert np.unique(classes, return_counts=True)[1].max() / len(classes) <= found + 1e-12 <= 1.0 + 1e-12
    assert purity(np.array(names)[clusters], classes) == found
    table = contingency(clusters, classes)
    assert table.sum() == len(classes)


def test_the_table_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics.cluster")
    rng = np.random.default_rng(0)
    clusters, classes = rng.integers(0, 5, 300), rng.integers(0, 4, 300)
    theirs = metrics.contingency_matrix(classes, clusters).T
    assert np.array_equal(contingency(clusters, classes), theirs)
    assert purity(clusters, classes) == theirs.max(1).sum() / 300


def test_parts_are_seeded_and_share_no_point() -> None:
    splits = blob_splits(BLOBS, 4, rows=(500, 200, 300))
    rows = [tuple(r) for x, _ in (splits.train, splits.validation, splits.test) for r in x.tolist()]
    assert len(set(rows)) == 1000 and np.array_equal(
        blob_splits(BLOBS, 4).test[0][:9], blob_splits(BLOBS, 4).test[0][:9]
    )
    assert not np.array_equal(blob_splits(BLOBS, 4).test[0], blob_splits(BLOBS, 5).test[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_follows_its_schedule_and_is_the_same_in_blocks(kind: Kind) -> None:
    drifting = DriftingBlobs(BLOBS, moved(BLOBS, 30.0, 1), Schedule(kind, 3000, 4000))
    whole = drifting.whole(12_000, 7)
    blocks = list(drifting.stream(12_000, 7))
    assert len(blocks) == 3 and np.array_equal(np.concatenate([b.x for b in blocks]), whole.x)
    assert np.array_equal(whole.x[:3000], DriftingBlobs(BLOBS, BLOBS, Schedule("none")).whole(3000, 7).x[:3000])
    home = np.linalg.norm(whole.x - BLOBS.means[whole.y], axis=1) > 12  # 30 away, or not
    late = home[9000:11_000].mean()
    early, middle = home[:3000].mean(), home[4500:5500].mean()
    assert early == 0
    if kind == "none":
        assert home.mean() == 0
    elif kind == "sudden":
        assert home[3000:].mean() == 1
    elif kind == "gradual":
        assert 0.3 < middle < 0.7 and late == 1
    elif kind == "incremental":
        assert home[3000:4000].mean() < 0.1 and late == 1
    else:
        assert home[3000:7000].mean() == 1 and home[7000:11_000].mean() == 0 and home[11_000:].mean() == 1


def test_accuracy_along_a_drift_is_that_of_the_stream() -> None:
    for kind in ("gradual", "incremental"):
        drifting = DriftingBlobs(BLOBS, moved(BLOBS, 2.0, 2), Schedule("none"))
        drifting = DriftingBlobs(drifting.before, drifting.after, Schedule(kind, 0, 40_000))
        block = drifting.whole(40_000, 3)
        for low in (0, 18_000, 38_000):
            some = slice(low, low + 2000)
            seen = float((BLOBS.best(block.x[some]) == block.y[some]).mean())
            assert abs(seen - drifting.accuracy(BLOBS.best, (low + 1000) / 40_000)) < 0.03


def test_lines_are_those_of_chi_square_where_that_is_the_limit() -> None:
    """Long windows of normal vectors, a large reference: the exact quantile; false alarms asked for ten times as rare
    cost each line the same."""
    stats = pytest.importorskip("scipy.stats", reason="scipy, the oracle of distributions, is not installed")
    reference = np.random.default_rng(0).normal(0.0, 1.0, (20_000, 6))
    scan, rarer = MeanScan(reference, samples=1e8), MeanScan(reference, samples=1e9)
    assert set(scan.lines) == set(WINDOWS)
    chance = 0.99 / sum(w >= SURE for w in WINDOWS) * 1024 / 1e8  # a look in 1,024 samples, as long as the window by 16
    assert scan.lines[16384] == pytest.approx(stats.chi2.isf(chance, 6), rel=0.01)
    assert all(scan.lines[w] < rarer.lines[w] < scan.lines[w] + 8 for w in WINDOWS)
    assert scan.lines[WINDOWS[0]] > scan.lines[SURE] > scan.lines[16384]


def test_false_alarms_come_no_oftener_than_asked_for() -> None:
    """Asked for one in 10,000 samples, so that there is something to count, of vectors with a heavy tail."""
    rng, alarms, looked = np.random.default_rng(1), 0, 0
    for _ in range(12):
        vectors = rng.exponential(1.0, (24_000, 3)) * (rng.random((24_000, 1)) < 0.3)
        scan = MeanScan(vectors[:4000], samples=1e4)
        found = scan.update(vectors[4000:])
        looked += 20_000 if found is None else found.row
        alarms += found is not None
    assert 1 <= alarms <= 2 * looked / 1e4  # a scan that never speaks would prove nothing


def test_one_far_vector_is_no_drift() -> None:
    vectors = np.random.default_rng(4).normal(0.0, 1.0, (20_000, 3))
    vectors[12_000, 0] = 100.0
    assert MeanScan(vectors[:4000]).update(vectors[4000:]) is None
    control = MeanScan(vectors[:4000])
    control._longest = math.inf  # windows of any length take vectors as they are
    found = control.update(vectors[4000:])
    assert found is not None and found.window == WINDOWS[0] and 8000 <= found.row < 8000 + WINDOWS[0]


def test_who_knows_both_flags_by_the_textbook_and_seldom_without_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    drifting = DriftingBlobs(BLOBS, moved(BLOBS, 2.0, 0), Schedule("sudden", 1000))
    x = drifting.whole(1200, 3).x
    densities = [np.logaddexp.reduce(b.log_densities(x), axis=1) for b in (drifting.after, drifting.before)]
    evidence, at = 0.0, -1
    while evidence < 1e6:
        at += 1
        evidence = (evidence + 1) * math.exp(densities[0][at] - densities[1][at])
    with monkeypatch.context() as patch:
        patch.setattr(_drift_bound, "EVERY", 1)
        assert _drift_bound.earliest(drifting, x, 1e6) == at and 1000 <= at < 1060
    for kind in ("gradual", "incremental"):
        slow = DriftingBlobs(BLOBS, drifting.after, Schedule(kind, 0, 400))
        calm = [DriftingBlobs(BLOBS, BLOBS, Schedule("none")).whole(1500, seed).x for seed in range(12)]
        first = [_drift_bound.earliest(slow, part, 1e3) for part in calm]
        seen = sum(1500 if at is None else at + 1 for at in first)
        assert 1 <= sum(at is not None for at in first) <= 2 * seen / 1e3


def test_the_scan_finds_a_creeping_mean_and_tells_which() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(0.0, 1.0, (30_000, 5)) + 0.5 * rng.normal(0.0, 1.0, (30_000, 1))
    scan = MeanScan(vectors[:4000])
    vectors[10_000:, 3] += np.linspace(0.0, 1.0, 20_000) * vectors[:, 3].std()
    found = scan.update(vectors[4000:])
    assert found is not None and 6000 < found.row < 6000 + 8000 and found.window >= 512
    assert np.abs(found.shift / scan.scale).argmax() == 3
    at = np.arange(found.row - found.window, found.row) - 6000
    assert found.shift[3] / scan.scale[3] == pytest.approx(np.maximum(at, 0).mean() / 20_000, abs=0.1)


def test_clusters_are_described_as_they_are() -> None:
    x, _ = BLOBS.draw(20_000, np.random.default_rng(3))
    found = describe(x.astype(np.float64), BLOBS.best(x), 100)
    assert np.abs(found.means - BLOBS.means).max() < 0.1  # answers cut the blobs off; the fit undoes that
    told = found.tell(x.astype(np.float64), BLOBS.best(x))
    assert told.shape == (20_000, len(found.names)) and found.products
    assert np.isfinite(found.tell(np.full((1, 2), 1e6), np.zeros(1, np.int64))).all()
    one = describe(x.astype(np.float64), np.zeros(20_000, np.int64), 100)
    assert np.allclose(one.means[0], x.mean(0), atol=1e-6)
    wide, _ = make_blobs(0, blobs=4, dimensions=8).draw(1000, np.random.default_rng(0))
    assert not describe(wide.astype(np.float64), np.zeros(1000, np.int64), 100).products


def _warning(blobs: Blobs) -> DriftWarning:
    x, _ = blob_splits(blobs, 9).train
    return DriftWarning(x, blobs.best(x))


def test_sudden_drift_is_seen_within_a_hundred_samples_and_nothing_before() -> None:
    for seed in range(3):
        block = DriftingBlobs(BLOBS, moved(BLOBS, 2.0, seed), Schedule("sudden", 5000)).whole(5200, seed)
        alarms = _warning(BLOBS).update(block.x, BLOBS.best(block.x))
        assert alarms and 5000 <= alarms[0].sample < 5100, (seed, alarms[:1])
        assert [a.sample for a in alarms] == sorted(a.sample for a in alarms)


def test_incremental_drift_is_flagged_before_five_points_are_lost() -> None:
    drifting = DriftingBlobs(BLOBS, moved(BLOBS, 2.0, 1), Schedule("incremental", 2000, 20_000))
    block = drifting.whole(22_000, 1)
    first = _warning(BLOBS).update(block.x, BLOBS.best(block.x))[0].sample
    lost = drifting.accuracy(BLOBS.best, 0.0) - drifting.accuracy(BLOBS.best, float(block.share[first]))
    assert first >= 2000 and lost < 0.05 < drifting.accuracy(BLOBS.best, 0.0) - drifting.accuracy(BLOBS.best, 1.0)


@pytest.mark.parametrize("after", ["spread", "one blob", "shares"])
def test_wider_blobs_one_blob_alone_and_other_shares_are_seen(after: str) -> None:
    other = {
        "spread": spread(BLOBS, 1.5),
        "one blob": moved(BLOBS, 3.0, 0, only=2),
        "shares": Blobs(BLOBS.means, BLOBS.factors, np.array([0.6, 0.3, 0.1])),
    }[after]
    block = DriftingBlobs(BLOBS, other, Schedule("sudden", 2000)).whole(4000, 1)
    alarms = _warning(BLOBS).update(block.x, BLOBS.best(block.x))
    assert alarms and 2000 <= alarms[0].sample < 2400
    if after == "shares":
        assert {a.quantity for a in alarms} <= {"share", "place 0", "place 1"}, alarms
    if after == "one blob":
        assert alarms[0].cluster in (2, -1)


def test_blocks_of_any_size_give_the_same_alarms_and_bad_points_none() -> None:
    """New after 1,000 samples, old after 4,000, new after 7,000: after an alarm what comes is the next reference."""
    block = DriftingBlobs(BLOBS, moved(BLOBS, 2.0, 0), Schedule("recurring", 1000, 3000)).whole(8000, 0)
    answers = BLOBS.best(block.x)
    whole, pieces = _warning(BLOBS), _warning(BLOBS)
    wanted = whole.update(block.x, answers)
    cuts = [0, 1, 700, 1003, 1011, 3000, 4090, 8000]
    found = [a for i, j in pairwise(cuts) for a in pieces.update(block.x[i:j], answers[i:j])]
    assert found == wanted and [a.sample // 100 for a in wanted] == [10, 40, 70]
    holes = block.x.copy()
    holes[::5] = np.nan
    late = [a.sample - b.sample for a, b in zip(_warning(BLOBS).update(holes, answers), wanted, strict=True)]
    assert all(-16 <= more < 100 for more in late)
    broken = np.full((500, 2), np.nan, np.float32)
    calm = _warning(BLOBS)
    assert calm.update(broken, np.zeros(500, np.int64)) == [] and calm.seen == 500
    with pytest.raises(InputError, match="expected"):
        calm.update(block.x[:, :1], answers)
    with pytest.raises(InputError, match="100 or more"):
        DriftWarning(block.x[:50], answers[:50])


def test_nothing_is_said_of_thirty_thousand_samples_without_drift() -> None:
    warning = _warning(BLOBS)
    for block in DriftingBlobs(BLOBS, BLOBS, Schedule("none")).stream(30_000, 11):
        assert warning.update(block.x, BLOBS.best(block.x)) == []


@pytest.mark.slow
def test_nothing_is_said_of_three_hundred_thousand_samples_without_drift() -> None:
    warning = _warning(BLOBS)
    for block in DriftingBlobs(BLOBS, BLOBS, Schedule("none")).stream(300_000, 12):
        assert warning.update(block.x, BLOBS.best(block.x)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blobs": 1}, "blobs 1: expected 2 to 50"),
        ({"overlap": 0.5}, "overlap 0.5"),
        ({"imbalance": 100.0, "blobs": 2, "overlap": 0.1}, "always answering the largest blob"),
        ({"imbalance": 3.0, "anisotropy": 3.0, "blobs": 2, "overlap": 0.2}, "at one place, have 0.1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make_blobs(0, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected one of none"):
        Schedule("slowly")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="equal shapes"):
        DriftingBlobs(BLOBS, make_blobs(0, blobs=2), Schedule("none"))
