"""From measured networks to a latency model: which tiles explain them best, how long each term takes, how sure that is.

No I/O: values in, values out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.cpu_kernels import TILES, Tiles, fused, terms_of
from kasmina_edge.hardware_simulator.cpu_layer import CpuModel, network_terms
from kasmina_edge.hardware_simulator.nonnegative import fit_shares
from kasmina_edge.hardware_simulator.workload import Workload

Measured = tuple[Workload, float]
"""A network and its median time in microseconds."""
COVERED = 0.95
"""Share of the judging mixtures that a band holds: networks of other families are a little further off than mixtures,
and it is to hold 90 % of them."""
LEAST_BAND = 0.05
"""Two measurements of one network differ that much (9 of 10): nothing narrower could be shown."""


def fit_model(measured: Sequence[Measured], kind: str) -> CpuModel:
    """The model that fits best, without a band.

    Args:
        measured: Networks of one type of number.
        kind: "int8" or "float32".

    Raises:
        InputError: Fewer networks than terms; a time that is not above zero.
    """
    times = np.array([us * 1000.0 for _, us in measured])
    if not len(times) or not (np.isfinite(times) & (times > 0)).all():
        raise InputError(f"{len(times)} networks to fit, and every time must be above zero")
    best: tuple[float, CpuModel] | None = None
    for tiles in TILES[kind]:
        terms = [_terms(workload, tiles) for workload, _ in measured]
        names = sorted({name for each in terms for name in each})
        if len(names) > len(times):
            raise InputError(f"{len(times)} networks cannot tell {len(names)} terms apart; measure more")
        counts = np.array([[each.get(name, 0.0) for name in names] for each in terms])
        ns = fit_shares(counts, times)
        off = float(np.mean(np.minimum(np.abs(counts @ ns / times - 1.0), 0.5)))
        if best is None or off < best[0]:
            found = {name: float(value) for name, value in zip(names, ns, strict=True) if value > 0.0}
            best = off, CpuModel(tiles, found, None)
    assert best is not None
    return best[1]


def predict_us(model: CpuModel, workload: Workload) -> float:
    """Microseconds of one inference."""
    return sum(model.ns.get(name, 0.0) * count for name, count in _terms(workload, model.tiles).items()) / 1000.0


def shares_off(model: CpuModel, measured: Sequence[Measured]) -> npt.NDArray[np.float64]:
    """How far each prediction is off, as a share of the measured time."""
    return np.array([predict_us(model, workload) / us - 1.0 for workload, us in measured])


def around_prediction(off: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far each measured time lies from its prediction, as a share of the prediction: what a band must hold.

    A band is printed around the prediction, ``predicted * (1 +- band)``. A prediction that is a third too low is 33 %
    off the measured time, and the measured time is 50 % above the prediction.

    Args:
        off: As `shares_off` gives them, relative to the measured time; -1 (nothing was predicted) becomes infinite.

    >>> around_prediction(np.array([-0.2, 0.0, 0.25])).round(2).tolist()
    [0.25, 0.0, -0.2]
    """
    with np.errstate(divide="ignore"):
        return 1.0 / (1.0 + off) - 1.0


def band_of(off: npt.NDArray[np.float64], covered: float = COVERED) -> float:
    """The half-width that will hold the next case with this probability, at least.

    Args:
        off: Of `around_prediction`; the band is around the prediction.
        covered: The probability.

    It is the conformal quantile: of n cases the ``ceil((n + 1) * covered)``-th smallest (Vovk et al., Algorithmic
    Learning in a Random World, 2005); 1.0 where there are too few to tell.

    >>> band_of(np.array([0.01, -0.03, 0.02, 0.08, -0.04, 0.01, 0.02, 0.03, 0.01]), covered=0.9)
    0.08
    """
    place = math.ceil((len(off) + 1) * covered)
    if place > len(off):
        return 1.0
    return min(1.0, max(LEAST_BAND, float(np.sort(np.abs(off))[place - 1])))


def _terms(workload: Workload, tiles: Tiles) -> dict[str, float]:
    found = network_terms(workload)
    within = fused(workload)
    for place, op in enumerate(workload.ops):
        for name, count in terms_of(op, tiles) if place not in within else ():
            found[name] = found.get(name, 0.0) + count
    return found
