"""The toys against their targets: points, parity, checkerboards, formal languages, and Shakespeare stated beside.

Every figure is the mean over seeds (data, first weights and order change with the seed) on the held-out test part. A
language model's bits are a mean over characters that have at least `CONTEXT` characters before them in their window.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import KasminaError
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.toy import (
    Automaton,
    NGram,
    Text,
    bracket_language,
    checkerboard,
    concentric_spheres,
    load_shakespeare,
    parity,
    reber_language,
    sphere_accuracy,
    two_spirals,
)
from kasmina_trainer.domain_nets import CharacterNet, OneHot, PointNet, lstm_of_size
from kasmina_trainer.training import TrainingSettings, accuracy, as_tensors, one_core, train

SEEDS = (0, 1, 2)
CONTEXT = 64
WINDOW = 128
BITS_OF_ENTROPY = 0.05
SHAKESPEARE_STEPS = 1500


@dataclass(frozen=True)
class Task:
    """A set of points, its target and how long a network learns on it."""

    name: str
    target: float
    load: Callable[[int], Splits]
    best: str
    steps: int = 1500


TASKS = (
    Task("two spirals", 99.0, lambda seed: two_spirals(seed), "arms 0.33 apart, noise 0.02"),
    Task(
        "concentric spheres, 10-D",
        97.0,
        lambda seed: concentric_spheres(seed),
        f"best possible {100 * sphere_accuracy():.2f} %",
        3000,
    ),
    Task("XOR of 2", 99.0, lambda seed: parity(seed, bits=2), "no overlap"),
    Task("XOR of 4", 99.0, lambda seed: parity(seed, bits=4), "no overlap"),
    Task("checkerboard, 4 x 4", 99.0, lambda seed: checkerboard(seed), "no overlap", 3000),
)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Every toy; ``quick``: one seed, fewer steps, no Shakespeare (which needs a download)."""
    seeds = SEEDS[:1] if quick else SEEDS
    found = [_points(task, seeds) for task in TASKS]
    languages = {"brackets of 2 kinds, depth 4": bracket_language(), "embedded Reber words": reber_language()}
    for name, language in languages.items():
        found += _language(name, language, seeds, 300 if quick else 600)
    return found if quick else found + _shakespeare(SHAKESPEARE_STEPS)


def fit_points(splits: Splits, seed: int, steps: int) -> nn.Module:
    """A fully connected network trained on the training part."""
    x, y = splits.train
    network = _fresh(lambda: PointNet(x.shape[1], len(splits.labels)), seed)
    settings = TrainingSettings(steps=steps, batch=128, learning_rate=1e-2, weight_decay=1e-3, shift=0)
    train(
        network,
        list(network.parameters()),
        [as_tensors((x, y), "cpu")],
        training_modules=[network],
        settings=settings,
        seed=seed,
    )
    return network.eval()


def fit_text(network: nn.Module, text: Text, letters: int, seed: int, steps: int, batch: int = 32) -> nn.Module:
    """A character network trained on windows of a text; the network comes back in evaluation mode."""
    windows = _windows(text, WINDOW + 1, WINDOW // 2)
    x, y = torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:])
    whole = OneHot(network, letters)
    settings = TrainingSettings(steps=steps, batch=batch, learning_rate=4e-3, weight_decay=1e-3, shift=0)
    train(whole, list(network.parameters()), [(x, y)], training_modules=[whole], settings=settings, seed=seed)
    return network.eval()


def text_bits(network: nn.Module, text: Text, letters: int) -> float:
    """Bits a character on a text, every character with at least `CONTEXT` before it."""
    windows = _windows(text, WINDOW + 1, WINDOW - CONTEXT)
    whole, total = OneHot(network, letters).eval(), 0.0
    with torch.no_grad(), one_core():
        for start in range(0, len(windows), 64):
            some = torch.from_numpy(windows[start : start + 64])
            costs = nn.functional.cross_entropy(whole(some[:, :-1]), some[:, 1:], reduction="none")
            total += float(costs[:, CONTEXT:].double().mean(1).sum())
    return total / len(windows) / float(np.log(2))


def _windows(text: Text, length: int, every: int) -> npt.NDArray[np.int64]:
    starts = np.arange(0, len(text) - length + 1, every)
    windows: npt.NDArray[np.int64] = text[starts[:, None] + np.arange(length)].astype(np.int64)
    return windows


def _fresh(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _points(task: Task, seeds: Sequence[int]) -> dict[str, Any]:
    scores = []
    for seed in seeds:
        splits = task.load(seed)
        scores.append(100 * accuracy(fit_points(splits, seed, task.steps), *splits.test))
    worst = min(scores)
    how = f"test accuracy, mean of {len(scores)} seeds, worst {worst:.2f}; 4,000 points to learn from; {task.best}"
    mean = statistics.fmean(scores)
    return _row(task.name, task.target, mean, "%", mean >= task.target, how)


def _language(name: str, language: Automaton, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    letters, entropy = len(language.alphabet), language.entropy_bits
    above, chance, grams = [], [], []
    for seed in seeds:
        texts = language.texts(seed, test=30_000)
        network = fit_text(
            _fresh(lambda: CharacterNet(letters, channels=24), seed), texts.train, letters, seed, steps, batch=16
        )
        above.append(text_bits(network, texts.test, letters) - entropy)
        chance.append(float(language.bits(texts.test).mean()) - entropy)
        grams.append(float(NGram(texts.train, letters=letters).bits(texts.test).mean()) - entropy)
    mean = statistics.fmean(above)
    how = (
        f"bits a character above the exact entropy of {entropy:.4f}, mean of {len(above)} seeds, worst "
        f"{max(above):.4f}; on the same texts the language itself {statistics.fmean(chance):+.4f}, a 5-gram "
        f"{statistics.fmean(grams):+.4f}"
    )
    return [_row(f"language, {name}", BITS_OF_ENTROPY, mean, "bits", mean <= BITS_OF_ENTROPY, how)]


def _shakespeare(steps: int) -> list[dict[str, Any]]:
    """Stated: the convolutional model beside a 5-gram and an LSTM of its size, same windows and steps."""
    try:
        texts = load_shakespeare()
    except KasminaError as exc:
        return [_row("Shakespeare", None, None, "bits", True, f"not measured: {exc}")]
    letters = len(texts.alphabet)
    network = _fresh(lambda: CharacterNet(letters), 0)
    size = sum(p.numel() for p in network.parameters())
    lstm = _fresh(lambda: lstm_of_size(letters, size), 0)
    lstm_size = sum(p.numel() for p in lstm.parameters())
    told = f"two held-out plays; seed 0, {steps} steps of 32 windows of {WINDOW}"
    gram = float(NGram(texts.train, letters=letters).bits(texts.test).mean())
    found = [("5-gram", gram, "two held-out plays; Witten-Bell, 33 plays counted")]
    for name, net, count in (("causal convolutions", network, size), ("LSTM of the same size", lstm, lstm_size)):
        bits = text_bits(fit_text(net, texts.train, letters, 0, steps), texts.test, letters)
        found.append((name, bits, f"{told}; {count:,} parameters"))
    return [_row(f"Shakespeare, {name}", None, bits, "bits a character", True, how) for name, bits, how in found]


def _row(name: str, target: float | None, measured: float | None, unit: str, ok: bool, how: str) -> dict[str, Any]:
    kept = None if measured is None else round(measured, 4)
    return {"name": name, "target": target, "measured": kept, "unit": unit, "ok": ok, "how": how}
