"""Realism: distances that are scipy's, features that are what they are called, and made beats nearer than noise is."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator import neurokit, realism, strips
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.recording import record


@pytest.mark.parametrize("seed", range(6))
def test_distances_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, 70).round(1), rng.normal(0.5, 2, 45).round(1)  # rounded: ties
    assert np.isclose(realism.kolmogorov(a, b), stats.ks_2samp(a, b).statistic)
    assert np.isclose(realism.wasserstein(a, b), stats.wasserstein_distance(a, b))
    of_a, of_b = rng.uniform(0.1, 2, 70), rng.uniform(0.1, 2, 45)
    assert np.isclose(realism.wasserstein(a, b, of_a, of_b), stats.wasserstein_distance(a, b, of_a, of_b))
    assert realism.kolmogorov(a, a) == 0 == realism.wasserstein(b, b)


def test_features_are_read_off_a_signal_whose_features_are_known() -> None:
    time = np.arange(0, 40, 1 / 360)
    signal = sum(1.5 * np.exp(-0.5 * ((time - at) / 0.012) ** 2) for at in np.arange(1.0, 39.5, 0.8))
    found = realism.measured([signal], 360.0)
    assert np.allclose(found.values["RR"], 0.8, atol=0.004)
    assert abs(np.median(found.values["QRS half width"]) - 2.355 * 12) < 4
    assert 1.2 < np.median(found.values["R amplitude"]) < 1.55
    assert len(found.values["spectrum"]) == len(found.weights["spectrum"])
    with pytest.raises(InputError, match="no signals"):
        realism.measured([], 360.0)
    with pytest.raises(InputError, match="at least one of each"):
        realism.kolmogorov(np.zeros(0), np.ones(2))


def test_other_patients_are_nearer_to_a_patient_than_noise_and_likened_ones_nearer_still() -> None:
    """A simulated patient plays the real one, so that the order of the distances is known."""
    real = record(patient(77, 3), "pvc", seconds=60.0, leads=("II",)).signal[0]
    noise = np.random.default_rng(0).normal(0, 0.4, len(real))
    rows = realism.report(
        real,
        {
            "others": lambda: realism.simulated(1, patients=6, seconds=40.0),
            "alike": lambda: realism.likened(real, 1, patients=3),
            "noise": lambda: [noise],
        },
    )
    far = {(row.between.split(" ")[0], row.feature): row.wasserstein for row in rows}
    assert len(rows) == 16 and all(0 <= row.kolmogorov <= 1 for row in rows)
    for feature in ("QRS half width", "R amplitude", "spectrum"):
        assert far["alike", feature] < far["noise", feature]
        assert feature == "R amplitude" or far["others", feature] < far["noise", feature]  # sizes are a matter of gain
    for feature in ("RR", "R amplitude"):
        assert far["alike", feature] <= far["others", feature] * 1.2
    assert "KS" in str(rows[0])


def test_neurokits_signals_where_they_can_be_had() -> None:
    """pip install neurokit2 runs this; the benchmark scores the deployed net on them."""
    pytest.importorskip("neurokit2", reason="neurokit2 is not installed: pip install neurokit2 runs the second opinion")
    x, y = neurokit.windows(4, seed=1)
    assert x.shape == (4, 3, 1, 1280) and len(set(y.tolist())) == 4 and x.std() > 0.005
    (signal,) = neurokit.sinus_signals(1, seconds=20.0, rate_hz=360.0)
    rr = realism.measured([signal], 360.0).values["RR"]
    assert 0.55 < np.median(rr) < 1.1


def test_without_neurokit_the_reason_and_the_next_step_are_told() -> None:
    try:
        neurokit.generator()
    except InputError as exc:
        assert "neurokit2 cannot be imported" in exc.message and "pip install neurokit2" in str(exc.next_step)


def test_a_picture_has_a_strip_a_pattern_and_the_marks() -> None:
    found = strips.every_pattern()[:3]
    root = ElementTree.fromstring(strips.svg(found))
    lines = [
        path.get("d", "") for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("class") == "strip"
    ]
    texts = [text.text for text in root.findall("{http://www.w3.org/2000/svg}text")]
    assert len(lines) == 3 and lines[0].count("l") == 749
    assert [title for title, _ in found] == [text for text in texts if text and len(text) > 1]
    assert "V" in texts and texts.count("N") > 10
    arrays, titles = strips.picture()
    assert len(arrays) == len(titles) == 19 and arrays[0].shape == (3600,)
