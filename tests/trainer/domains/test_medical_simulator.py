"""The medical simulator: a closed form that solves the model, patients that never mix, patterns as they are told."""

from __future__ import annotations

import numpy as np
import pytest

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.ecg_peaks import r_peaks
from kasmina_trainer.datasets.medical_simulator import conduction, heart_rate, leads, shapes, supraventricular
from kasmina_trainer.datasets.medical_simulator.dipole import at_speed, moved, rendered, waves
from kasmina_trainer.datasets.medical_simulator.noise import KINDS, Converter, Mix, noise
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES, PATTERNS, pattern
from kasmina_trainer.datasets.medical_simulator.recording import Recording, record, sinus_power

RATE = 360.0


def clean(name: str, number: int = 0, seed: int = 0, **options: object) -> Recording:
    return record(patient(0, number), name, snr_db=None, seed=seed, **options)  # type: ignore[arg-type]


def runge_kutta(turn: np.ndarray, periods: np.ndarray, step_s: float) -> tuple[np.ndarray, np.ndarray]:
    """McSharry's four equations (one z, the x of the waves) step by step, from off the cycle; z and the time of each.

    Turn k is run through at its own angular speed and begins at the angle -pi.
    """
    ends = np.cumsum(periods)

    def change(period: float, state: np.ndarray) -> np.ndarray:
        x, y, _ = state
        speed = 2 * np.pi / period
        angles, widths = at_speed(turn, period)
        away = (np.arctan2(y, x) - angles + np.pi) % (2 * np.pi) - np.pi
        pull = 1 - np.hypot(x, y)
        z = -np.sum(turn[:, 2] * speed / widths**2 * away * np.exp(-(away**2) / (2 * widths**2)))
        return np.array([pull * x - speed * y, pull * y + speed * x, z])

    times = np.arange(int(ends[-1] / step_s)) * step_s
    state, found = np.array([-0.4, 0.0, 0.0]), []
    for at in times:
        found.append(state[2])
        period = float(periods[min(int(np.searchsorted(ends, at + step_s / 2)), len(periods) - 1)])
        one = change(period, state)
        two = change(period, state + step_s / 2 * one)
        three = change(period, state + step_s / 2 * two)
        state = state + step_s / 6 * (one + 2 * two + 2 * three + change(period, state + step_s * three))
    return np.array(found), times


@pytest.mark.parametrize("periods", [(1.0, 1.0, 1.0), (0.9, 1.15, 0.8)])
def test_the_sum_of_waves_is_the_solution_of_the_dynamical_model(periods: tuple[float, ...]) -> None:
    turn = np.vstack([moved(shapes.p_wave(), -0.18), shapes.qrs(), shapes.t_wave(0.30)])
    step = 1 / 720.0
    slow, _ = runge_kutta(turn, np.array(periods), step)
    middles = np.cumsum(periods) - np.array(periods) / 2
    closed = rendered(np.vstack([moved(turn, at) for at in middles]), len(slow), 1 / step)[0]
    assert np.abs(closed).max() > 0.7
    assert np.abs(slow - closed).max() < 1e-3
    wrong = rendered(np.vstack([moved(turn, at + 0.004) for at in middles]), len(slow), 1 / step)[0]
    assert np.abs(slow - wrong).max() > 0.05  # four milliseconds off would have been seen


def test_rendering_is_the_plain_sum_and_waves_outside_fade_in() -> None:
    rng = np.random.default_rng(0)
    turn = np.column_stack([rng.uniform(-0.3, 2.3, 60), rng.uniform(0.005, 0.08, 60), rng.normal(0, 1, (60, 3))])
    time = np.arange(500) / 250.0
    plain = (turn[:, 2:, None] * np.exp(-0.5 * ((time - turn[:, :1]) / turn[:, 1:2])[:, None] ** 2)).sum(0)
    assert np.abs(rendered(turn, 500, 250.0) - plain).max() < 1e-6


