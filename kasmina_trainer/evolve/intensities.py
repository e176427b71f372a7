"""How strongly each blueprint grows: what a call or a command line says, and what it means for one arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.registry import blueprint_names, find_blueprint
from kasmina_trainer.evolve.arms import Arm
from kasmina_trainer.intensity_scaler import REST, Intensity

Intensities = float | Mapping[str, Intensity]
"""One blend factor for all, or levels by blueprint; `REST` stands for those that are not named."""


def check_intensity(intensity: Intensities) -> None:
    """Every blend factor is 0 to 1, and every name is a blueprint's.

    Raises:
        InputError: One is not.
    """
    if not isinstance(intensity, Mapping):
        if not isinstance(intensity, Real) or not 0 <= intensity <= 1:
            told = f"{intensity:g}" if isinstance(intensity, Real) else repr(intensity)
            raise InputError(f"intensity {told}: expected 0 to 1")
        return
    for name, level in intensity.items():
        if name != REST:
            find_blueprint(name)
        if not isinstance(level, Intensity):
            raise InputError(
                f"intensity of {name}: {level!r}, expected an Intensity",
                "Write {'NAME': Intensity(gain=0.5)}, or parse_intensities(['NAME=0.5']).",
            )


def levels_of(intensity: Intensities, arm: Arm) -> tuple[float, BlueprintConfig | None, float]:
    """Factor of the rate, settings at their width, and blend factor of one arm."""
    if not isinstance(intensity, Mapping):
        return 1.0, arm.config, intensity
    level = intensity.get(arm.blueprint, intensity.get(REST))
    if level is None:
        return 1.0, arm.config, 1.0
    config = arm.config
    if level.width != 1.0:
        config = (config if config is not None else find_blueprint(arm.blueprint).Config()).scaled(level.width)
    return level.learning_rate, config, level.gain


def parse_intensities(texts: Sequence[str], folder: Path | None = None) -> Intensities:
    """Intensities as they are written on a command line; later ones hold, and files of the configuration come first.

    Args:
        texts: ``0.5`` for all, ``NAME=0.5`` for one blueprint, ``NAME.learning_rate=2`` or ``NAME.width=0.5``.
        folder: Configuration files of one's own, as `load_intensities` takes them.

    Raises:
        InputError: Written otherwise, an unknown blueprint, or a factor outside its range.

    >>> parse_intensities(["0.5"])
    0.5
    >>> parse_intensities(["0.5", "depthwise=0.75"])["depthwise"].gain
    0.75
    """
    plain = [text for text in texts if "=" not in text]
    try:
        for_all = float(plain[-1]) if plain else 1.0
    except ValueError as exc:
        raise InputError(f"intensity {plain[-1]!r}: expected a number, NAME=NUMBER or NAME.width=NUMBER") from exc
    check_intensity(for_all)
    if folder is None and len(plain) == len(texts):
        return for_all
    from kasmina_trainer.intensity_scaler import load_intensities

    names = blueprint_names()
    everywhere = [f"{name}.gain={for_all}" for name in ("default", *names)] if plain else []
    named = [text for text in texts if "=" in text]
    return load_intensities(names, folder=folder, overrides=[*everywhere, *named]).levels()
