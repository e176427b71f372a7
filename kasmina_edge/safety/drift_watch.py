"""Which quantity of a device drifted, and since when: one streaming detector a quantity, made fit for real streams.

`safety.drift` says how far a window of frames is from the domains of the bundle. `DriftWatch` says which quantity began
to move, and when, long before that distance reaches its alarm line, and for quantities that no manifest knows.

What stands between a raw value and its detector, and why:

- *Scale and level* come from the first ``learn`` values seen here: a device that looks at one scene has another spread
  than the bundle's reference frames.
- *Whitening* (first-order, Box and Jenkins): frames of a camera follow each other, and detectors that take them for
  independent cry wolf. Their lag-1 correlation is learned and taken out.
- *Clipping* at a few standard deviations: one broken frame is no drift.
- *Spread* of what is left is watched beside its level, by a Page-Hinkley of its own over magnitudes: a sensor that
  grows noisy moves no mean, and a distribution's distance sees it late.

A change is drift when the quantity is not at home afterwards. Homes are the domains of the active bundle, or, for a
quantity they do not know, what was learned here. A change from one domain of the bundle to another is a move, no drift.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.contracts.manifest import DomainStatistics
from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors import AdwinConfig, PageHinkleyConfig, WindowedKsConfig
from kasmina_edge.safety.drift_quantity import DriftChange, Home, Quantity, QuantityLimits, Watched

__all__ = ["DEFAULT_WATCHES", "DriftChange", "DriftWatch", "DriftWatchConfig", "QuantityLimits", "Watched"]

DEFAULT_WATCHES: Mapping[str, Watched] = MappingProxyType(
    {
        "score": Watched(PageHinkleyConfig(threshold=40.0), least_scale=0.01),
        "input_mean": Watched(WindowedKsConfig(alpha=1e-7)),
        "input_std": Watched(WindowedKsConfig(alpha=1e-7)),
        "roughness": Watched(AdwinConfig(delta=1e-4)),
        "label_entropy": Watched(PageHinkleyConfig(threshold=40.0), least_scale=0.1),
        "drift": Watched(PageHinkleyConfig(threshold=40.0, direction="up"), least_scale=0.1, spread=None),
    }
)
"""What watches what. The score (share of 1) and the label entropy (bits a window) fall or rise a little and for good:
Page-Hinkley is the quickest for that. The input's mean and spread change shape with the light, and windowed KS sees
more than the mean. Roughness (focus, dirt) creeps at a pace nobody knows beforehand: ADWIN has no window to choose. The
drift score (units of the alarm line, a window) matters only when it rises."""


@dataclass(frozen=True)
class DriftWatchConfig:
    """What a `DriftWatch` watches, and how.

    Attributes:
        watches: How each quantity is watched, by name; others are not.
        limits: How a quantity is learned, and what counts as home.
    """

    watches: Mapping[str, Watched] = field(default_factory=lambda: DEFAULT_WATCHES)
    limits: QuantityLimits = field(default_factory=QuantityLimits)


class DriftWatch:
    """Watches named quantities of one device; not safe for several threads, the collector holds its own lock.

    Args:
        domains: The active bundle's domains; their features are homes of the quantities of the same names.
        config: Where the lines are.

    >>> watch = DriftWatch((), DriftWatchConfig(watches={"score": Watched(PageHinkleyConfig(), 0.01)}))
    >>> for t in range(400):
    ...     change = watch.update("score", 0.9 + 0.01 * (t % 3) - (0.2 if t >= 300 else 0.0), at_s=float(t))
    ...     if change: print(change.kind, change.since_s // 16 * 16, round(change.level, 2))
    drifted 288.0 0.89
    """

    def __init__(self, domains: Sequence[DomainStatistics] = (), config: DriftWatchConfig | None = None) -> None:
        self.config = config or DriftWatchConfig()
        self.switch(domains)

    def switch(self, domains: Sequence[DomainStatistics]) -> None:
        """Begin anew: another bundle answers, with other domains."""
        self._subject = _fingerprint(domains, self.config)
        self._quantities = {
            name: Quantity(name, watched, _homes(name, domains, self.config.limits), self.config.limits)
            for name, watched in self.config.watches.items()
        }

    def update(self, quantity: str, value: float, at_s: float) -> DriftChange | None:
        """Take in one value.

        Args:
            quantity: One of the watched names; any other is left out.
            value: In the quantity's own unit; one that is not finite is left out.
            at_s: When it was seen, on any clock in seconds.
        """
        watched = self._quantities.get(quantity)
        return None if watched is None else watched.update(value, at_s)

    def update_all(self, values: Mapping[str, float], at_s: float) -> list[DriftChange]:
        """`update` for each of several quantities that were seen together."""
        changes = (self.update(name, value, at_s) for name, value in values.items())
        return [change for change in changes if change is not None]

    @property
    def drifted(self) -> dict[str, float]:
        """Every quantity that is adrift, with the time it began."""
        return {name: q.since_s for name, q in self._quantities.items() if q.since_s is not None}

    @property
    def learning(self) -> tuple[str, ...]:
        """Quantities that were not seen often enough to say anything yet."""
        return tuple(name for name, q in self._quantities.items() if q.learning)

    def to_state(self) -> dict[str, Any]:
        """Everything remembered, as plain JSON values."""
        return {"subject": self._subject, "quantities": {n: q.to_state() for n, q in self._quantities.items()}}

    def load_state(self, state: Mapping[str, Any]) -> bool:
        """Go on from a saved state.

        Returns:
            False when it belongs to other domains or another config; then nothing is changed.

        Raises:
            InputError: The state is damaged; then everything begins anew.
        """
        if state.get("subject") != self._subject:
            return False
        try:
            for name, quantity in self._quantities.items():
                quantity.load_state(state["quantities"][name])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, InputError) as exc:
            for quantity in self._quantities.values():
                quantity.reset()
            raise InputError(f"drift watch: damaged state ({exc})") from exc
        return True


def label_entropy(counts: Mapping[str, int]) -> float:
    """Entropy of a window's label counts in bits; 0 where there is one label or none.

    >>> label_entropy({"a": 5, "b": 5}), label_entropy({"a": 7})
    (1.0, 0.0)
    """
    total = sum(counts.values())
    shares = [n / total for n in counts.values() if n > 0]
    return max(0.0, -math.fsum(p * math.log2(p) for p in shares)) if len(shares) > 1 else 0.0


def _homes(name: str, domains: Sequence[DomainStatistics], limits: QuantityLimits) -> tuple[Home, ...]:
    return tuple(
        Home(d.name, f.mean, f.std, d.samples, max(limits.home_z, d.threshold))
        for d in domains
        if (f := d.features.get(name)) is not None
    )


def _fingerprint(domains: Sequence[DomainStatistics], config: DriftWatchConfig) -> str:
    told = [d.model_dump(mode="json") for d in domains]
    return hashlib.sha256(canonical_bytes({"domains": told, "config": repr(config)})).hexdigest()[:16]
