"""What the seed sites of a bare host measure on rows: the telemetry that a policy chooses by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.telemetry.collectors import SeedCollector
from kasmina_trainer.training import one_core

MOST_ROWS = 128
_BATCH = 32


def sensed(seeds: SeededNetwork, x: npt.NDArray[np.float32]) -> Mapping[str, SeedTelemetry]:
    """Rows of the device's own telemetry contract by site, from some inputs.

    Args:
        seeds: The network; it is not changed.
        x: Inputs; the first `MOST_ROWS` are used.  # (N, ...)
    """
    with SeedCollector(seeds, every=1, frames=_BATCH) as collector, torch.no_grad(), one_core():
        for begin in range(0, min(len(x), MOST_ROWS), _BATCH):
            seeds(torch.from_numpy(np.array(x[begin : begin + _BATCH])))
        return {row.site: row for row in collector.take() if row.site}
