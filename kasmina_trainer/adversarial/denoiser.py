"""A denoising graft: a removable branch in front of a frozen host that brings noisy pictures back to what it knows.

The branch learns the residual between a noisy picture and the clean one (Zhang et al. 2017, arXiv:1608.03981), and is
judged by the host's answers as well, since what counts is what the host makes of it. It is an ordinary graft of the
library (`input-filter`, `denoising-ae`), so that it is exported, gated and removed as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.mnist_c import corrupt
from kasmina_trainer.adversarial.pictures import Images
from kasmina_trainer.adversarial.quality import psnr, ssim
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import accuracy, one_core

NOISE_FAMILY = ("shot-noise", "impulse-noise")
INPUT = "input"
Noise = Callable[[Images, str, int], Images]
"""Clean pictures, kind and seed to noisy ones."""


@dataclass(frozen=True)
class DenoiserSettings:
    """How a denoising graft learns.

    Attributes:
        steps: Optimiser steps.
        batch: Pictures a step: one half noisy, the other half clean, so that clean ones stay as they are.
        learning_rate: Peak of a one-cycle schedule.
        restoring: Weight of the squared error to the clean picture against the host's cross entropy.
        looks: So many draws of the noise are made of the training pictures, one after the other.
    """

    steps: int = 600
    batch: int = 128
    learning_rate: float = 1e-2
    restoring: float = 10.0
    looks: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or self.looks < 1 or not self.learning_rate > 0 or self.restoring < 0:
            raise InputError(f"denoiser settings {self}: expected positive numbers, and a batch of at least 2")


@dataclass(frozen=True)
class Restored:
    """What a graft makes of one kind of noise.

    Attributes:
        kind: Of the noise; "clean" for none.
        clean: Accuracy of the host on clean pictures, 0 to 1.
        before: Of the host on noisy ones.
        after: Of the grown network on noisy ones.
        psnr_before: Mean over pictures, decibels; infinite on clean ones.
        psnr_after: Behind the graft.
        ssim_before: Mean over pictures.
        ssim_after: Behind the graft.
    """

    kind: str
    clean: float
    before: float
    after: float
    psnr_before: float
    psnr_after: float
    ssim_before: float
    ssim_after: float

    @property
    def recovered(self) -> float:
        """Accuracy on noisy pictures as a share of the clean one."""
        return self.after / self.clean if self.clean else 0.0

    @property
    def regained(self) -> float:
        """Share of what the noise took that came back; 1 where it took nothing."""
        lost = self.clean - self.before
        return (self.after - self.before) / lost if lost > 0 else 1.0


def train_denoiser(
    network: SeededNetwork, samples: Samples, *, kinds: Sequence[str] = NOISE_FAMILY, site: str = INPUT,
    settings: DenoiserSettings | None = None, seed: int = 0, noise: Noise | None = None,
) -> list[float]:  # fmt: skip
    """Teach the branch that stands at a site to undo noise; nothing else changes.

    Args:
        network: With a branch in front of the host, grown by ``network.graft("input", "input-filter")``.
        samples: Clean pictures (N, 1, H, W) and labels (N,).
        kinds: The noise family, an equal share of the pictures each.
        site: Where the branch stands; pictures must leave it in the shape in which they come in.
        settings: How long and how boldly.
        seed: Of noise, order and batches.
        noise: Makes noisy pictures; MNIST-C at the data set's severities when left out.

    Returns:
        Losses of all steps.

    Raises:
        InputError: Nothing grows at the site, nothing to learn or to learn from, or a loss that is not a number.
    """
    settings = settings or DenoiserSettings()
    if network.site(site).branch is None:
        raise InputError(f"site {site} is bare", f'Grow a denoiser there: network.graft("{site}", "input-filter").')
    branch = network.site(site).branch
    assert branch is not None
    parameters = list(branch.parameters())
    if not parameters or not len(samples[1]) or not kinds:
        raise InputError(
            f"{len(parameters)} parameters, {len(samples[1])} pictures, {len(kinds)} kinds: one is missing"
        )
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(2, settings.steps), pct_start=0.2
    )
    rng = np.random.default_rng(seed)
    per_look = -(-settings.steps // settings.looks)
    losses: list[float] = []
    with one_core(), _Watched(network.site(site)) as watched:
        network.train()
        try:
            for step in range(settings.steps):
                if step % per_look == 0:
                    noisy = _noisy(samples[0], kinds, noise, int(rng.integers(2**31)))
                loss = _loss(network, watched, samples, noisy, rng, settings)
                losses.append(float(loss.detach()))
                if not np.isfinite(losses[-1]):
                    raise InputError(f"denoiser diverged: loss {losses[-1]} at step {step + 1}", "Lower its rate.")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        finally:
            network.eval()
    return losses


def restored(network: SeededNetwork, x: Images, *, site: str = INPUT) -> Images:
    """What leaves the site, clipped to [0, 1]: the picture as the host behind it sees it.  # (N, 1, H, W)"""
    with one_core(), torch.no_grad(), _Watched(network.site(site)) as watched:
        parts = []
        for at in range(0, len(x), 256):
            network(torch.from_numpy(np.array(x[at : at + 256])))
            parts.append(watched.value.clamp(0, 1))
    found: Images = torch.cat(parts).numpy()
    return found


