"""Rhythms born in the ventricles, and their silence: premature beats, bigeminy, tachycardia, fibrillation, asystole."""

from __future__ import annotations

import numpy as np

from kasmina_trainer.datasets.medical_simulator import shapes
from kasmina_trainer.datasets.medical_simulator.course import Course, Tremor, drawn_direction
from kasmina_trainer.datasets.medical_simulator.dipole import Waves
from kasmina_trainer.datasets.medical_simulator.patients import Patient
from kasmina_trainer.datasets.medical_simulator.supraventricular import chosen_beats, sinus_until

COUPLING = (0.50, 0.72)
"""From the sinus beat to the ectopic one, share of the usual interval."""
QRS_S = (0.145, 0.195)
SIZE_MV = (1.1, 2.0)
SITES = ((0.9, 0.9, 0.5), (1.0, -0.7, 0.6), (-0.6, 0.8, -0.9), (-0.5, -0.8, -0.9))
"""Main vectors of beats from the right outflow tract, the right apex, the left base and the left apex."""
VT_HZ = (2.2, 3.6)
VF_HZ, VF_MV = (3.5, 7.5), (0.15, 0.55)
ASYSTOLE_P_SHARE = 0.3


def ectopic(patient: Patient) -> Waves:
    """The patient's ventricular ectopic beat: always from the same place, always alike."""
    rng = patient.rng(21)
    site = SITES[int(rng.integers(len(SITES)))]
    direction = drawn_direction(rng, site, 15)
    return patient.own(shapes.ectopic_ventricular(direction, rng.uniform(*SIZE_MV), rng.uniform(*QRS_S)), "ectopic-v")


def premature_ventricular(course: Course) -> None:
    """One to three early broad beats without P, each followed by a full compensatory pause: the sinus node goes on."""
    course.rhythm("(N")
    beats = course.sinus()
    _with_ectopics(course, beats, set(chosen_beats(course, beats)))


def bigeminy(course: Course) -> None:
    """Every second beat is ventricular."""
    course.rhythm("(B")
    beats = course.sinus()
    first = int(course.rng.integers(2))
    _with_ectopics(course, beats, set(range(1 + first, len(beats), 2)))


def _with_ectopics(course: Course, beats: np.ndarray, early: set[int]) -> None:
    patient, shape = course.patient, ectopic(course.patient)
    coupling = patient.rng(22).uniform(*COUPLING)
    for i in range(1, len(beats)):
        gap = float(beats[i] - beats[i - 1])
        if i in early:
            at = float(beats[i - 1]) + gap * coupling * course.rng.normal(1, 0.02)
            course.ventricular(at, shape, "V")
            course.atrial(float(beats[i]) - shapes.ONSET_S - patient.pr_s)  # finds the ventricles refractory
        else:
            course.conducted(float(beats[i]), gap)


def ventricular_tachycardia(course: Course) -> None:
    """132 to 216 a minute, broad and regular; the atria go on at their own pace beneath; may set in late."""
    patient, rng = course.patient, course.rng
    onset = float(rng.uniform(1.0, 4.0)) if rng.uniform() < 0.35 else -2.5
    last = sinus_until(course, onset) if onset > 0 else onset
    course.rhythm("(VT", last + 0.1)
    shape, gap = ectopic(patient), 1 / rng.uniform(*VT_HZ)
    at = last + (0.6 * patient.pace.mean_rr_s if onset > 0 else 0.0)
    while at < course.seconds + 1:
        course.ventricular(at, shape, "V")
        at += gap * (1 + rng.normal(0, 0.015))
    for beat in course.sinus():
        if beat > last + 0.3:
            course.atrial(float(beat) - patient.pr_s)


def ventricular_fibrillation(course: Course) -> None:
    """No beats: oscillations of 3.5 to 7.5 a second that wander in rate, size and direction; may set in late."""
    patient, rng = course.patient, course.rng
    onset = float(rng.uniform(1.0, 4.0)) if rng.uniform() < 0.3 else -2.0
    if onset > 0:
        onset = sinus_until(course, onset) + 0.5 * patient.pace.mean_rr_s
    course.rhythm("(VF", max(0.0, onset))
    course.mark(max(0.0, onset), "[")
    main, size = rng.uniform(*VF_HZ), patient.size * rng.uniform(*VF_MV)
    for _ in range(3):
        course.tremors.append(
            Tremor(
                vector=size * drawn_direction(rng, (0.5, 0.6, 0.5), 60),
                hertz=main * rng.uniform(0.75, 1.25, 3),
                sizes=rng.uniform(0.3, 0.7, 3),
                phases=rng.uniform(0, 2 * np.pi, 3),
                wander_hz=float(rng.uniform(0.2, 0.7)),
                depth=2.0,
                from_s=onset,
                to_s=course.seconds + 1,
            )
        )


def asystole(course: Course) -> None:
    """No ventricular beat, from the start or after the last one; in three of ten the atria still beat."""
    patient, rng = course.patient, course.rng
    end = float(rng.uniform(0.8, 2.5)) if rng.uniform() < 0.3 else -2.0
    last = sinus_until(course, end) if end > 0 else end
    course.rhythm("(ASYS", last + 0.5 if end > 0 else 0.0)
    if rng.uniform() < ASYSTOLE_P_SHARE:
        for beat in course.sinus(faster=float(rng.uniform(0.7, 1.1))):
            if beat > last + 0.3:
                course.atrial(float(beat) - patient.pr_s)
