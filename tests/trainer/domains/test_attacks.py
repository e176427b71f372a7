"""Attacks against targets whose weakness is known exactly, against a deployed int8 file, and against ART."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from worlds.bundles import digits, make_bundle

from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.attacks import Attacked, fgsm, pgd
from kasmina_trainer.adversarial.square_attack import CountedScores, margins, square_attack
from kasmina_trainer.adversarial.targets import device_scores, network_scores
from kasmina_trainer.datasets.digits import Images, Labels, to_nchw

ROWS, SIDE = 96, 6


class Linear(nn.Module):
    """Two classes told apart by a plane: the least move that crosses it is known."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weights = torch.randn(SIDE * SIDE, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.Parameter(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 6, 6) to (N, 2)."""
        side = (x.flatten(1) - 0.5) @ self.weights
        return torch.stack([-side, side], 1)


def grey(seed: int = 1) -> Images:
    """Pictures so far from black and white that no attack here meets the ends."""
    x: Images = np.random.default_rng(seed).uniform(0.35, 0.65, (ROWS, 1, SIDE, SIDE)).astype(np.float32)
    return x


def truth(network: nn.Module, x: Images) -> tuple[Labels, npt.NDArray[Any]]:
    """Its own answers as labels, and how far each pixel must move before they change."""
    scores = network_scores(network)(x)
    weights = next(network.parameters()).detach().abs().sum().item()
    return scores.argmax(1).astype(np.int64), np.abs(scores[:, 1]) / weights


def inside(found: Attacked, x: Images, epsilon: float) -> bool:
    return bool(np.abs(found.x - x).max() <= epsilon + 1e-6 and found.x.min() >= 0 and found.x.max() <= 1)


@pytest.mark.parametrize("epsilon", [0.0, 0.005, 0.01, 0.02, 0.1])
def test_gradient_attacks_fool_a_linear_network_exactly_where_that_can_be_done(epsilon: float) -> None:
    x, network = grey(), Linear()
    y, least = truth(network, x)
    for found in (fgsm(network, x, y, epsilon), pgd(network, x, y, epsilon, steps=20)):
        assert found.right_before.all() and inside(found, x, epsilon)
        clear = np.abs(least - epsilon) > 1e-5
        assert np.array_equal(found.fooled[clear], (least < epsilon)[clear])
        assert found.accuracy == pytest.approx(1 - found.success_rate)
        assert np.array_equal(network_scores(network)(found.x).argmax(1) != y, found.fooled)


def test_the_square_attack_fools_nothing_that_cannot_be_and_most_of_what_can() -> None:
    x, network, epsilon = grey(), Linear(), 0.03
    y, least = truth(network, x)
    found = square_attack(network_scores(network), x, y, epsilon, queries=300)
    assert inside(found, x, epsilon) and not (found.fooled & (least >= epsilon)).any()
    easy = least < 0.6 * epsilon
    assert easy.sum() > 20 and found.fooled[easy].mean() > 0.95
    assert np.array_equal(network_scores(network)(found.x).argmax(1) != y, found.fooled)


def test_queries_are_counted_and_kept_to() -> None:
    x, network = grey(), Linear()
    y, _ = truth(network, x)
    scores = CountedScores(network_scores(network))
    found = square_attack(scores, x, y, 0.005, queries=40)
    assert scores.asked == found.queries.sum() and found.queries.max() <= 40
    assert (found.queries[~found.fooled] == 40).all() and found.queries[found.fooled].min() < 40
    wrong = square_attack(network_scores(network), x, 1 - y, 0.005, queries=40)
    assert not wrong.right_before.any() and not wrong.fooled.any() and wrong.success_rate == 0
    assert (wrong.queries == 1).all() and np.array_equal(wrong.x, x)  # what was wrong before is left alone


