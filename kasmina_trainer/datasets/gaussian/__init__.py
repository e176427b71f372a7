"""Gaussian clusters: blobs with a stated overlap, their best possible purity, drift by schedule, and early warning.

- `blobs`: `make_blobs` places any number of blobs so that the best classifier is wrong as often as asked for.
- `purity`: how pure a clustering is; `Blobs.bayes_purity` says how pure one can be.
- `drifting`: seeded streams with sudden, gradual, incremental and recurring drift.
- `warning`: `DriftWarning` flags drift without labels, by the edge's own detectors.
"""

from kasmina_trainer.datasets.gaussian.blobs import Blobs, Estimate, blob_splits, make_blobs
from kasmina_trainer.datasets.gaussian.drifting import Block, DriftingBlobs, Schedule, moved, spread
from kasmina_trainer.datasets.gaussian.purity import contingency, purity
from kasmina_trainer.datasets.gaussian.warning import Alarm, DriftWarning

__all__ = [
    "Alarm",
    "Blobs",
    "Block",
    "DriftWarning",
    "DriftingBlobs",
    "Estimate",
    "Schedule",
    "blob_splits",
    "contingency",
    "make_blobs",
    "moved",
    "purity",
    "spread",
]
