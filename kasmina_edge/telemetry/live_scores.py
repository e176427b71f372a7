"""What live frames said about each bundle: the last windows' score moments, merged, for the health gate."""

from __future__ import annotations

import math
import sys
from collections import deque

from kasmina_edge.contracts.record import Summary, TelemetryRecord

MAX_BUNDLES = 8
MAX_COUNT = 2**53
_MAX = sys.float_info.max


def merge(parts: list[Summary]) -> Summary:
    """Moments of the union of several windows (Chan, Golub and LeVeque 1983).

    Never raises: what a Summary cannot hold becomes the largest number that it can.

    >>> one = Summary(count=2, mean=1.0, variance=1.0, minimum=0.0, maximum=2.0)
    >>> merge([one, one]).count
    4
    """
    total = sum(p.count for p in parts)
    if total == 0:
        return Summary(count=0, mean=0.0, variance=0.0, minimum=0.0, maximum=0.0)
    seen = [p for p in parts if p.count]
    shares = [p.count / total for p in seen]
    means = [p.mean for p in seen]
    scale = max(map(abs, means)) or 1.0  # no sum of shares of it leaves the range of floats
    mean = scale * math.fsum(share * (m / scale) for share, m in zip(shares, means, strict=True))
    mean = min(max(mean, min(means)), max(means))
    variance = 0.0
    for share, part in zip(shares, seen, strict=True):
        away = max(-_MAX, min(_MAX, part.mean - mean))
        variance = min(_MAX, variance + share * part.variance + (share * away) * away)  # products may be inf, not NaN
    return Summary(
        count=min(total, MAX_COUNT),
        mean=mean,
        variance=variance,
        minimum=min(p.minimum for p in seen),
        maximum=max(p.maximum for p in seen),
    )


class LiveScores:
    """Score summaries by bundle digest, the last ``windows`` of each.

    Args:
        windows: How many telemetry windows of a bundle are kept.
    """

    def __init__(self, windows: int = 10) -> None:
        self._windows = windows
        self._by_bundle: dict[str, deque[Summary]] = {}

    def add(self, record: TelemetryRecord) -> None:
        """Take one telemetry record into account; records without scores count nothing."""
        if record.score is None or record.score.count == 0:
            return
        if record.bundle not in self._by_bundle and len(self._by_bundle) >= MAX_BUNDLES:
            del self._by_bundle[next(iter(self._by_bundle))]
        self._by_bundle.setdefault(record.bundle, deque(maxlen=self._windows)).append(record.score)

    def forget(self, bundle: str) -> None:
        """Start again for this bundle."""
        self._by_bundle.pop(bundle, None)

    def summary(self, bundle: str) -> Summary | None:
        """The merged moments, or None when nothing was seen."""
        parts = self._by_bundle.get(bundle)
        return merge(list(parts)) if parts else None
