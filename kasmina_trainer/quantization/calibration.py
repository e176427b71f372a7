"""From calibration frames to activation ranges, and the refusal of frames that cannot give any.

Three ways to a range: all that was seen (min-max), all but a share of the values (percentile), or the range with the
smallest sum of clipping and rounding error (MSE; Nagel et al. 2021, "A White Paper on Neural Network Quantization",
section 3.1). Head-room for later grafts widens what they give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.ranges import Array, Observed, Range, Ranges, snapped, with_headroom

LEAST_FRAMES = 16
"""Frames below which a range is an accident."""

_STEPS = 255
_SHRINKS = 0.95 ** np.arange(91)

MOST_OUTSIDE = 0.001
"""Share of the values of all frames that may lie outside of the valid range."""


def require_frames(
    frames: Array, *, valid: Range | None = None, least: int = LEAST_FRAMES, where: str = "calibration"
) -> None:
    """Stop at calibration frames that would give wrong ranges. Pure.

    Args:
        frames: Model inputs, after preprocessing's inverse: in the app's units.  # (N, ...)
        valid: What the manifest says of an input's values, ends included; None: not known.
        least: Fewest frames that are taken.
        where: What the frames are called in a message.

    Raises:
        InputError: Too few, not finite, all one value, or of another range; the message carries both numbers.
    """
    if len(frames) < least:
        raise InputError(
            f"{where}: {len(frames)} frames, at least {least} are needed for ranges that hold on other frames",
            "Give some hundred frames that show every domain the network is for.",
        )
    wrong = ~np.isfinite(frames)
    if wrong.any():
        frame = int(np.argwhere(wrong)[0][0])
        raise InputError(
            f"{where}: {int(wrong.sum())} of {frames.size} values are not finite, the first in frame {frame}",
            "Remove or repair those frames.",
        )
    low, high = float(frames.min()), float(frames.max())
    if low == high:
        raise InputError(
            f"{where}: all {frames.size} values are {low:g}; two different ones are the least that makes a range",
            "Give frames of the real input.",
        )
    if valid is None:
        return
    outside = float(((frames < valid[0]) | (frames > valid[1])).mean())
    if outside > MOST_OUTSIDE:
        raise InputError(
            f"{where}: values from {low:g} to {high:g}, {outside:.1%} of them outside of the valid range "
            f"{valid[0]:g} to {valid[1]:g}; at most {MOST_OUTSIDE:.1%} may be",
            "Scale the frames as the app does before they reach the network.",
        )
    width = (high - low) / (valid[1] - valid[0])
    if width < MOST_OUTSIDE * 10:
        raise InputError(
            f"{where}: values from {low:g} to {high:g} cover {width:.1%} of the valid range {valid[0]:g} to "
            f"{valid[1]:g}; at least {MOST_OUTSIDE * 10:.0%} is needed",
            "Scale the frames as the app does before they reach the network.",
        )


def end_percentiles(observed: Observed, percentile: float) -> Range:
    """The range that keeps ``percentile`` per cent of the values, the rest cut off half at each end.

    An end that holds zero alone stays: what a ReLU gives begins at 0 for the file as for the values.

    Args:
        observed: What the calibration frames showed.
        percentile: Above 50, at most 100.

    Raises:
        InputError: Not such a percentile.
    """
    if not 50 < percentile <= 100:
        raise InputError(f"percentile {percentile:g}: expected more than 50 and at most 100")
    if percentile == 100 or observed.low == observed.high:
        return observed.low, observed.high
    cut = (1 - percentile / 100) / 2
    below = np.concatenate([[0.0], np.cumsum(observed.shares)])
    ends = np.interp([cut, 1 - cut], below, np.linspace(observed.low, observed.high, len(below)))
    low = observed.low if observed.low >= 0 else min(float(ends[0]), 0.0)
    high = observed.high if observed.high <= 0 else max(float(ends[1]), 0.0)
    return low, high


def least_error(observed: Observed) -> Range:
    """The range with the smallest sum of clipping and rounding error, each end looked for by itself.

    Unlike `Observed.tight`, which shrinks both ends alike and to half at most, ends come in to a hundredth of what was
    seen: enough for one spike over otherwise small values.
    """
    width = (observed.high - observed.low) / len(observed.shares)
    centres = observed.low + (np.arange(len(observed.shares)) + 0.5) * width
    lows, highs = (np.unique(end * _SHRINKS) for end in (min(observed.low, 0.0), max(observed.high, 0.0)))
    cut_low = (observed.shares * np.maximum(lows[:, None] - centres, 0) ** 2).sum(1)
    cut_high = (observed.shares * np.maximum(centres - highs[:, None], 0) ** 2).sum(1)
    step = (highs[None, :] - lows[:, None]) / _STEPS
    error = cut_low[:, None] + cut_high[None, :] + step * step / 12
    low, high = np.unravel_index(int(error.argmin()), error.shape)
    return float(lows[low]), float(highs[high])


def range_by(observed: Observed, config: QuantizeConfig) -> Range:
    """One tensor's range by the configuration's method, without head-room."""
    if config.calibration == "minmax":
        return observed.low, observed.high
    if config.calibration == "percentile":
        return end_percentiles(observed, config.percentile)
    return least_error(observed)


def calibrated(
    observed: Mapping[str, Observed], config: QuantizeConfig, *, border: Sequence[str] = ()
) -> dict[str, Range]:
    """Ranges of all tensors, with head-room and snapped.

    Args:
        observed: What the calibration frames showed.
        config: Method, percentile, head-room.
        border: Inputs and outputs of the network; they keep all that was seen, and get no head-room.
    """
    ends = {n: (o.low, o.high) if n in border else range_by(o, config) for n, o in observed.items()}
    return snapped(with_headroom(ends, config.headroom, keep=border))


def versions(
    observed: Mapping[str, Observed],
    config: QuantizeConfig,
    *,
    border: Sequence[str] = (),
    carried: Ranges | None = None,
) -> dict[str, dict[str, Range]]:
    """The range sets that are worth building and measuring for one network, the configuration's own first.

    Args:
        observed: What the calibration frames showed of every tensor of the file.
        config: How it is quantized.
        border: Inputs and outputs of the network.
        carried: Ranges that training has learned, by tensor name; they take the places of the calibrated ones.

    Returns:
        Ranges by version name. With ranges that training relied on there is one version; otherwise the whole range is
        the second, for a network whose rare large values carry meaning.
    """
    own = calibrated(observed, config, border=border)
    if carried:
        return {f"qat, {config.calibration}": {**own, **{n: r for n, r in carried.items() if n in own}}}
    found: dict[str, dict[str, Range]] = {config.calibration: own}
    if config.calibration != "minmax":
        whole = config.model_copy(update={"calibration": "minmax"})
        found["minmax"] = calibrated(observed, whole, border=border)
    return found
