"""One quantity under watch: learned, whitened, clipped, given to its detector, and asked whether it is at home."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from kasmina_edge.errors import InputError
from kasmina_edge.safety.detectors import (
    Adwin,
    AdwinConfig,
    Detector,
    DriftState,
    PageHinkley,
    PageHinkleyConfig,
    WindowedKs,
    WindowedKsConfig,
)

DetectorConfig = PageHinkleyConfig | AdwinConfig | WindowedKsConfig
SPREAD = PageHinkleyConfig(threshold=60.0)
_STRIDE = 16
_MOMENTS = 256


@dataclass(frozen=True)
class Watched:
    """How one quantity is watched.

    Attributes:
        detector: Which detector, and where its line is, in standard deviations of the whitened values.
        least_scale: Standard deviation below which the quantity counts as constant, in its own unit.
        spread: How the spread is watched, in standard deviations of the magnitudes; None: it is not.
    """

    detector: DetectorConfig
    least_scale: float = 1e-6
    spread: PageHinkleyConfig | None = SPREAD


@dataclass(frozen=True)
class QuantityLimits:
    """How a quantity is learned, and what counts as home.

    Attributes:
        learn: Values that scale, level and lag-1 correlation are learned from, at least 16.
        recent: Latest values that say where a quantity is now.
        clip: Whitened values are held within this many standard deviations.
        home_z: Distance of the latest values' mean to a home, in standard errors, up to which it is at home; a domain's
            own threshold counts where it is larger.
        home_ratio: A quantity that spreads more than this many times its home's spread is not at home.
        most_correlation: Lag-1 correlation is taken to be at most this.
    """

    learn: int = 256
    recent: int = 64
    clip: float = 5.0
    home_z: float = 5.0
    home_ratio: float = 2.0
    most_correlation: float = 0.97

    def __post_init__(self) -> None:
        if self.learn < 16 or self.recent < 8 or not (self.clip > 1 and self.home_z > 0 and self.home_ratio > 1):
            raise InputError(
                f"drift watch: learn {self.learn} >= 16, recent {self.recent} >= 8, clip {self.clip} > 1, "
                f"home_z {self.home_z} > 0 and home_ratio {self.home_ratio} > 1 must hold"
            )
        if not 0 <= self.most_correlation < 1:
            raise InputError(f"drift watch: most_correlation {self.most_correlation}, expected 0 to below 1")


class DriftChange(NamedTuple):
    """What one value settled.

    Attributes:
        quantity: Its name.
        kind: ``drifted``, ``cleared`` (it is at home again), or ``moved`` (from one domain of the bundle to another).
        since_s: When the change is held to have begun, on the clock of the caller's ``at_s``.
        level: Mean of the latest values, in the quantity's unit.
        home: Name of the nearest domain, ``learned`` for what was seen first, "" when nothing is near.
    """

    quantity: str
    kind: Literal["drifted", "cleared", "moved"]
    since_s: float
    level: float
    home: str


class Home(NamedTuple):
    """Where a quantity may be: mean and standard deviation over ``samples``, and the line in standard errors."""

    name: str
    mean: float
    std: float
    samples: int
    z: float


class Quantity:
    """One watched quantity of one device; `kasmina_edge.safety.drift_watch` says what is done and why."""

    def __init__(self, name: str, watched: Watched, homes: tuple[Home, ...], limits: QuantityLimits) -> None:
        self._name, self._watched, self._known, self._limits = name, watched, homes, limits
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._detector = make_detector(self._watched.detector)
        self._spread = PageHinkley(self._watched.spread) if self._watched.spread else None
        self._magnitude, self._magnitude_scale = 0.0, 1.0
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=self._limits.recent)
        self._moments: deque[tuple[int, float]] = deque(maxlen=_MOMENTS)
        self._homes = self._known
        self._home = ""
        self._level = self._previous = self._correlation = 0.0
        self._scale = 1.0
        self._count = 0
        self.learning = True
        self.since_s: float | None = None
        self._is_shape = False
        self._pending: tuple[int, float] | None = None

    def update(self, value: float, at_s: float) -> DriftChange | None:
        """Take in one value; what it settled, if anything."""
        if value - value != 0.0:
            return None
        if not self._count % _STRIDE:
            self._moments.append((self._count, at_s))
        self._count += 1
        self._recent.append(value)
        if self.learning:
            self._first.append(value)
            return self._learn() if len(self._first) >= self._limits.learn else None
        apart = value - self._level
        fresh = (apart - self._correlation * self._previous) / self._scale
        self._previous = apart
        clip = self._limits.clip
        fresh = clip if fresh > clip else -clip if fresh < -clip else fresh
        if self._detector.update(fresh) is DriftState.DRIFT:
            return self._changed(self._detector)
        if self._spread is not None:
            magnitude = fresh if fresh >= 0.0 else -fresh
            if self._spread.update((magnitude - self._magnitude) / self._magnitude_scale) is DriftState.DRIFT:
                return self._changed(self._spread)
        if self._pending is not None and self._count >= self._pending[0]:
            return self._decide(self._pending[1])
        if self.since_s is not None and not self._is_shape and not self._count % self._limits.recent:
            return self._look_home()
        return None

    def _learn(self) -> DriftChange | None:
        """Level, lag-1 correlation and the spread of what is new in each value; then: is this a home at all?"""
        values, self._first, self.learning = self._first, [], False
        self._level, spread = _mean_and_spread(values)
        apart = [v - self._level for v in values]
        power = math.fsum(a * a for a in apart)
        lagged = math.fsum(a * b for a, b in pairwise(apart))
        correlation = lagged / power if power > 0 else 0.0
        noise = 1.0 / math.sqrt(len(values))
        correlation += (1.0 + 4.0 * correlation) / len(values)  # its bias, Kendall 1954
        self._correlation = min(correlation, self._limits.most_correlation) if correlation > noise else 0.0
        fresh = [b - self._correlation * a for a, b in pairwise(apart)]
        self._scale = max(_mean_and_spread(fresh)[1], self._watched.least_scale, 1e-6 * abs(self._level))
        clip = self._limits.clip
        self._magnitude, scale = _mean_and_spread([min(abs(f) / self._scale, clip) for f in fresh])
        self._magnitude_scale = max(scale, 0.1)
        self._previous = apart[-1]
        if not self._homes:
            effective = max(2, int(len(values) * (1 - self._correlation) / (1 + self._correlation)))
            self._homes = (
                Home("learned", self._level, max(spread, self._watched.least_scale), effective, self._limits.home_z),
            )
        self._home = self._at_home() or ""
        if self._home:
            return None
        return self._drift(self._moments[0][1])

    def _changed(self, detector: Detector) -> DriftChange | None:
        """Where there are several homes, nothing is said before the latest values are all from after the alarm."""
        since = self._moment(self._count - detector.onset)
        if len(self._homes) == 1:
            return self._decide(since)
        if self._pending is None:
            self._pending = (self._count + self._limits.recent, since)
        return None

    def _decide(self, since: float) -> DriftChange | None:
        self._pending = None
        home = self._at_home()
        if self.since_s is not None:
            return self._clear(home) if home else None
        if home and home != self._home:
            self._home = home
            return DriftChange(self._name, "moved", since, self._now()[0], home)
        self._is_shape = bool(home)
        return self._drift(since)

    def _look_home(self) -> DriftChange | None:
        home = self._at_home()
        return self._clear(home) if home else None

    def _drift(self, since_s: float) -> DriftChange:
        self.since_s = since_s
        return DriftChange(self._name, "drifted", since_s, self._now()[0], self._nearest())

    def _clear(self, home: str) -> DriftChange:
        assert self.since_s is not None
        since, self.since_s, self._is_shape, self._home = self.since_s, None, False, home
        return DriftChange(self._name, "cleared", since, self._now()[0], home)

    def _moment(self, count: int) -> float:
        """When value number ``count`` came, to within a few values; the earliest time known for one before that."""
        found = self._moments[0][1]
        for number, at_s in self._moments:
            if number > count:
                break
            found = at_s
        return found

    def _now(self) -> tuple[float, float]:
        return _mean_and_spread(self._recent)

    def _distance(self, home: Home, mean: float, spread: float) -> float:
        """In units of what still counts as home."""
        correlation = self._correlation
        effective = max(1.0, len(self._recent) * (1 - correlation) / (1 + correlation))
        least = max(home.std, self._watched.least_scale)
        error = least * math.sqrt(1.0 / effective + 1.0 / home.samples)
        return max(abs(mean - home.mean) / (error * home.z), spread / (least * self._limits.home_ratio))

    def _at_home(self) -> str | None:
        """The nearest home that the latest values are at; the present one where it is among them."""
        mean, spread = self._now()
        found = [(self._distance(h, mean, spread), h.name != self._home, h.name) for h in self._homes]
        inside = [f for f in found if f[0] <= 1.0]
        return min(inside, key=lambda f: (f[1], f[0]))[2] if inside else None

    def _nearest(self) -> str:
        mean, spread = self._now()
        return min(self._homes, key=lambda h: self._distance(h, mean, spread)).name

    def to_state(self) -> dict[str, Any]:
        """Everything remembered, as plain JSON values."""
        learned = next((h for h in self._homes if h.name == "learned" and not self._known), None)
        return {
            "detector": self._detector.to_state(), "spread": self._spread.to_state() if self._spread else None,
            "magnitude": self._magnitude, "magnitude_scale": self._magnitude_scale,
            "first": list(self._first), "recent": list(self._recent), "moments": [list(m) for m in self._moments],
            "learned": list(learned) if learned else None, "home": self._home, "level": self._level,
            "previous": self._previous, "correlation": self._correlation, "scale": self._scale, "count": self._count,
            "learning": self.learning, "since_s": self.since_s, "is_shape": self._is_shape,
            "pending": list(self._pending) if self._pending else None,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; raises KeyError, TypeError, ValueError or InputError on a damaged one."""
        self.reset()
        self._detector.load_state(state["detector"])
        if self._spread is not None:
            self._spread.load_state(state["spread"])
        self._magnitude, self._magnitude_scale = _finite(state["magnitude"]), _finite(state["magnitude_scale"])
        self._first = [_finite(v) for v in state["first"]]
        self._recent.extend(_finite(v) for v in state["recent"])
        self._moments.extend((int(count), _finite(at_s)) for count, at_s in state["moments"])
        if state["learned"] is not None:
            name, mean, std, samples, z = state["learned"]
            self._homes = (Home(str(name), _finite(mean), _finite(std), int(samples), _finite(z)),)
        self._home, self._count = str(state["home"]), int(state["count"])
        self._level, self._previous = _finite(state["level"]), _finite(state["previous"])
        self._correlation, self._scale = _finite(state["correlation"]), _finite(state["scale"])
        self.learning, self._is_shape = bool(state["learning"]), bool(state["is_shape"])
        self.since_s = None if state["since_s"] is None else _finite(state["since_s"])
        pending = state["pending"]
        self._pending = None if pending is None else (int(pending[0]), _finite(pending[1]))
        fits = self._scale > 0 and self._magnitude_scale > 0 and (self.learning or bool(self._homes))
        if not fits or (self._count > 0 and not self._moments):
            raise ValueError(f"{self._name}: scale {self._scale} and {len(self._moments)} moments do not fit together")


def make_detector(config: DetectorConfig) -> Detector:
    """The detector that a config belongs to."""
    if isinstance(config, PageHinkleyConfig):
        return PageHinkley(config)
    return Adwin(config) if isinstance(config, AdwinConfig) else WindowedKs(config)


def _mean_and_spread(values: Sequence[float] | deque[float]) -> tuple[float, float]:
    count = len(values)
    mean = math.fsum(values) / count
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, count - 1))


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
