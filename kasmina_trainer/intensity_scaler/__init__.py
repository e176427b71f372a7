"""How strongly a blueprint grows: learning rate, width and gain, configured in files, lowered by safety."""

from typing import TYPE_CHECKING

from kasmina_trainer.intensity_scaler.levels import AXES, HIGHEST, REST, Intensity, IntensitySettings
from kasmina_trainer.intensity_scaler.mapping import gate_value, rate_groups, widened
from kasmina_trainer.intensity_scaler.overrides import Change, SafetyOverride, Signals, lowered
from kasmina_trainer.intensity_scaler.reading import signals_of

if TYPE_CHECKING:
    from kasmina_trainer.intensity_scaler.loading import load_intensities

__all__ = [
    "AXES",
    "HIGHEST",
    "REST",
    "Change",
    "Intensity",
    "IntensitySettings",
    "SafetyOverride",
    "Signals",
    "gate_value",
    "load_intensities",
    "lowered",
    "rate_groups",
    "signals_of",
    "widened",
]


def __getattr__(name: str) -> object:
    if name == "load_intensities":  # Hydra is read in when files are: growth without files does without it
        from kasmina_trainer.intensity_scaler.loading import load_intensities

        return load_intensities
    raise AttributeError(f"module 'kasmina_trainer.intensity_scaler' has no attribute {name!r}")
