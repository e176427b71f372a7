"""Fits the Edge TPU's formula to Coral's table: a maximum a posteriori estimate in log space.

The chip is one and the same on both boards, so its seven coefficients are shared; link, host and call are each board's.
Priors come from data sheets and logs, never from the table; with eight networks to fit thirteen numbers they matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.hardware_simulator.edgetpu_map import map_edgetpu
from kasmina_edge.hardware_simulator.edgetpu_timing import (
    ARRAY,
    COEFFICIENTS,
    Coefficients,
    Demand,
    network_demand,
    total_us,
)
from kasmina_edge.hardware_simulator.networks import table

Array = NDArray[np.float64]
BOARDS = ("coral-usb", "coral-dev-board")
MACS_PER_US = ARRAY * ARRAY * 500.0
SRAM_BYTES = 8_100_000
NOISE = 0.12
"""Standard deviation, in log, of what the formula leaves out."""


@dataclass(frozen=True)
class Prior:
    """A coefficient before any measurement.

    Attributes:
        value: Of each board, or one for both where the chip is meant.
        spread: Standard deviation of its logarithm.
        source: Where it comes from.
    """

    value: tuple[float, ...]
    spread: float
    source: str


PRIORS: dict[str, Prior] = {
    "array_share": Prior((0.5,), 0.4, "half of the peak in well-filled tiles"),
    "depthwise_share": Prior((1 / 64,), 0.6, "one of 64 columns: channels share no input"),
    "moved_bytes_per_us": Prior((20_000.0,), 0.7, "64 bytes a cycle at 500 MHz are 32,000"),
    "weight_bytes_per_us": Prior((10_000.0,), 0.6, "64 bytes a cycle at 500 MHz are 32,000"),
    "op_us": Prior((6.0,), 0.7, "some thousand cycles an operation"),
    "activation_sram_ratio": Prior((1.2,), 0.2, "compiler logs: 0.69 MiB less for FaceNet at 160 pixels"),
    "unhidden_share": Prior((0.5,), 0.4, "neither all hidden nor none"),
    "fixed_us": Prior((400.0, 400.0), 0.5, "a call of the runtime and an interrupt, below a millisecond"),
    "link_bytes_per_us": Prior((440.0, 400.0), 0.08, "USB 3 Gen 1 and PCIe Gen 2 x1 carry 500 at most"),
    "host_us_per_element": Prior((0.003, 0.015), 0.7, "reference kernels, some 10 to 25 cycles at 3 and 1.5 GHz"),
}
_LAYOUT = [(name, board) for name, prior in PRIORS.items() for board in range(len(prior.value))]
_MEAN = np.log([PRIORS[name].value[board] for name, board in _LAYOUT])
_SPREAD = np.array([PRIORS[name].spread for name, _ in _LAYOUT])

CPU_MS: dict[str, tuple[float, float]] = {
    "mobilenet-v1": (53, 164), "mobilenet-v2": (51, 122), "inception-v1": (90, 392), "inception-v4": (700, 3157),
    "mobilenet-v1-ssd": (109, 353), "mobilenet-v2-ssd": (106, 282), "densenet": (380, 1032),
    "resnet-50-v1-299": (484, 1763), "resnet-152-v2": (1823, 5499), "squeezenet": (55, 232), "vgg16": (867, 4595),
    "vgg19": (1060, 5538), "efficientnet-edgetpu-s": (5431, 705), "efficientnet-edgetpu-m": (8469, 1081),
    "unet-mobilenet-v2-128": (27.7, 190.7), "deeplab-v3-513": (394, 1139),
}  # fmt: skip
"""The same page's columns without an Edge TPU: a desktop's Xeon and the Dev Board's Cortex-A53, ms."""


@lru_cache(maxsize=1)
def networks() -> tuple[str, ...]:
    """The anchors that both boards have."""
    boards = [{a.network for a in load_profile(board).anchors} for board in BOARDS]
    return tuple(a.network for a in load_profile(BOARDS[0]).anchors if all(a.network in b for b in boards))


@lru_cache(maxsize=1)
def published_ms() -> Array:
    """(networks, boards)."""
    found = [{a.network: a.latency_ms for a in load_profile(board).anchors} for board in BOARDS]
    return np.array([[board[name] for board in found] for name in networks()])


