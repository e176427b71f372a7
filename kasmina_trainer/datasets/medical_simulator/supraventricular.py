"""Rhythms that begin above the ventricles: sinus, premature atrial beats, fibrillation, flutter, SVT, pauses."""

from __future__ import annotations

import itertools

import numpy as np

from kasmina_trainer.datasets.medical_simulator import shapes
from kasmina_trainer.datasets.medical_simulator.course import Course, Tremor, drawn_direction
from kasmina_trainer.datasets.medical_simulator.patients import rotation

AF_RATE_HZ = (1.1, 2.4)
AF_VARIATION = (0.15, 0.28)
"""Coefficient of variation of the intervals."""
AF_DRIFT, AF_DRIFT_S = 0.15, (5.0, 20.0)
"""The mean interval itself sways by up to this share, in this time (sympathetic tone)."""
AF_WAVE_HZ, AF_WAVE_MV = (4.5, 8.5), (0.0, 0.13)
"""From fine fibrillation, in which no wave is seen, to coarse."""
AF_SHORTEST_S = 0.32
FLUTTER_HZ, FLUTTER_MV = (4.1, 5.6), (0.09, 0.18)
SVT_HZ = (2.6, 3.6)
SVT_HIDDEN_SHARE, SVT_RP_S = 0.4, (0.03, 0.11)
"""How often P is lost in QRS, as in typical AV nodal re-entry; else from R to its onset (to accessory pathways)."""
PREMATURE_ATRIAL = (0.55, 0.75)
"""Coupling interval, share of the usual one."""
PAUSE_S = (2.2, 3.6)
ECTOPICS = (1, 3)


def sinus(course: Course) -> None:
    """Sinus rhythm, 57 to 97 beats a minute."""
    course.rhythm("(N")
    beats = course.sinus()
    for before, at in itertools.pairwise(beats):
        course.conducted(at, at - before)


def chosen_beats(course: Course, beats: np.ndarray) -> list[int]:
    """Places of one to three ectopic beats, well inside, never neighbours."""
    inside = [i for i in range(2, len(beats) - 2) if beats[i - 1] > 0.3 and beats[i + 1] < course.seconds - 0.2]
    wanted = int(course.rng.integers(ECTOPICS[0], ECTOPICS[1] + 1))
    found: list[int] = []
    for i in course.rng.permutation(inside).tolist():
        if len(found) < wanted and all(abs(i - other) > 2 for other in found):
            found.append(i)
    return sorted(found)


def premature_atrial(course: Course) -> None:
    """One to three early beats from elsewhere in the atria: another P, a normal QRS; the sinus node is reset."""
    course.rhythm("(N")
    beats = course.sinus()
    ectopic = course.patient.own(shapes.p_wave(), "ectopic-p", factor=course.patient.p_size)
    ectopic[:, 2:] = ectopic[:, 2:] @ _other_way(course).T
    gaps, early = np.diff(beats), set(chosen_beats(course, beats))
    at = beats[0]
    for i, gap in enumerate(gaps, 1):
        if i in early:
            gap *= course.rng.uniform(*PREMATURE_ATRIAL)
            at += gap
            course.atrial(at - shapes.ONSET_S - course.rng.uniform(0.9, 1.1) * course.patient.pr_s, ectopic)
            course.ventricular(at, course.patient.ventricular(gap), "A")
            continue
        at += gap * (course.rng.uniform(1.02, 1.15) if i - 1 in early else 1.0)
        course.conducted(at, gap)


def fibrillation(course: Course) -> None:
    """No P waves but f waves (Stridh and Sornmo 2001); intervals independent of each other, no two alike."""
    course.rhythm("(AFIB")
    patient, rng = course.patient, course.rng
    mean, variation = 1 / rng.uniform(*AF_RATE_HZ), rng.uniform(*AF_VARIATION)
    depth, period, phase = rng.uniform(0, AF_DRIFT), rng.uniform(*AF_DRIFT_S), rng.uniform(0, 2 * np.pi)
    at = -2.0
    while at < course.seconds + 1:
        now = mean * (1 + depth * np.sin(2 * np.pi * at / period + phase))
        gap = max(AF_SHORTEST_S, float(rng.gamma(1 / variation**2, now * variation**2)))
        at += gap
        course.ventricular(at, patient.ventricular(mean * 0.7 + 0.3 * gap))
    main = rng.uniform(*AF_WAVE_HZ)
    course.tremors.append(
        Tremor(
            vector=patient.size * rng.uniform(*AF_WAVE_MV) * drawn_direction(rng, (0.0, 0.4, -0.9), 20),
            hertz=main * np.array([1.0, 1.13, 0.81]),
            sizes=np.array([1.0, 0.5, 0.5]),
            phases=rng.uniform(0, 2 * np.pi, 3),
            wander_hz=float(rng.uniform(0.2, 0.5)),
            depth=1.5,
            from_s=-1.0,
            to_s=course.seconds + 1,
            teeth=2,
        )
    )


