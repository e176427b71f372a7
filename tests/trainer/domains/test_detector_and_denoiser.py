"""The detector against known distances and a network that learned something; the denoiser against known cases."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.safety.input_check import InputCheck
from kasmina_trainer.adversarial.attacks import pgd
from kasmina_trainer.adversarial.denoiser import (
    DenoiserSettings,
    evaluate_denoiser,
    restored,
    train_denoiser,
)
from kasmina_trainer.adversarial.detector import (
    WithStatistics,
    alarm_of,
    auroc,
    fit_check,
    score_of,
    statistics_of,
)
from kasmina_trainer.adversarial.mnist_c import corrupt
from kasmina_trainer.adversarial.pictures import Images
from kasmina_trainer.adversarial.quality import psnr, ssim
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.training import TrainingSettings, accuracy, as_tensors, train


class Small(nn.Module):
    """Two strided convolutions; learns bars and rings in a second."""

    input_shape = (1, 28, 28)
    seed_sites = ("input", "second")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 5, 4, 2), nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to (N, 4)."""
        x = torch.relu(self.second(torch.relu(self.first(x))))
        logits: torch.Tensor = self.head(x.mean((2, 3), keepdim=True).flatten(1))
        return logits


def shapes(count: int, seed: int) -> Samples:
    """Bars across and down, rings, and crosses, somewhere."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:28, 0:28]
    y = rng.integers(0, 4, count)
    x = np.empty((count, 1, 28, 28), np.float32)
    for at, kind in enumerate(y):
        down, across = rows - rng.uniform(11, 17), columns - rng.uniform(11, 17)
        slanted = np.minimum(np.abs(down - across), np.abs(down + across)) / 1.4
        bars = np.abs(down) + 0.1 * np.abs(across), np.abs(across) + 0.1 * np.abs(down)
        away = (*bars, np.abs(np.hypot(down, across) - 7), slanted)[kind]
        x[at, 0] = np.clip(2 - away, 0, 1) * (np.hypot(down, across) < 10)
    return x, y


@cache
def host() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Small()
    settings = TrainingSettings(steps=150, batch=64, learning_rate=1e-2)
    train(network, list(network.parameters()), [as_tensors(shapes(1000, 0), "cpu")], settings=settings, seed=0)
    return network.eval()


@cache
def guarded() -> tuple[WithStatistics, InputCheck]:
    network = WithStatistics(host(), ("first", "second"))
    known = shapes(600, 1)
    check = fit_check(statistics_of(network, known[0]), known[1], statistics_of(network, shapes(600, 2)[0]))
    return network, check


def test_scores_are_mahalanobis_distances_to_the_nearest_class() -> None:
    rng = np.random.default_rng(0)
    spread, middles = np.diag([1.0, 4.0, 0.25]), np.array([[0, 0, 0], [9.0, 0, 0]])
    y = rng.integers(0, 2, 20_000)
    good = middles[y] + rng.normal(size=(len(y), 3)) @ np.sqrt(spread)
    check = fit_check(good[:10_000], y[:10_000], good[10_000:], shrink=0.0, false_alarms=0.02)
    probes = np.array([[0, 0, 0], [9, 2, 0], [-3, 0, 0], [0, 0, 2.0]])
    known = np.array([0, 1 / 3, 9 / 3, 16 / 3])
    np.testing.assert_allclose(check.scores(probes), known, atol=0.12)
    assert check.scores(good).mean() == pytest.approx(1, abs=0.03)
    assert check.alarms(good[10_000:]).mean() == pytest.approx(0.02, abs=1e-3)
    assert check.alarms(np.array([[4.5, 0, 0]])).all()  # between two classes is near neither
    assert check.alarms(np.array([[np.nan, 0, 0]])).all()  # what is no number is not usual


def test_a_check_travels_as_bytes_and_damaged_ones_are_refused() -> None:
    _, check = guarded()
    data = check.to_bytes()
    back = InputCheck.from_bytes(data, where="check")
    assert back.to_bytes() == data and back.threshold == check.threshold
    statistics = statistics_of(guarded()[0], shapes(50, 5)[0])
    np.testing.assert_allclose(back.scores(statistics), check.scores(statistics), rtol=1e-4)
    with pytest.raises(BundleError, match="check: "):
        InputCheck.from_bytes(data[:-9], where="check")
    from kasmina_edge.contracts.arrays import pack_arrays

    with pytest.raises(InputError, match="holds x; expected centres"):
        InputCheck.from_bytes(pack_arrays({"x": np.zeros(2)}), where="check")
    for changed in ({"threshold": -1.0}, {"mean": np.zeros(3)}, {"centres": np.full_like(check.centres, np.nan)}):
        with pytest.raises(InputError, match="input check"):
            InputCheck(**{**vars(check), **changed})
    with pytest.raises(InputError, match=r"expected \(N, 24\)"):
        check.scores(np.zeros((2, 3)))


def test_corrupted_pictures_are_told_and_held_out_good_ones_are_not() -> None:
    network, check = guarded()
    good = check.scores(statistics_of(network, shapes(600, 3)[0]))
    assert (good > check.threshold).mean() < 0.04
    for kind in ("impulse-noise", "fog", "stripe", "brightness"):
        wrong = check.scores(statistics_of(network, corrupt(shapes(300, 4)[0], kind)))
        assert auroc(good, wrong) > 0.95, kind
    other = check.scores(statistics_of(network, shapes(300, 7)[0]))
    assert 0.4 < auroc(good, other) < 0.6  # good against good tells nothing


def test_statistics_are_channel_means_and_leave_the_answer_alone() -> None:
    network, _ = guarded()
    x = torch.from_numpy(shapes(5, 6)[0])
    with torch.no_grad():
        logits, statistics = network(x)
        assert torch.equal(logits, host()(x)) and statistics.shape == (5, 24)
        torch.testing.assert_close(statistics[:, :8], host().first(x).mean((2, 3)))  # type: ignore[union-attr, operator]
        network.network(x)  # the inner network asked by itself leaves nothing behind
        assert torch.equal(network(x)[1], statistics)
    with pytest.raises(InputError, match="third"):
        WithStatistics(host(), ("first", "third"))


def test_an_attacker_who_knows_the_detector_is_seen_less_than_one_who_does_not() -> None:
    network, check = guarded()
    x, y = shapes(80, 8)
    score = score_of(check, network)
    with torch.no_grad():
        np.testing.assert_allclose(
            score(torch.from_numpy(x)).numpy(), check.scores(statistics_of(network, x)), rtol=5e-3, atol=5e-3
        )
    blind = pgd(host(), x, y, 0.15, steps=15)
    seeing = pgd(host(), x, y, 0.15, steps=15, penalty=score, weight=0.1)
    both = blind.fooled & seeing.fooled
    assert both.sum() > 10
    price = [np.median(check.scores(statistics_of(network, found.x[both]))) for found in (blind, seeing)]
    assert price[1] < 0.7 * price[0]


def test_an_attacker_cares_for_nothing_below_the_alarm() -> None:
    network, check = guarded()
    x, y = shapes(200, 8)
    alarm = alarm_of(check, network, room=1.0)
    with torch.no_grad():
        above = alarm(torch.from_numpy(x)).numpy()
    scores = check.scores(statistics_of(network, x))
    np.testing.assert_allclose(above, np.maximum(scores - check.threshold, 0), rtol=5e-3, atol=5e-3)
    assert (above == 0).any()
    plain = pgd(host(), x, y, 0.2, steps=15, restarts=0)
    careful = pgd(host(), x, y, 0.2, steps=15, restarts=0, penalty=alarm_of(check, network), weight=1.0)
    slipped = [(found.fooled & ~check.alarms(statistics_of(network, found.x))).sum() for found in (plain, careful)]
    assert slipped[1] > 1.4 * slipped[0]
    with pytest.raises(InputError, match="room 0"):
        alarm_of(check, network, room=0)


def test_auroc_is_that_of_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(1)
    good, wrong = rng.integers(0, 9, 300), rng.integers(3, 12, 200)
    known = roc_auc_score(np.repeat([0, 1], [300, 200]), np.concatenate([good, wrong]))
    assert auroc(good, wrong) == pytest.approx(known)
    with pytest.raises(InputError, match="0 wrong scores"):
        auroc(good, wrong[:0])


def test_too_little_to_fit_a_check_is_refused() -> None:
    with pytest.raises(InputError, match="too few or unequal"):
        fit_check(np.zeros((4, 8)), np.zeros(4, int), np.zeros((4, 8)))
    with pytest.raises(InputError, match=r"false alarms 1\.5"):
        fit_check(np.eye(9)[:, :4], np.zeros(9, int), np.zeros((4, 4)), false_alarms=1.5)


def test_psnr_and_ssim_of_cases_that_can_be_worked_out() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 0.8, (6, 1, 28, 28)).astype(np.float32)
    assert np.isinf(psnr(x, x)).all() and np.allclose(ssim(x, x), 1)
    np.testing.assert_allclose(psnr(x + np.float32(0.1), x), 20, atol=1e-4)  # an error of a tenth everywhere
    flat = np.full_like(x, 0.5)
    np.testing.assert_allclose(
        ssim(flat + np.float32(0.25), flat), (2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4), atol=1e-6
    )
    assert ssim(1 - x, x).max() < -0.5 < 0 < ssim(np.clip(x + 0.05, 0, 1).astype(np.float32), x).min()
    noisy = [np.clip(x + rng.normal(0, s, x.shape), 0, 1).astype(np.float32) for s in (0.02, 0.1, 0.3)]
    assert (
        np.diff([ssim(n, x).mean() for n in noisy]).max() < 0 and np.diff([psnr(n, x).mean() for n in noisy]).max() < 0
    )
    with pytest.raises(InputError, match="equal shapes"):
        psnr(x, x[:2])
    with pytest.raises(InputError, match="11 pixels"):
        ssim(x[..., :8, :8], x[..., :8, :8])


def test_ssim_is_what_scikit_image_gave() -> None:
    """Of scikit-image 0.26: structural_similarity with the settings of the test below."""
    x = shapes(4, 9)[0]
    found = ssim(corrupt(x, "impulse-noise"), x)
    np.testing.assert_allclose(found, [0.314356, 0.508457, 0.501507, 0.298298], atol=1e-5)


def test_ssim_is_scikit_images() -> None:
    metrics = pytest.importorskip(
        "skimage.metrics", reason="the oracle scikit-image is not installed: pip install -e .[oracles]"
    )
    x = shapes(4, 9)[0]
    noisy = corrupt(x, "impulse-noise")
    for a, b, ours in zip(noisy[:, 0], x[:, 0], ssim(noisy, x), strict=True):
        theirs = metrics.structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours == pytest.approx(theirs, abs=1e-5)


def with_filter() -> SeededNetwork:
    seeds = attach_seeds(host())
    seeds.graft("input", "input-filter", config={"hidden": 8})
    return seeds


QUICK = DenoiserSettings(steps=60, batch=32, looks=1)


def test_a_denoising_graft_wins_back_what_noise_took_and_can_be_removed() -> None:
    seeds, samples = with_filter(), shapes(600, 10)
    losses = train_denoiser(seeds, samples, kinds=("impulse-noise",), settings=QUICK)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    clean, noisy = evaluate_denoiser(seeds, shapes(300, 11), kinds=("impulse-noise",), seed=5)
    assert clean.kind == "clean" and clean.clean - clean.after < 0.05 and math.isinf(clean.psnr_before)
    assert noisy.after > noisy.before + 0.2 and noisy.regained > 0.5
    assert noisy.psnr_after > noisy.psnr_before + 2 and noisy.ssim_after > noisy.ssim_before
    assert noisy.recovered == pytest.approx(noisy.after / noisy.clean)
    seeds.check_host()
    seeds.remove("input")
    x = torch.from_numpy(samples[0][:20])
    assert torch.equal(seeds(x), host()(x))


def test_a_graft_at_birth_restores_nothing_and_harms_nothing() -> None:
    seeds = with_filter()
    (clean, noisy) = evaluate_denoiser(seeds, shapes(100, 12), kinds=("shot-noise",))
    assert noisy.after == noisy.before and noisy.psnr_after == noisy.psnr_before and clean.after == clean.clean
    x: Images = shapes(10, 12)[0]
    assert np.array_equal(restored(seeds, x), x)
    assert accuracy(seeds, *shapes(100, 12)) == clean.clean


def test_the_same_seed_teaches_the_same_bytes() -> None:
    def learned(seed: int) -> bytes:
        seeds = with_filter()
        train_denoiser(seeds, shapes(64, 13), settings=DenoiserSettings(steps=4, batch=8, looks=2), seed=seed)
        return b"".join(value.numpy().tobytes() for value in seeds.graft_state().values())

    assert learned(1) == learned(1) != learned(2)


def test_what_cannot_learn_to_restore_is_refused() -> None:
    with pytest.raises(InputError, match="site input is bare"):
        train_denoiser(attach_seeds(host()), shapes(10, 0))
    with pytest.raises(InputError, match="one is missing"):
        train_denoiser(with_filter(), shapes(10, 0), kinds=())
    with pytest.raises(InputError, match="expected positive numbers"):
        DenoiserSettings(steps=0)
