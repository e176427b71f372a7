"""The cardiac patterns by name: what happens in each, from where it is known, and the function that lets it happen.

Ranges stand as constants where the events are made (`supraventricular`, `ventricular`, `conduction`). They were chosen
inside the clinical definitions, not at their edges: a PR of 0.21 s is a first degree block to a cardiologist and is not
drawn here. Sources: AHA/ACCF/HRS 2009 (Circulation 119:e235-e261), Goldberger's Clinical Electrocardiography, the 2015
ESC guideline on ventricular arrhythmias (Eur. Heart J. 36:2793), Moody and Mark 2001 for the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.medical_simulator import conduction, supraventricular, ventricular
from kasmina_trainer.datasets.medical_simulator.course import Course


@dataclass(frozen=True)
class Pattern:
    """One pattern.

    Attributes:
        name: As data sets call it.
        title: In words.
        happens: Fills a course.
        source: Where its definition is from.
    """

    name: str
    title: str
    happens: Callable[[Course], None]
    source: str

    @property
    def description(self) -> str:
        """What happens in the heart, in a sentence."""
        return (self.happens.__doc__ or "").strip().splitlines()[0]


_AHA = "AHA/ACCF/HRS 2009"
_GOLDBERGER = "Goldberger, Clinical Electrocardiography"
PATTERNS = (
    Pattern("normal", "sinus rhythm", supraventricular.sinus, "McSharry et al. 2003"),
    Pattern("pvc", "premature ventricular beats", ventricular.premature_ventricular, _GOLDBERGER),
    Pattern("pac", "premature atrial beats", supraventricular.premature_atrial, _GOLDBERGER),
    Pattern("bigeminy", "ventricular bigeminy", ventricular.bigeminy, _GOLDBERGER),
    Pattern("af", "atrial fibrillation", supraventricular.fibrillation, "Stridh and Sornmo 2001; ESC 2020"),
    Pattern("flutter", "atrial flutter", supraventricular.flutter, _GOLDBERGER),
    Pattern("svt", "supraventricular tachycardia", supraventricular.supraventricular_tachycardia, "ESC 2019 SVT"),
    Pattern("vt", "ventricular tachycardia", ventricular.ventricular_tachycardia, "ESC 2015"),
    Pattern("vf", "ventricular fibrillation", ventricular.ventricular_fibrillation, "Clayton et al. 1993; ESC 2015"),
    Pattern("av1", "AV block, first degree", conduction.first_degree, _AHA),
    Pattern("av2", "AV block, second degree", conduction.second_degree, _AHA),
    Pattern("av3", "AV block, third degree", conduction.third_degree, _AHA),
    Pattern("lbbb", "left bundle branch block", conduction.left_bundle, _AHA),
    Pattern("rbbb", "right bundle branch block", conduction.right_bundle, _AHA),
    Pattern("st_elevation", "ST elevation", conduction.st_elevation, "fourth universal definition of MI, 2018"),
    Pattern("st_depression", "ST depression", conduction.st_depression, "fourth universal definition of MI, 2018"),
    Pattern("long_qt", "long QT", conduction.long_qt, "Schwartz and Crotti 2011; Fridericia 1920"),
    Pattern("asystole", "asystole", ventricular.asystole, _GOLDBERGER),
    Pattern("pause", "sinus pause", supraventricular.pause, _GOLDBERGER),
)
NAMES = tuple(pattern.name for pattern in PATTERNS)


def pattern(name: str) -> Pattern:
    """A pattern by its name.

    Raises:
        InputError: There is none of this name.

    >>> pattern("af").title
    'atrial fibrillation'
    """
    for found in PATTERNS:
        if found.name == name:
            return found
    raise InputError(f"pattern {name!r}: there is none of this name", f"Take one of {', '.join(NAMES)}.")
