"""Conduction and repolarisation: AV block of three degrees, bundle branch blocks, ST shifts, long QT."""

from __future__ import annotations

import itertools

import numpy as np

from kasmina_trainer.datasets.medical_simulator import shapes
from kasmina_trainer.datasets.medical_simulator.course import Course
from kasmina_trainer.datasets.medical_simulator.dipole import Waves
from kasmina_trainer.datasets.medical_simulator.heart_rate import beat_times

LONG_PR_S = (0.25, 0.36)
MOBITZ_SHARE = 0.5
"""Of second degree block: type II, in which PR does not grow."""
ESCAPE_HZ = (0.50, 0.78)
ESCAPE_BROAD_SHARE = 0.5
LONG_QTC_S = (0.51, 0.60)
ST_MV = (0.20, 0.45)
"""Length of the injury vector."""
INJURIES = ((0.15, -0.10, -0.95), (-0.25, 0.95, 0.10), (0.95, 0.05, -0.10))
"""Directions of anterior, inferior and lateral ST elevation."""
ISCHAEMIA = (-0.75, -0.60, 0.15)


def first_degree(course: Course) -> None:
    """Every P is conducted, 0.25 to 0.36 s later."""
    course.rhythm("(BI")
    pr = course.patient.rng(31).uniform(*LONG_PR_S)
    beats = course.sinus(faster=0.92)  # a long PR still ends before the next P
    for before, at in itertools.pairwise(beats):
        course.conducted(at, at - before, pr_s=min(pr, 0.62 * (at - before)))


def second_degree(course: Course) -> None:
    """P waves without a QRS: PR grows until one fails (Wenckebach), or one of three to five fails unannounced."""
    course.rhythm("(BII")
    patient, rng = course.patient, course.rng
    onsets = course.sinus() - shapes.ONSET_S - patient.pr_s
    mobitz = rng.uniform() < MOBITZ_SHARE
    group, place = int(rng.integers(3, 6)), int(rng.integers(3))
    last = float(onsets[0]) - 1.0
    for onset in onsets.tolist():
        course.atrial(onset)
        place += 1
        if place >= group:
            course.mark(onset + shapes.P_S / 2, "x")
            group, place = int(rng.integers(3, 6)), 0
            continue
        grown = 0.0 if mobitz else 0.07 * np.sqrt(place - 1) * 1.4 if place > 1 else 0.0
        at = onset + patient.pr_s + grown + shapes.ONSET_S
        course.ventricular(at, patient.ventricular(min(1.2, at - last)))
        last = at


def third_degree(course: Course) -> None:
    """Atria and ventricles apart: sinus P waves, and an escape rhythm of 30 to 47 a minute, narrow or broad."""
    course.rhythm("(BIII")
    patient, rng = course.patient, course.rng
    for beat in course.sinus(faster=float(rng.uniform(1.0, 1.25))).tolist():
        course.atrial(beat - patient.pr_s)
    gap = 1 / rng.uniform(*ESCAPE_HZ)
    broad = patient.rng(32).uniform() < ESCAPE_BROAD_SHARE
    shape = _left_block(course, gap) if broad else patient.ventricular(min(gap, 1.3))
    at = -3.0 + rng.uniform(0, gap)
    while at < course.seconds + 1:
        course.ventricular(at, shape, "E" if broad else "j")
        at += gap * (1 + rng.normal(0, 0.01))


def left_bundle(course: Course) -> None:
    """QRS of 140 to 170 ms, notched to the left, no septal wave, T and ST against it."""
    course.rhythm("(N")
    beats = course.sinus()
    for before, at in itertools.pairwise(beats):
        course.atrial(at - 0.075 - course.patient.pr_s)
        course.ventricular(at, _left_block(course, at - before), "L")


def _left_block(course: Course, rr_s: float) -> Waves:
    patient = course.patient
    end = patient.qt_s(min(rr_s, 1.3)) + 0.03 - shapes.ONSET_S
    return np.vstack(
        [
            patient.own(shapes.left_bundle_block(), "lbbb"),
            patient.own(shapes.t_wave(end, (-0.24, -0.10, -0.26)), "lbbb-t", factor=patient.t_size),
            patient.own(shapes.st_shift(0.10, 0.20, (-0.07, -0.02, -0.10)), "lbbb-st"),
        ]
    )


def right_bundle(course: Course) -> None:
    """A late vector to the right and front: 125 to 150 ms, R' in V1, slurred S to the left."""
    course.rhythm("(N")
    patient, beats = course.patient, course.sinus()
    for before, at in itertools.pairwise(beats):
        end = patient.qt_s(at - before) + 0.02 - shapes.ONSET_S
        course.atrial(at - shapes.ONSET_S - patient.pr_s)
        shape = [
            patient.own(shapes.right_bundle_block(), "rbbb"),
            patient.own(shapes.t_wave(end, (0.26, 0.20, 0.10)), "rbbb-t", factor=patient.t_size),
        ]
        course.ventricular(at, np.vstack(shape), "R")


def st_elevation(course: Course) -> None:
    """Injury current of one wall (anterior, inferior or lateral), which also lifts T: ST up where the wall looks."""
    rng = course.patient.rng(33)
    direction = np.array(INJURIES[int(rng.integers(len(INJURIES)))])
    _shifted(course, direction, rng.uniform(*ST_MV), 0.5, "s", "ST elevation")


def st_depression(course: Course) -> None:
    """Under the inner wall, away from the apex: ST below the baseline in II and V4 to V6, T flat or inverted."""
    rng = course.patient.rng(34)
    _shifted(course, np.array(ISCHAEMIA), rng.uniform(*ST_MV), 0.35, "s", "ST depression")


def _shifted(course: Course, direction: np.ndarray, size_mv: float, with_t: float, symbol: str, note: str) -> None:
    course.rhythm("(N")
    course.mark(0.0, symbol, note)
    patient, beats = course.patient, course.sinus()
    vector = direction / np.linalg.norm(direction) * size_mv
    for before, at in itertools.pairwise(beats):
        end = patient.qt_s(at - before) - shapes.ONSET_S
        plateau = shapes.st_shift(0.065, max(0.16, end - 0.13), tuple(vector.tolist()))
        also = shapes.t_wave(end, tuple((with_t * vector).tolist()))
        course.atrial(at - shapes.ONSET_S - patient.pr_s)
        course.ventricular(at, np.vstack([patient.ventricular(at - before), plateau, also]))


def long_qt(course: Course) -> None:
    """QTc of 510 to 600 ms: T comes late and broad."""
    course.rhythm("(N")
    course.mark(0.05, '"', "long QT")
    patient = course.patient
    qtc = patient.rng(35).uniform(*LONG_QTC_S)
    beats = beat_times(course.rr_s * max(1.0, 0.8 / patient.pace.mean_rr_s), -3.0, course.seconds + 1)
    for before, at in itertools.pairwise(beats):
        end = patient.qt_s(at - before, qtc) - shapes.ONSET_S
        late = patient.own(shapes.t_wave(end, stretch=1.2 * patient.t_stretch), "t", factor=patient.t_size)
        course.atrial(at - shapes.ONSET_S - patient.pr_s)
        course.ventricular(at, np.vstack([patient.own(shapes.qrs(), "qrs"), late]))