def flutter(course: Course) -> None:
    """A sawtooth of 246 to 336 waves a minute, negative in II, of which every second, third or fourth is conducted."""
    course.rhythm("(AFL")
    patient, rng = course.patient, course.rng
    hertz, phase = rng.uniform(*FLUTTER_HZ), rng.uniform(0, 2 * np.pi)
    course.tremors.append(
        Tremor(
            vector=patient.size * rng.uniform(*FLUTTER_MV) * drawn_direction(rng, (0.1, 0.9, 0.5), 12),
            hertz=np.array([hertz]),
            sizes=np.array([1.0]),
            phases=np.array([phase]),
            wander_hz=0.1,
            depth=0.1,
            from_s=-1.0,
            to_s=course.seconds + 1,
            teeth=4,
        )
    )
    ratios = rng.choice([2, 3, 4, 0], p=[0.35, 0.15, 0.3, 0.2])
    wave = -int(3 * hertz)
    while wave / hertz < course.seconds + 1:
        step = int(ratios) or int(rng.choice([2, 3, 4]))
        wave += step
        at = wave / hertz + 0.12 + rng.normal(0, 0.004)
        course.ventricular(at, patient.ventricular(step / hertz))


def supraventricular_tachycardia(course: Course) -> None:
    """Re-entry, 156 to 216 a minute: narrow, regular, P hidden in QRS or upside down after it; may set in late."""
    patient, rng = course.patient, course.rng
    gap = 1 / rng.uniform(*SVT_HZ)
    onset = float(rng.uniform(1.0, 3.5)) if rng.uniform() < 0.3 else -2.5
    last = sinus_until(course, onset) if onset > 0 else onset
    course.rhythm("(SVTA", last + 0.1)
    backwards = patient.own(shapes.retrograde_p(), "retrograde", factor=patient.p_size)
    own = patient.rng(41)
    hidden, later = own.uniform() < SVT_HIDDEN_SHARE, own.uniform(*SVT_RP_S)
    at = last + 0.65 * patient.pace.mean_rr_s if onset > 0 else last
    while at < course.seconds + 1:
        course.ventricular(at, patient.ventricular(gap), "N" if at < last + 0.01 else "A" if onset > 0 else "N")
        if not hidden:
            course.atrial(at + later, backwards)
        at += gap * (1 + rng.normal(0, 0.008))


def pause(course: Course) -> None:
    """The sinus node falls silent once for 2.2 to 3.6 s: neither P nor QRS."""
    course.rhythm("(N")
    beats = course.sinus()
    length = course.rng.uniform(*PAUSE_S)
    starts = [i for i in range(1, len(beats) - 1) if beats[i] > 0.5 and beats[i] + length < course.seconds - 0.4]
    chosen = int(course.rng.choice(starts))
    later = np.where(np.arange(len(beats)) > chosen, length - (beats[chosen + 1] - beats[chosen]), 0.0)
    moved = beats + later
    for i in range(1, len(beats)):
        course.conducted(moved[i], float(beats[i] - beats[i - 1]))
    course.mark(float(moved[chosen]) + 0.6, '"', "sinus arrest")


def sinus_until(course: Course, end_s: float) -> float:
    """Sinus rhythm up to a moment; gives its last R peak."""
    course.rhythm("(N")
    beats = course.sinus()
    last = float(beats[0])
    for before, at in itertools.pairwise(beats):
        if at >= end_s:
            break
        course.conducted(at, at - before)
        last = float(at)
    return last


def _other_way(course: Course) -> np.ndarray:
    """A turn that brings the P wave's direction at least 50 degrees away; the patient's own, always the same."""
    rng = course.patient.rng(11)
    return rotation(np.array([rng.choice([-1, 1]) * rng.uniform(70, 150), rng.normal(0, 15), rng.normal(0, 15)]))