def evaluate_denoiser(
    network: SeededNetwork, samples: Samples, *, kinds: Sequence[str] = NOISE_FAMILY, site: str = INPUT,
    severity: int | None = None, seed: int = 0,
) -> list[Restored]:  # fmt: skip
    """Accuracy and nearness with and without the graft, on clean pictures first and on every kind of noise.

    Args:
        network: Grown at the site; the host is what is left without anything that grows.
        samples: Held-out clean pictures (N, 1, 28, 28) and labels (N,).
        kinds: Of `mnist_c.KINDS`.
        site: Where the denoiser stands.
        severity: As in `mnist_c.corrupt`.
        seed: Of the noise.

    Raises:
        InputError: No such kind or severity.
    """
    host, (x, y) = network.host_copy().eval(), samples
    clean = accuracy(host, x, y)
    rows = []
    for kind in ("clean", *kinds):
        wrong = x if kind == "clean" else corrupt(x, kind, severity, seed=seed)
        back = restored(network, wrong, site=site)
        near = [(float(psnr(each, x).mean()), float(ssim(each, x).mean())) for each in (wrong, back)]
        rows.append(
            Restored(
                kind, clean, accuracy(host, wrong, y), accuracy(network, wrong, y), near[0][0], near[1][0], near[0][1],
                near[1][1],
            )
        )  # fmt: skip
    return rows


class _Watched:
    """Keeps what leaves a site while the block runs."""

    def __init__(self, site: nn.Module) -> None:
        self._site = site
        self.value = torch.empty(0)

    def __enter__(self) -> _Watched:
        self._handle = self._site.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, given: Any, value: torch.Tensor) -> None:
        self.value = value


def _noisy(x: Images, kinds: Sequence[str], noise: Noise | None, seed: int) -> Images:
    out = np.empty_like(x)
    for at, kind in enumerate(kinds):
        part = x[at :: len(kinds)]
        out[at :: len(kinds)] = corrupt(part, kind, seed=seed + at) if noise is None else noise(part, kind, seed + at)
    return out


def _loss(
    network: SeededNetwork, watched: _Watched, samples: Samples, noisy: Images, rng: np.random.Generator,
    settings: DenoiserSettings,
) -> torch.Tensor:  # fmt: skip
    x, y = samples
    rows = rng.integers(0, len(y), settings.batch)
    half = settings.batch // 2
    seen = torch.from_numpy(np.concatenate([noisy[rows[:half]], x[rows[half:]]]))
    wanted, labels = torch.from_numpy(x[rows]), torch.from_numpy(y[rows])
    answers = network(seen)
    loss = functional.cross_entropy(answers, labels)
    return loss + settings.restoring * functional.mse_loss(watched.value, wanted)
