"""Windows for learning: no patient in two parts, labels that the marks confirm, what an app would do to a signal."""

from __future__ import annotations

import numpy as np
import pytest

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.ecg_peaks import band_passed
from kasmina_trainer.datasets.medical_simulator import windows
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES


def test_parts_share_no_patient_and_every_patient_has_every_pattern() -> None:
    names = ("normal", "af", "vf")
    parts = windows.split(3, patients=(4, 2, 2), views=2, names=names)
    whose = [set(part.patients.tolist()) for part in parts]
    assert whose == [{0, 1, 2, 3}, {4, 5}, {6, 7}]
    for part in parts:
        assert part.x.shape[1:] == windows.INPUT_SHAPE and part.x.dtype == np.float32
        assert part.x.min() >= 0 and part.x.max() <= 1
        assert windows.SNR_DB[0] <= part.snr_db.min() and part.snr_db.max() <= windows.SNR_DB[1]
        for number in set(part.patients.tolist()):
            assert np.bincount(part.y[part.patients == number]).tolist() == [2, 2, 2]
    rows = [{row.tobytes() for row in part.x} for part in parts]
    assert sum(map(len, rows)) == len(set.union(*rows)) == (4 + 2 + 2) * 6


def test_the_same_seed_gives_the_same_bytes_and_another_another() -> None:
    one, again, other = (windows.windows(seed, [5], names=("pvc",)) for seed in (0, 0, 1))
    assert one.x.tobytes() == again.x.tobytes() and not np.array_equal(one.x, other.x)
    small = windows.load(0, patients=(1, 1, 1), names=NAMES[:2])
    assert small.labels == NAMES[:2] and small.train[0].shape == (2, 3, 1, 1280)
    with pytest.raises(InputError, match="at least one of each"):
        windows.load(0, patients=(1, 0, 1))


def test_conditioning_keeps_the_beat_and_the_st_level_and_drops_drift_and_mains() -> None:
    time = np.arange(1280) / 128.0
    beat = sum(np.exp(-0.5 * ((time - at) / 0.03) ** 2) for at in np.arange(1.5, 9, 1.0))
    drift, mains = 0.8 * np.sin(2 * np.pi * 0.1 * time), 0.3 * np.sin(2 * np.pi * 60 * time)
    quiet, slow, fast = (windows.conditioned(row[None])[0, 0] for row in (beat, beat + drift, beat + mains))
    scale = 2 * windows.FULL_SCALE_MV
    assert np.abs(slow - quiet)[100:-100].max() * scale < 0.02 * 0.8
    assert np.abs(fast - quiet)[100:-100].max() * scale < 0.25 * 0.3
    assert abs((quiet.max() - np.median(quiet)) * scale - 1) < 0.1
    plain = band_passed(beat + drift, 128.0, windows.BAND_HZ) / scale + 0.5
    assert np.array_equal(windows.conditioned((beat + drift)[None])[0, 0], plain.astype(np.float32))
    assert windows.conditioned(np.full((3, 1280), 40.0)).tolist() == np.full((3, 1, 1280), 0.5).tolist()


def test_a_lost_electrode_is_as_rare_as_it_says() -> None:
    found = windows.windows(0, range(20), names=("normal",), views=4)
    flat = (found.x.max(3) == found.x.min(3)).any((1, 2)).mean()
    assert 0.0 < flat < 0.2
