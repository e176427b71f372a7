"""What seeds cost when nothing grows, and what watching them costs while something learns; both sides in turns.

Dormant seeds: a network with bare seed sites against the bare host, one forward pass. Telemetry: a training step of
two grafts with a collector that looks at every sixteenth pass against the same step without. Ratios are medians over
pairs of blocks in processor time of one thread; which side begins alternates, and the interval is that of the median by
order statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks._quantize_nets import ConvNet, EcgNet
from benchmarks.quantize import row
from kasmina_trainer.hosts import build_host
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, freeze
from kasmina_trainer.telemetry import SeedCollector
from kasmina_trainer.training import one_core

DORMANT_TARGET, TELEMETRY_TARGET = 1.02, 1.05
PAIRS, QUICK_PAIRS = 300, 4
CALLS = 20
STEP_PAIRS, QUICK_STEP_PAIRS, STEPS = 40, 1, 16
HOSTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits host, 4 sites": (lambda: build_host(seed=0), (1, 16, 16)),
    "plain ConvNet, sites in its flow": (ConvNet, (1, 28, 28)),
    "1-D ECG net, sites in its flow": (EcgNet, (1, 1, 128)),
}


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Dormant seeds on three hosts at two batches, and telemetry in a training step."""
    out = []
    with one_core():
        for name, (build, shape) in HOSTS.items():
            for batch in (1, 64):
                ratios = _forward(build().eval(), torch.rand(batch, *shape), QUICK_PAIRS if quick else PAIRS)
                out.append(_row(f"dormant seeds, {name}, batch {batch}: forward", ratios, DORMANT_TARGET, quick))
        ratios = _watched_steps(QUICK_STEP_PAIRS if quick else STEP_PAIRS)
        out.append(_row("seed telemetry: training step, 2 grafts, batch 64", ratios, TELEMETRY_TARGET, quick))
    return out


def median_interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a median, from order statistics (normal approximation of the binomial).

    >>> median_interval([float(x) for x in range(1, 101)])
    (40.0, 61.0)
    """
    found, count = sorted(ratios), len(ratios)
    reach = 0.98 * np.sqrt(count)
    low, high = int(np.floor(count / 2 - reach)), int(np.ceil(count / 2 + reach))
    return found[max(0, low - 1)], found[min(count - 1, high)]


def in_turns(first: Callable[[], object], second: Callable[[], object], pairs: int, calls: int) -> list[float]:
    """This thread's processor time of the second over that of the first, for each pair of blocks."""
    ratios = []
    for turn in range(pairs + 2):
        spent = {}
        for side in (first, second)[:: 1 if turn % 2 else -1]:
            started = time.thread_time()
            for _ in range(calls):
                side()
            spent[side] = time.thread_time() - started
        ratios.append(spent[second] / spent[first])
    return ratios[2:]


@torch.no_grad()
def _forward(host: nn.Module, x: torch.Tensor, pairs: int) -> list[float]:
    bare, seeded = freeze(host), attach_seeds(host, example=x[:1])
    assert torch.equal(bare(x), seeded(x))
    return in_turns(lambda: bare(x), lambda: seeded(x), pairs, CALLS if len(x) == 1 else 1)


def _watched_steps(pairs: int) -> list[float]:
    network = attach_seeds(build_host(seed=0))
    for site in network.sites[:2]:
        network.graft(site, "depthwise", seed=0)
    network.train()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 16, 16, generator=generator)
    y = torch.randint(0, 10, (64,), generator=generator)
    optimizer = torch.optim.AdamW(network.graft_parameters(), lr=1e-3)
    collector = SeedCollector(network)

    def block(watched: bool) -> None:
        with collector if watched else nullcontext():
            for _ in range(STEPS):
                _step(network, optimizer, x, y)

    ratios = in_turns(lambda: block(False), lambda: block(True), pairs, 1)
    assert collector.take()
    return ratios


def _step(network: SeededNetwork, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss = functional.cross_entropy(network(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _row(name: str, ratios: Sequence[float], target: float, quick: bool) -> dict[str, Any]:
    middle = float(np.median(ratios))
    low, high = median_interval(ratios)
    how = f"median of {len(ratios)} pairs of blocks in turns, its 95 % interval {low:.3f} to {high:.3f}; one core"
    return row(name, None if quick else target, middle, "x bare", quick or middle <= target, how)


if __name__ == "__main__":
    for each in rows():
        print(each)