def test_same_seed_same_bytes_and_a_random_start_depends_on_it() -> None:
    x, network = grey(), Linear()
    y, _ = truth(network, x)
    scores = network_scores(network)
    for attack in (
        lambda seed: pgd(network, x, y, 0.004, steps=1, step=0.0, restarts=1, seed=seed).x,
        lambda seed: square_attack(scores, x, y, 0.004, queries=20, seed=seed).x,
    ):
        assert attack(3).tobytes() == attack(3).tobytes() != attack(4).tobytes()


def test_random_starts_get_over_a_step_that_hides_its_gradient() -> None:
    """Where the clean picture lies on a flat piece, one start from there learns nothing."""

    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moved = (x.flatten(1) - 0.5).abs().mean(1)
            return torch.stack([torch.full_like(moved, 0.02), torch.relu(moved - 0.01)], 1)

    x, y = np.full((8, 1, SIDE, SIDE), 0.5, np.float32), np.zeros(8, np.int64)
    assert pgd(Flat(), x, y, 0.1, steps=10, restarts=0).success_rate == 0
    assert pgd(Flat(), x, y, 0.1, steps=10, restarts=1).success_rate == 1


def test_an_attacker_with_a_penalty_pays_less_of_it() -> None:
    """Half the pixels decide, the other half are watched: the adaptive attacker leaves the watched ones alone."""
    network, x = Linear(), grey()
    with torch.no_grad():
        network.weights[: SIDE * SIDE // 2] *= 0.2
    y, _ = truth(network, x)
    clean = torch.from_numpy(x)

    def watched(moved: torch.Tensor) -> torch.Tensor:
        return (moved - clean[: len(moved)]).flatten(1)[:, : SIDE * SIDE // 2].abs().mean(1)

    plain = pgd(network, x, y, 0.06, steps=20)
    careful = pgd(network, x, y, 0.06, steps=20, penalty=watched, weight=50.0)
    assert careful.success_rate > 0.9 * plain.success_rate > 0.5
    both = careful.fooled & plain.fooled
    price = [watched(torch.from_numpy(found.x)).numpy()[both].mean() for found in (plain, careful)]
    assert price[1] < 0.8 * price[0]
    scores = network_scores(network)

    def asked(moved: Images) -> npt.NDArray[Any]:
        return moved.reshape(len(moved), -1)[:, : SIDE * SIDE // 2].max(1)

    blind = square_attack(scores, x, y, 0.06, queries=150)
    seeing = square_attack(scores, x, y, 0.06, queries=150, price=asked, weight=5.0)
    assert asked(seeing.x)[seeing.fooled].mean() < asked(blind.x)[blind.fooled].mean()
    assert np.array_equal(scores(seeing.x).argmax(1) != y, seeing.fooled)


def test_margins() -> None:
    scores = np.array([[3, 1, 2], [3, 1, 2], [0, 0, 0]], np.float32)
    assert margins(scores, np.array([0, 1, 2])).tolist() == [1, -2, 0]


def test_what_no_attack_can_begin_with_is_refused() -> None:
    x, network = grey(), Linear()
    y, _ = truth(network, x)
    for bad, why in (
        (lambda: fgsm(network, x, y, -0.1), "epsilon -0.1"), (lambda: fgsm(network, x, y[:3], 0.1), "labels"),
        (lambda: fgsm(network, x * 255, y, 0.1), "expected 0 to 1"),
        (lambda: pgd(network, x, y, 0.1, steps=0), "0 steps"),
        (lambda: square_attack(network_scores(network), x, y, 0.1, queries=1), "1 queries"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            bad()


def test_the_deployed_int8_file_is_attacked_by_asking_it(tmp_path: Path) -> None:
    file = tmp_path / "digits.kasmina"
    file.write_bytes(pack(make_bundle()))
    frames, labels = digits()
    x, y = to_nchw(frames[:24]).astype(np.float32), labels[:24].astype(np.int64)
    with Runtime.open(file, verify=lambda bundle: None) as runtime:
        scores = CountedScores(device_scores(runtime))
        found = square_attack(scores, x, y, 0.15, queries=60)
        assert scores.asked == found.queries.sum()
        assert found.right_before.mean() > 0.7 and found.success_rate > 0.2 and inside(found, x, 0.15)
        again = np.array([runtime.infer(frame).label_index for frame in np.moveaxis(found.x, 1, -1)])
        assert np.array_equal(again[found.right_before] != y[found.right_before], found.fooled[found.right_before])
        assert square_attack(scores, x, y, 0.0, queries=10).success_rate == 0  # no room to move, nothing found
        with pytest.raises(InputError, match="'heat': the bundle has"):
            device_scores(runtime, "heat")


ART = "the oracle adversarial-robustness-toolbox is not installed: pip install -e .[oracles]"


ART_FOUND = {0.03: (0.208, 0.208, 0.208, 1700.550), 0.1: (0.646, 0.677, 0.604, 1640.819)}
"""By epsilon, what adversarial-robustness-toolbox 1.20.1 found on `random_task` with the settings of the test below:
success of FGSM, PGD and Square, and the sum of FGSM's pictures."""


def random_task() -> tuple[nn.Module, Images, Labels]:
    """A small network with first weights, and pictures labelled as it answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()
    x = np.random.default_rng(2).random((ROWS, 1, SIDE, SIDE), np.float32)
    return network, x, network_scores(network)(x).argmax(1).astype(np.int64)


@pytest.mark.parametrize("epsilon", list(ART_FOUND))
def test_the_attacks_find_what_art_found(epsilon: float) -> None:
    network, x, y = random_task()
    one, many, asked, total = ART_FOUND[epsilon]
    found = fgsm(network, x, y, epsilon)
    assert found.success_rate == pytest.approx(one, abs=1e-3)
    assert found.x.astype(np.float64).sum() == pytest.approx(total, abs=0.01)
    steps = pgd(network, x, y, epsilon, steps=10, step=epsilon / 4, restarts=0)
    assert steps.success_rate == pytest.approx(many, abs=0.011)
    assert square_attack(network_scores(network), x, y, epsilon, queries=150).success_rate >= asked


def test_fgsm_pgd_and_square_do_what_art_does() -> None:
    """FGSM and PGD from the clean picture to the bit that matters, the random attacks by how much they find."""
    evasion = pytest.importorskip("art.attacks.evasion", reason=ART)
    estimator = pytest.importorskip("art.estimators.classification", reason=ART).PyTorchClassifier
    network, x, y = random_task()
    theirs = estimator(
        model=network, loss=nn.CrossEntropyLoss(), input_shape=x.shape[1:], nb_classes=4, clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip
    scores = network_scores(network)
    for epsilon in (0.03, 0.1):
        one = evasion.FastGradientMethod(theirs, eps=epsilon).generate(x, y)
        np.testing.assert_allclose(fgsm(network, x, y, epsilon).x, one, atol=1e-6)
        many = evasion.ProjectedGradientDescent(
            theirs, eps=epsilon, eps_step=epsilon / 4, max_iter=10, num_random_init=0, verbose=False
        ).generate(x, y)
        ours = pgd(network, x, y, epsilon, steps=10, step=epsilon / 4, restarts=0)
        stands = ~ours.fooled  # the others stop at the first picture that fools
        np.testing.assert_allclose(ours.x[stands], many[stands], atol=1e-5)
        rate = np.mean(scores(many).argmax(1) != y)
        assert abs(ours.success_rate - rate) <= 0.05
        asked = evasion.SquareAttack(theirs, eps=epsilon, max_iter=150, nb_restarts=1, verbose=False).generate(x, y)
        found = square_attack(scores, x, y, epsilon, queries=150)
        assert found.success_rate >= np.mean(scores(asked).argmax(1) != y) - 0.05  # it tries one square for all at once