def test_leads_obey_einthoven_goldberger_and_wilson() -> None:
    by_name = dict(zip(leads.LEADS, leads.OF_DIPOLE, strict=True))
    assert np.allclose(by_name["I"] + by_name["III"], by_name["II"])
    assert np.allclose(by_name["aVR"] + by_name["aVL"] + by_name["aVF"], 0)
    assert np.allclose(by_name["III"], (-0.397, 1.301, -0.191), atol=5e-4)  # as Dower et al. print it
    electrodes = np.random.default_rng(1).normal(size=9)
    seen = dict(zip(leads.LEADS, leads.OF_ELECTRODES @ electrodes, strict=True))
    assert np.isclose(seen["aVF"], electrodes[2] - electrodes[:2].mean())
    assert np.isclose(seen["V3"], electrodes[5] - electrodes[:3].mean())
    assert np.allclose(leads.OF_ELECTRODES.sum(1), 0)  # what all electrodes share is in no lead


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_intervals_have_the_mean_the_spread_and_the_bands_that_were_asked_for(ratio: float) -> None:
    pace = heart_rate.Pace(mean_rr_s=0.8, sdnn_s=0.04, lf_over_hf=ratio, breath_hz=0.28)
    rng = np.random.default_rng(3)
    breath = heart_rate.breathing(pace, 24000, rng)
    rr = heart_rate.intervals(pace, breath, rng)
    assert abs(rr.mean() - 0.8) < 0.01 and abs(rr.std() / 0.04 - 1) < 0.15
    power = np.abs(np.fft.rfft(rr - rr.mean())) ** 2
    hertz = np.fft.rfftfreq(len(rr), 1 / heart_rate.CONTROL_HZ)
    found = power[(hertz > 0.06) & (hertz < 0.15)].sum() / power[(hertz > 0.2) & (hertz < 0.36)].sum()
    assert ratio / 1.6 < found < ratio * 1.6
    beats = heart_rate.beat_times(rr, 0.0, 3000.0)
    assert abs(np.diff(beats).mean() - 0.8) < 0.01


def test_a_patient_is_the_same_forever_and_like_no_other() -> None:
    assert patient(0, 1) == patient(0, 1)
    assert len({patient(seed, number) for seed in range(3) for number in range(50)}) == 150
    one, again = clean("pvc", 4, seed=1), clean("pvc", 4, seed=1)
    assert np.array_equal(one.signal, again.signal) and one.marks == again.marks
    assert not np.array_equal(one.signal, clean("pvc", 4, seed=2).signal)
    shape = patient(0, 4).ventricular(0.8)
    assert np.array_equal(shape, patient(0, 4).ventricular(0.8)) and not np.allclose(
        shape, patient(0, 5).ventricular(0.8)
    )


def test_amplitudes_are_those_of_healthy_adults() -> None:
    r_in_two, s_in_one, t_in_two = [], [], []
    for number in range(40):
        found = clean("normal", number, leads=("II", "V1"))
        beats = found.beats("N")
        beats = beats[(beats > 60) & (beats < 3400)]
        r_in_two.append(np.median([found.clean[0, at - 15 : at + 16].max() for at in beats]))
        s_in_one.append(np.median([found.clean[1, at - 15 : at + 30].min() for at in beats]))
        t_in_two.append(np.median([found.clean[0, at + 55 : at + 150].max() for at in beats]))
    assert 0.7 < np.median(r_in_two) < 1.6 and 0.15 < np.median(t_in_two) < 0.6
    assert -1.6 < np.median(s_in_one) < -0.5
    assert min(r_in_two) > 0.3 and max(r_in_two) < 2.6


@pytest.mark.parametrize("name", NAMES)
def test_every_pattern_marks_the_beats_that_are_there(name: str) -> None:
    """R peaks of an independent detector stand at the marks; VF and asystole have none after they set in."""
    for number in range(3):
        found = clean(name, number, seed=number, seconds=20.0)
        assert np.isfinite(found.signal).all() and [mark.at_s for mark in found.marks] == sorted(
            mark.at_s for mark in found.marks
        )
        assert any(mark.symbol == "+" for mark in found.marks)
        beats = found.beats()
        beats = beats[(beats > 180) & (beats < 20 * RATE - 180)]
        if name in ("vf", "asystole"):
            onset = next(mark.at_s for mark in found.marks if mark.note in ("(VF", "(ASYS"))
            assert (beats <= onset * RATE).all()
            continue
        seen = r_peaks(np.abs(found.clean).sum(0), RATE)
        missed = [at for at in beats if np.abs(seen - at).min() > 0.12 * RATE]
        assert len(missed) <= 0.05 * len(beats), (name, number, len(missed), len(beats))


