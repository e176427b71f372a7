"""Where the heart beats in one lead of an electrocardiogram, and how wide each beat is. Pure numpy, offline, no chance.

The detector follows Pan and Tompkins 1985 (IEEE Trans. Biomed. Eng. 32:230-236): band-pass 5 to 15 Hz, derivative,
square, 150 ms moving sum, adaptive signal and noise levels, 200 ms refractory time, search back after 1.66 beats of
silence. Unlike theirs it sees the whole record at once, so its filters are zero-phase (in the frequency domain).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Signal = npt.NDArray[np.float64]

BAND_HZ = (5.0, 15.0)
SHAPE_BAND_HZ = (0.7, 40.0)
"""Band in which a beat's shape is looked at: without the drifting baseline and the muscles' noise."""
SUM_S = 0.150
REFRACTORY_S = 0.200
SEARCH_BACK = 1.66
REACH_S = 0.100
"""An R peak is looked for so far to both sides of the moving sum's peak."""
LEARN_S = 2.0


def r_peaks(signal: Signal, rate_hz: float) -> npt.NDArray[np.intp]:
    """Samples at which beats peak, rising.

    Args:
        signal: One lead, any unit.  # (N,)
        rate_hz: Samples a second.

    Raises:
        InputError: Not one axis, shorter than two seconds, or not finite.
    """
    signal = np.asarray(signal, np.float64)
    if signal.ndim != 1 or len(signal) < LEARN_S * rate_hz or not np.isfinite(signal).all():
        raise InputError(f"ECG: expected at least {LEARN_S:g} s of finite samples on one axis, got {signal.shape}")
    energy = _energy(signal, rate_hz)
    inner = np.flatnonzero((energy[1:-1] >= energy[:-2]) & (energy[1:-1] > energy[2:])) + 1
    found = _beats(energy, _apart(energy, inner, round(REFRACTORY_S * rate_hz)), rate_hz)
    shape = np.abs(band_passed(signal, rate_hz, SHAPE_BAND_HZ))
    reach = round(REACH_S * rate_hz)
    peaks = {max(0, at - reach) + int(shape[max(0, at - reach) : at + reach + 1].argmax()) for at in found}
    return np.array(_apart(shape, np.array(sorted(peaks), np.intp), round(REFRACTORY_S * rate_hz)), np.intp)


def half_widths_ms(signal: Signal, rate_hz: float, peaks: npt.NDArray[np.intp]) -> Signal:
    """How long each beat stays above half of its own peak, around the peak, milliseconds.

    Args:
        signal: As `r_peaks`.
        rate_hz: As `r_peaks`.
        peaks: Samples of the peaks.  # (M,)
    """
    shape = band_passed(signal, rate_hz, SHAPE_BAND_HZ)
    widths = np.empty(len(peaks))
    for i, at in enumerate(peaks):
        above = shape * np.sign(shape[at]) > abs(shape[at]) / 2
        low = at
        while low > 0 and above[low - 1]:
            low -= 1
        high = at
        while high < len(shape) - 1 and above[high + 1]:
            high += 1
        widths[i] = (high - low + 1) * 1000.0 / rate_hz
    return widths


def band_passed(signal: Signal, rate_hz: float, band_hz: tuple[float, float]) -> Signal:
    """The part of a signal inside a band, without delay or mean; edges fall off as a Butterworth's of fourth order."""
    return np.fft.irfft(np.fft.rfft(signal) * band_gain(len(signal), rate_hz, band_hz), len(signal))


def band_gain(samples: int, rate_hz: float, band_hz: tuple[float, float]) -> Signal:
    """Gain of each line of a signal's spectrum for `band_passed`.  # (samples // 2 + 1,)"""
    hertz = np.fft.rfftfreq(samples, 1.0 / rate_hz)
    low, high = band_hz
    gain = np.zeros(len(hertz))
    gain[1:] = 1.0 / np.sqrt(1.0 + (low / hertz[1:]) ** 8) / np.sqrt(1.0 + (hertz[1:] / high) ** 8)
    return gain


def _energy(signal: Signal, rate_hz: float) -> Signal:
    slope = np.gradient(band_passed(signal, rate_hz, BAND_HZ)) * rate_hz
    width = max(1, round(SUM_S * rate_hz))
    return np.convolve(slope**2, np.full(width, 1.0 / width), "same")


def _apart(height: Signal, candidates: npt.NDArray[np.intp], samples: int) -> list[int]:
    """The highest candidates that keep a distance from each other, in time order."""
    taken = np.zeros(len(height), bool)
    kept = []
    for at in candidates[np.argsort(-height[candidates], kind="stable")].tolist():
        if not taken[max(0, at - samples + 1) : at + samples].any():
            taken[at] = True
            kept.append(at)
    return sorted(kept)


def _beats(energy: Signal, candidates: list[int], rate_hz: float) -> list[int]:
    """Which candidates are beats: running estimates of signal and noise, threshold a quarter of the way up."""
    learned = energy[: round(LEARN_S * rate_hz)]
    signal_level, noise_level = float(learned.max()) / 3, float(learned.mean()) / 2
    beats: list[int] = []
    quiet: list[int] = []  # candidates below the threshold since the last beat
    for at in candidates:
        threshold = noise_level + 0.25 * (signal_level - noise_level)
        if len(beats) > 1 and quiet:
            usual = float(np.mean(np.diff(beats[-9:])))
            if at - beats[-1] > SEARCH_BACK * usual:
                best = max(quiet, key=lambda c: energy[c])
                if energy[best] > threshold / 2:
                    beats.append(best)
                    signal_level += 0.25 * (float(energy[best]) - signal_level)
                quiet = [c for c in quiet if c > beats[-1]]
        if energy[at] > threshold:
            beats.append(at)
            quiet = []
            signal_level += 0.125 * (float(energy[at]) - signal_level)
        else:
            quiet.append(at)
            noise_level += 0.125 * (float(energy[at]) - noise_level)
    return beats
