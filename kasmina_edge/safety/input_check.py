"""Does this input look like those the network was made for? Distances of feature statistics, in numpy.

A network that gives its feature statistics as a second output is asked for them with every frame. What was common among
good frames is kept as class centres in a space where good frames scatter equally in all directions; the distance to the
nearest centre is the score (Mahalanobis distance with class centres: Lee, Lee, Lee and Shin 2018, arXiv:1807.03888). A
score above the threshold is an alarm: noise, a blocked lens, an attack, or something new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.arrays import pack_arrays, unpack_arrays
from kasmina_edge.errors import InputError

Array = npt.NDArray[Any]
_FORMAT = 1
_NAMES = ("centres", "format", "mean", "threshold", "whitening")


@dataclass(frozen=True)
class InputCheck:
    """What good frames have in common.

    Attributes:
        mean: Of the statistics over good frames.  # (D,)
        whitening: Makes their scatter about the centres equal in all directions.  # (D, K)
        centres: Of each class, in that space.  # (C, K)
        threshold: Score above which a frame is alarming; 1 is a good frame's usual score.
    """

    mean: Array
    whitening: Array
    centres: Array
    threshold: float

    def __post_init__(self) -> None:
        if any(part.dtype.kind != "f" for part in (self.mean, self.whitening, self.centres)):
            raise InputError("input check: its numbers are no floats", "Fit it again.")
        shapes = self.mean.shape, self.whitening.shape, self.centres.shape
        fits = self.mean.ndim == 1 and self.whitening.ndim == 2 and self.centres.ndim == 2 and self.centres.size > 0
        if not fits or self.whitening.shape != (len(self.mean), self.centres.shape[1]):
            raise InputError(f"input check of shapes {shapes}: expected (D,), (D, K) and (C, K)")
        if not all(np.isfinite(part).all() for part in (self.mean, self.whitening, self.centres)):
            raise InputError("input check: its numbers are not all finite", "Fit it again.")
        if not (np.isfinite(self.threshold) and self.threshold > 0):
            raise InputError(f"input check: threshold {self.threshold!r}, expected a number above 0")

    def scores(self, statistics: Array) -> npt.NDArray[np.float64]:
        """Mean squared distance to the nearest class, a good frame's being about 1.  # (N, D) to (N,)

        Raises:
            InputError: Other statistics than it was fitted to.
        """
        if statistics.ndim != 2 or statistics.shape[1] != len(self.mean):
            raise InputError(f"statistics of shape {statistics.shape}: expected (N, {len(self.mean)})")
        there = (statistics.astype(np.float64) - self.mean) @ self.whitening
        squared = (there**2).sum(1)[:, None] - 2 * there @ self.centres.T + (self.centres**2).sum(1)
        found: npt.NDArray[np.float64] = np.maximum(squared, 0).min(1) / self.centres.shape[1]
        return found

    def alarms(self, statistics: Array) -> npt.NDArray[np.bool_]:
        """Which frames are above the threshold.  # (N, D) to (N,)

        Raises:
            InputError: Other statistics than it was fitted to.
        """
        found: npt.NDArray[np.bool_] = ~(self.scores(statistics) <= self.threshold)
        return found

    def to_bytes(self) -> bytes:
        """As a file; equal checks give equal bytes."""
        return pack_arrays(
            {
                "mean": self.mean.astype(np.float32), "whitening": self.whitening.astype(np.float32),
                "centres": self.centres.astype(np.float32), "threshold": np.array([self.threshold], np.float64),
                "format": np.array([_FORMAT], np.int64),
            }
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> InputCheck:
        """Read what `to_bytes` wrote.

        Args:
            data: The whole file.
            where: Its name, for messages.

        Raises:
            InputError: Other arrays, another format, or numbers that make no check.
            BundleError: It is no file of arrays.
        """
        arrays = unpack_arrays(data, where=where)
        if tuple(sorted(arrays)) != _NAMES or arrays["threshold"].size != 1 or arrays["format"].size != 1:
            raise InputError(f"{where}: holds {', '.join(sorted(arrays))}; expected {', '.join(_NAMES)}")
        if arrays["format"].ravel()[0] != _FORMAT:  # it may be no number
            raise InputError(f"{where}: format {arrays['format'].ravel()[0]}, this version reads {_FORMAT}")
        return cls(arrays["mean"], arrays["whitening"], arrays["centres"], float(arrays["threshold"].ravel()[0]))