def gaps(found: Recording, symbols: str = "NLRAVEj") -> np.ndarray:
    return np.diff(found.beats(symbols)) / found.rate_hz


def test_rhythms_have_the_rates_that_define_them() -> None:
    for number in range(6):
        sinus = gaps(clean("normal", number, seconds=60.0))
        assert sinus.min() > 0.5 and sinus.std() / sinus.mean() < 0.12
        fibrillating = gaps(clean("af", number, seconds=60.0))
        assert fibrillating.std() / fibrillating.mean() > 0.13
        assert abs(np.corrcoef(fibrillating[:-1], fibrillating[1:])[0, 1]) < 0.4
        assert 1 / 3.7 < np.median(gaps(clean("svt", number))) < 1 / 2.5
        assert 1 / 3.8 < np.median(gaps(clean("vt", number))) < 1 / 2.1
        assert 1.2 < np.median(gaps(clean("av3", number, seconds=20.0))) < 2.1
        assert gaps(clean("pause", number)).max() > 2.1 > gaps(clean("normal", number)).max()
        early = clean("bigeminy", number, seconds=30.0)
        kinds = "".join(mark.symbol for mark in early.marks if mark.symbol in "NV")
        assert "NN" not in kinds and "VV" not in kinds and kinds.count("V") > 8
        few = clean("pvc", number)
        assert 1 <= sum(mark.symbol == "V" for mark in few.marks) <= 3
        blocked = clean("av2", number)
        assert sum(mark.symbol == "x" for mark in blocked.marks) >= 1


def test_a_premature_ventricular_beat_is_followed_by_a_full_pause_and_an_atrial_one_is_not() -> None:
    def around(name: str, symbol: str) -> list[tuple[float, float]]:
        found = []
        for number in range(12):
            recording = clean(name, number)
            usual = float(np.median(gaps(clean("normal", number))))
            marks = [mark for mark in recording.marks if mark.symbol in "NVA"]
            found += [
                ((marks[i].at_s - marks[i - 1].at_s) / usual, (marks[i + 1].at_s - marks[i - 1].at_s) / usual)
                for i in range(1, len(marks) - 1)
                if marks[i].symbol == symbol
            ]
        return found

    ventricular, atrial = around("pvc", "V"), around("pac", "A")
    assert len(ventricular) > 10 and len(atrial) > 10
    assert all(0.4 < early < 0.85 for early, _ in ventricular + atrial)
    assert abs(np.mean([both for _, both in ventricular]) - 2.0) < 0.08
    assert np.mean([both for _, both in atrial]) < 1.85


def duration_ms(turn: np.ndarray, upto_s: float) -> float:
    """From where to where any of the three leads' slope is above 5 % of the steepest, up to a moment."""
    rate = 1000.0
    signal = rendered(moved(turn, 0.5), 1000, rate)[:, : int((0.5 + upto_s) * rate)]
    slope = np.abs(np.gradient(signal, axis=1)).max(0)
    inside = np.flatnonzero(slope > 0.05 * slope.max())
    return float(inside[-1] - inside[0])


def test_widths_of_qrs_part_normal_from_blocks() -> None:
    normal = [duration_ms(patient(0, n).own(shapes.qrs(), "qrs"), 0.1) for n in range(30)]
    left = [duration_ms(patient(0, n).own(shapes.left_bundle_block(), "lbbb"), 0.12) for n in range(30)]
    right = [duration_ms(patient(0, n).own(shapes.right_bundle_block(), "rbbb"), 0.16) for n in range(30)]
    assert 70 < np.median(normal) < 110 and max(normal) < 120
    assert min(left) >= 120 and 130 < np.median(left) < 180
    assert min(right) >= 120


