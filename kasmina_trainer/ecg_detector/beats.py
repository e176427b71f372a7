"""A beat detector that learned on simulated beats alone, and runs over any record of one lead.

The net looks at 0.75 s of one lead at 128 Hz and says whether a beat peaks at its centre; over a record it looks every
two samples (16 ms), and beats are where its score peaks above one half, 200 ms apart. On a real record it is compared
with `ecg_peaks.r_peaks`, a detector of another kind (Pan and Tompkins) that shares nothing with it. **That detector is
no expert**: agreement with it is agreement of two programs, and is called so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Samples
from kasmina_trainer.datasets.ecg_peaks import band_passed
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.recording import record
from kasmina_trainer.datasets.medical_simulator.windows import BAND_HZ, FULL_SCALE_MV, RATE_HZ, SNR_DB
from kasmina_trainer.ecg_detector.nets import BeatNet
from kasmina_trainer.training import Progress, TrainingSettings, as_tensors, train

LENGTH = 96
SECONDS = 20.0
PATTERNS = ("normal", "pvc", "bigeminy", "af", "svt", "lbbb", "rbbb", "vt", "av2", "st_elevation")
LEADS = ("I", "II", "V1", "V5")
CLOSE_S, AWAY_S = 0.016, 0.060
"""A window whose centre is nearer to a peak than the first is a beat, farther than the second is none."""
REFRACTORY_S = 0.200
STRIDE = 2
SETTINGS = TrainingSettings(steps=900, batch=128, learning_rate=8e-3, shift=0)
Signal = npt.NDArray[np.float64]
Answer = Callable[[Images], npt.NDArray[np.floating]]


def samples(seed: int, numbers: Sequence[int]) -> Samples:
    """Windows of simulated patients: half with a beat at their centre, half without.

    Args:
        seed: Of patients, rhythms and noise.
        numbers: Of the patients.

    Returns:
        Windows in [0, 1] and whether a beat is there.  # (N, 1, 1, 96), (N,)
    """
    x: list[Images] = []
    y: list[int] = []
    for number in numbers:
        who = patient(seed, number)
        rng = who.rng(301)
        name = PATTERNS[number % len(PATTERNS)]
        found = record(
            who,
            name,
            seconds=SECONDS,
            rate_hz=RATE_HZ,
            snr_db=float(rng.uniform(*SNR_DB)),
            leads=(str(rng.choice(LEADS)),),
        )
        calm, beats = conditioned(found.signal[0], RATE_HZ), found.beats()
        beats = beats[(beats > LENGTH) & (beats < len(calm) - LENGTH)]
        near = round(CLOSE_S * RATE_HZ)
        at = np.repeat(beats, 2) + rng.integers(-near, near + 1, 2 * len(beats))
        none = rng.integers(LENGTH, len(calm) - LENGTH, 6 * len(beats))
        away = np.abs(none[:, None] - found.beats()[None, :]).min(1) > AWAY_S * RATE_HZ
        none = none[away][: len(at)]
        x += [windows(calm, np.concatenate([at, none]))]
        y += [1] * len(at) + [0] * len(none)
    return np.concatenate(x), np.array(y, np.int64)


def train_beat_net(
    given: Samples, *, seed: int = 0, settings: TrainingSettings = SETTINGS, on_step: Progress | None = None
) -> BeatNet:
    """A beat net trained from nothing, in evaluation mode.

    Args:
        given: Of `samples`.
        seed: Of first weights and order.
        settings: How long and how boldly.
        on_step: Called with (steps done, steps asked for).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BeatNet()
    parameters = list(net.parameters())
    source = as_tensors(given, "cpu")
    train(net, parameters, [source], training_modules=[net], settings=settings, seed=seed, on_step=on_step)
    return net.eval()


def find_beats(signal: Signal, rate_hz: float, answer: Answer) -> npt.NDArray[np.int64]:
    """Where beats peak in one lead.

    Args:
        signal: mV, at least two seconds.  # (N,)
        rate_hz: Samples a second.
        answer: Windows to logits, the second for a beat.  # (M, 1, 1, 96) to (M, 2)

    Returns:
        Samples of ``signal``, rising.

    Raises:
        InputError: Too short, not one axis, not finite; or answers of another shape, or that are not finite.
    """
    if not RATE_HZ / 4 <= rate_hz < np.inf:
        raise InputError(f"beats at {rate_hz!r} Hz: expected at least {RATE_HZ / 4:g}")
    if signal.ndim != 1 or len(signal) < 2 * rate_hz or not np.isfinite(signal).all():
        raise InputError(
            f"beats in a signal of shape {signal.shape} at {rate_hz:g} Hz: expected 2 s of finite samples on one axis"
        )
    calm = conditioned(at_rate(signal, rate_hz), RATE_HZ)
    calm = np.pad(calm, LENGTH // 2, constant_values=0.5)
    centres = np.arange(LENGTH // 2, len(calm) - LENGTH // 2, STRIDE)
    logits = np.asarray(answer(windows(calm, centres)), np.float64)
    if logits.shape != (len(centres), 2) or not np.isfinite(logits).all():
        raise InputError(f"answers {logits.shape} on {len(centres)} windows: expected (M, 2), all finite")
    score = 1 / (1 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -60, 60)))
    smooth = np.convolve(score, (0.25, 0.5, 0.25), "same")
    apart = round(REFRACTORY_S * RATE_HZ / STRIDE)
    taken = np.zeros(len(smooth), bool)
    kept = []
    for i in np.argsort(-smooth, kind="stable").tolist():
        if smooth[i] <= 0.5:
            break
        if not taken[i]:
            kept.append(i)
            taken[max(0, i - apart + 1) : i + apart] = True
    return np.array([round(i * STRIDE * rate_hz / RATE_HZ) for i in sorted(kept)], np.int64)


def conditioned(signal: Signal, rate_hz: float) -> npt.NDArray[np.float32]:
    """What an app does before the net: without drift and mains, in [0, 1].  # (N,) to (N,)"""
    calm = band_passed(signal, rate_hz, BAND_HZ)
    return np.clip(calm / (2 * FULL_SCALE_MV) + 0.5, 0.0, 1.0).astype(np.float32)


def windows(calm: npt.NDArray[np.float32], centres: npt.NDArray[np.int64]) -> Images:
    """Windows around centres that lie at least half a window inside.  # (N,), (M,) to (M, 1, 1, 96)"""
    found: Images = calm[centres[:, None] + np.arange(-LENGTH // 2, LENGTH // 2)[None, :]]
    return found[:, None, None, :]


def at_rate(signal: Signal, rate_hz: float) -> Signal:
    """The signal at `RATE_HZ`, band-limited, in the frequency domain (as if it were periodic).

    Args:
        signal: At least two seconds.  # (N,)
        rate_hz: Its samples a second.
    """
    wanted = round(len(signal) * RATE_HZ / rate_hz)
    lines = np.fft.rfft(signal)
    found: Signal = np.fft.irfft(lines[: wanted // 2 + 1], wanted) * (wanted / len(signal))
    return found