@lru_cache(maxsize=64)
def demand_of(name: str) -> Demand:
    """What a network asks for, mapped as the compiler would."""
    work = table(name)
    return network_demand(work, [op.maps for op in map_edgetpu(work).ops])


def stacked(names: Sequence[str]) -> Demand:
    """Fields of shape (networks, 1)."""
    return Demand(
        **{f.name: np.array([[float(getattr(demand_of(n), f.name))] for n in names]) for f in fields(Demand)}
    )  # fmt: skip


def host_macs_per_us(board: int) -> float:
    """Median rate of the CPU column, for operations that multiply and stay there."""
    return float(np.median([table(name).macs / (1000 * CPU_MS[name][board]) for name in CPU_MS]))


_HOST_RATES = np.array([[1.0, 1.0]])


def coefficients(theta: Array) -> Coefficients:
    """Fields of shape (1, boards)."""
    values: dict[str, Array] = {"host_macs_per_us": _HOST_RATES}
    for (name, _), number in zip(_LAYOUT, np.exp(theta), strict=True):
        values[name] = np.append(values[name], number) if name in values else np.array([number])
    return Coefficients(**{name: np.broadcast_to(values[name].reshape(1, -1), (1, 2)) for name in COEFFICIENTS})


def predict(theta: Array, demand: Demand) -> Array:
    """Milliseconds, (networks, boards)."""
    found: Array = total_us(demand, coefficients(theta), MACS_PER_US, SRAM_BYTES) / 1000.0
    return found


def fit(names: Sequence[str]) -> Array:
    """The coefficients' logarithms, from those networks on both boards."""
    demand = stacked(names)
    known = np.log(published_ms()[[networks().index(n) for n in names]])

    def residuals(theta: Array) -> Array:
        return np.concatenate([((np.log(predict(theta, demand)) - known) / NOISE).ravel(), (theta - _MEAN) / _SPREAD])

    return descend(residuals, _MEAN.copy())


def descend(residuals: Callable[[Array], Array], theta: Array, steps: int = 40) -> Array:
    """Levenberg and Marquardt's least squares with differences for the slopes; deterministic."""
    damping, found = 1e-2, residuals(theta)
    cost = float(found @ found)
    for _ in range(steps):
        slopes = np.stack([(residuals(theta + 1e-5 * e) - found) / 1e-5 for e in np.eye(len(theta))], axis=1)
        hessian, slope = slopes.T @ slopes, slopes.T @ found
        for _ in range(8):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -slope)
            tried = residuals(theta + step)
            if float(tried @ tried) < cost:
                break
            damping *= 10
        else:
            return theta
        gained = cost - float(tried @ tried)
        theta, found, cost, damping = theta + step, tried, float(tried @ tried), max(damping / 10, 1e-8)
        if gained < 1e-9 * cost:
            break
    return theta


def left_out(names: Sequence[str]) -> Array:
    """Log of predicted over published, each network predicted from the others; (networks, boards)."""
    found = []
    for name in names:
        theta = fit([n for n in names if n != name])
        known = published_ms()[networks().index(name)]
        found.append(np.log(predict(theta, stacked([name])))[0] - np.log(known))
    return np.array(found)


def band(errors: Array, share: float = 0.9) -> float:
    """Relative half-width by conformal prediction: the ceil(share * (n + 1))-th smallest of n left-out errors.

    (Papadopoulos et al. 2002, "Inductive confidence machines"; Barber et al. 2021 for the leave-one-out form.) Where
    that exceeds n, the largest is taken.
    """
    ordered = np.sort(np.abs(errors).ravel())
    rank = min(math.ceil(share * (len(ordered) + 1)), len(ordered))
    return float(np.expm1(ordered[rank - 1]))


def board_values(theta: Array, board: int) -> dict[str, float]:
    """A board's coefficients for its profile, four significant digits."""
    one = coefficients(theta)
    values = {name: float(np.asarray(getattr(one, name))[0, board]) for name in COEFFICIENTS}
    values["host_macs_per_us"] = host_macs_per_us(board)
    return {name: float(f"{value:.4g}") for name, value in values.items()}