def test_morphologies_look_as_the_criteria_say() -> None:
    """V1 negative in LBBB, a late R' in RBBB; ST level shifted in its lead; QT long."""

    def at_j(name: str, number: int, lead: str) -> float:
        found = clean(name, number, leads=(lead,))
        beats = found.beats()
        beats = beats[(beats > 100) & (beats < 3400)]
        return float(np.median([found.clean[0, at + 36] - found.clean[0, at - 27] for at in beats]))  # J + 50 ms

    def mean_v1(name: str, number: int, low: float, high: float) -> float:
        found = clean(name, number, leads=("V1",))
        beats = found.beats()
        beats = beats[(beats > 100) & (beats < 3400)]
        return float(np.median([found.clean[0, at + int(low * RATE) : at + int(high * RATE)].mean() for at in beats]))

    for number in range(10):
        assert mean_v1("lbbb", number, -0.03, 0.04) < -0.3
        assert mean_v1("rbbb", number, 0.05, 0.09) > 0.2 > mean_v1("normal", number, 0.05, 0.09)
    limbs = ("I", "II", "III", "aVL", "aVF", "V2", "V5")
    up = [max(at_j("st_elevation", n, lead) - at_j("normal", n, lead) for lead in limbs) for n in range(10)]
    down = [at_j("st_depression", n, "V5") - at_j("normal", n, "V5") for n in range(10)]
    assert min(up) > 0.1 and max(down) < -0.1
    ranges = (conduction.LONG_QTC_S[0] - 0.435, conduction.LONG_PR_S[0] - 0.195)
    assert min(ranges) > 0.05  # no window stands between the classes


def test_noise_has_the_power_the_bands_and_the_kinship_that_were_asked_for() -> None:
    rng = np.random.default_rng(0)
    breath = heart_rate.breathing(patient(0, 0).pace, 400, rng)
    for kind in KINDS:
        mix = Mix(**{k: float(k == kind) for k in KINDS})
        found = noise(7200, RATE, 0.01, mix, breath, np.random.default_rng(2))
        assert abs(np.mean(found**2) / 0.01 - 1) < 1e-6
        assert np.allclose(found[0] + found[2], found[1])  # I + III = II for noise as well
        power = (np.abs(np.fft.rfft(found)) ** 2).sum(0)
        hertz = np.fft.rfftfreq(7200, 1 / RATE)
        low, high = {"wander": (0, 0.7), "muscle": (18, 152), "mains": (48, 182), "motion": (0, 15)}[kind]
        assert power[(hertz >= low) & (hertz <= high)].sum() / power.sum() > 0.9, kind
    with pytest.raises(InputError, match="noise shares"):
        Mix(-1.0, 0.0, 0.0, 2.0)


@pytest.mark.parametrize("snr_db", [6.0, 20.0])
def test_the_snr_of_a_recording_is_the_one_that_was_asked_for(snr_db: float) -> None:
    found = record(patient(0, 2), "normal", snr_db=snr_db, converter=Converter(16, 2000.0))
    power = float(np.mean((found.signal - found.clean) ** 2))
    assert abs(10 * np.log10(sinus_power(patient(0, 2)) / power) - snr_db) < 0.1
    silent = record(patient(0, 2), "asystole", snr_db=snr_db, converter=Converter(16, 2000.0))
    assert abs(float(np.mean((silent.signal - silent.clean) ** 2)) / power - 1) < 0.02


def test_the_converter_rounds_and_saturates() -> None:
    steps = Converter(12, 200.0)
    assert steps.counts(np.array([0.0024, 0.0026, 99.0, -99.0])).tolist() == [0, 1, 2047, -2048]
    assert Converter(16, 1000.0).counts(np.array([-99.0])).tolist() == [-32767]  # -32768 says "no value" in format 16
    signal = np.random.default_rng(0).normal(0, 1, 1000)
    assert np.abs(steps.millivolts(steps.counts(signal)) - signal).max() <= 0.0025 + 1e-12
    with pytest.raises(InputError, match="20 bits"):
        Converter(20)


def test_bad_orders_are_refused() -> None:
    who = patient(0, 0)
    for options, words in (
        ({"happening": "flu"}, "there is none of this name"),
        ({"seconds": 1.0}, "expected 5 to 7200 s"),
        ({"rate_hz": 5.0}, "at 100 to 2000 Hz"),
        ({"leads": ("II", "X")}, "expected different ones"),
        ({"leads": ()}, "leads none"),
    ):
        with pytest.raises(InputError, match=words):
            record(who, **options)  # type: ignore[arg-type]


def test_every_pattern_says_what_it_is_and_where_it_is_from() -> None:
    assert len(PATTERNS) == 19 and len(set(NAMES)) == 19 and pattern("vt").name == "vt"
    for each in PATTERNS:
        assert len(each.description) > 25 and each.source and each.title
    assert supraventricular.PAUSE_S[0] > 2.0


def test_waves_from_rows() -> None:
    assert waves((0.0, 0.1, 1.0, 2.0, 3.0)).shape == (1, 5)
