"""Recordings as a picture: strips on ECG paper, 25 mm a second and 10 mm a millivolt, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES, pattern
from kasmina_trainer.datasets.medical_simulator.recording import Recording, record

MM_A_SECOND, MM_A_MV = 25.0, 10.0
PIXELS_A_MM = 3.2
ROW_MM = 22.0
_BESIDE_MM = 34.0
DRAWN_HZ = 125.0


def svg(recordings: Sequence[tuple[str, Recording]], *, lead: str = "II", seconds: float = 6.0) -> str:
    """One strip a recording, its marks above it.

    Args:
        recordings: Titles and recordings; each has the lead.
        lead: Which one is drawn.
        seconds: How much of it, from the first sample.
    """
    width, height = _BESIDE_MM + seconds * MM_A_SECOND, ROW_MM * len(recordings)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width * PIXELS_A_MM:.0f}"'
        f' height="{height * PIXELS_A_MM:.0f}" font-family="sans-serif">',
        f'<rect width="{width:g}" height="{height:g}" fill="#fffaf8"/>',
        '<path d="'
        + " ".join(f"M{_BESIDE_MM + 5 * i:g} 0V{height:g}" for i in range(round(seconds * 5) + 1))
        + " ".join(f"M{_BESIDE_MM:g} {5 * i:g}H{width:g}" for i in range(int(height / 5) + 1))
        + '" stroke="#f0c8c0" stroke-width="0.15" fill="none"/>',
    ]
    for row, (title, recording) in enumerate(recordings):
        zero = ROW_MM * row + 13.0
        signal = recording.signal[recording.leads.index(lead)]
        count = int(min(seconds, recording.seconds) * DRAWN_HZ)
        at = np.minimum(np.rint(np.arange(count) * recording.rate_hz / DRAWN_HZ).astype(int), len(signal) - 1)
        heights = zero - np.clip(signal[at] - np.median(signal), -0.85, 1.2) * MM_A_MV
        tenths = np.rint(heights * 10).astype(int)
        step = round(10 * MM_A_SECOND / DRAWN_HZ)
        way = "".join(
            f"l{step} {rise}" for rise in np.diff(tenths).tolist()
        )  # relative and whole: a third of the bytes
        strip = f"M{10 * _BESIDE_MM:.0f} {tenths[0]}{way}"
        lines.append(f'<text x="1" y="{zero:g}" font-size="3.4">{escape(title)}</text>')
        lines.append(
            f'<path class="strip" transform="scale(0.1)" d="{strip}" fill="none" stroke="#1a1a1a" stroke-width="3"/>'
        )
        for mark in recording.marks:
            if mark.at_s < seconds and mark.symbol != "+":
                x = _BESIDE_MM + mark.at_s * MM_A_SECOND
                lines.append(
                    f'<text x="{x:.2f}" y="{zero - 10:g}" font-size="2.4" fill="#2050a0">{escape(mark.symbol)}</text>'
                )
    return "\n".join([*lines, "</svg>", ""])


def every_pattern(seed: int = 0, *, number: int = 0, snr_db: float = 20.0) -> list[tuple[str, Recording]]:
    """One recording of each pattern, all of one patient, with its title."""
    who = patient(seed, number)
    return [(pattern(name).title, record(who, name, snr_db=snr_db, seed=seed)) for name in NAMES]


def picture(seed: int = 0) -> tuple[list[npt.NDArray[np.float64]], list[str]]:
    """Lead II of each pattern, mV at `recording.RATE_HZ`, and the titles: for any drawer of arrays."""
    found = every_pattern(seed)
    return [recording.signal[1] for _, recording in found], [title for title, _ in found]
