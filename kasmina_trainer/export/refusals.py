"""Data and networks that would make a bad export, refused before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import Preprocessing
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_trainer.quantization import QuantizeConfig, require_frames
from kasmina_trainer.quantization.config import refuse_unfit

Array = npt.NDArray[Any]
MOST_BEYOND = 4.0
"""How many times wider than the calibration's range the held-out inputs' may be."""


def refuse_lost_guard(name: str, guard: object, parent: Bundle | None) -> None:
    """Stop before devices lose an alarm that they have, because nobody thought of it.

    Args:
        name: Of the bundle.
        guard: What was said about a guard; None: nothing.
        parent: What it grew from.

    Raises:
        InputError: The parent has a guard, and this one would have none; or a word for a guard that is not "none".
    """
    if isinstance(guard, str) and guard != "none":
        raise InputError(f"{name}: guard {guard!r}", 'Pass guard=GuardFrames(...), or guard="none" to leave it out.')
    if guard is None and parent is not None and parent.manifest.guard is not None:
        raise InputError(
            f"{name}: its parent {parent.manifest.version} has a guard on output {parent.manifest.guard.output!r}, and "
            "this bundle was given none: devices would raise no alarm any more",
            'Pass guard=GuardFrames(...) with good frames of every domain, or guard="none" to leave it out.',
        )


def refuse_bad_weights(module: nn.Module, *, where: str = "") -> None:
    """Stop at weights that hold NaN or infinity.

    Raises:
        InputError: Names the layer, and how many of its numbers are not finite.
    """
    from kasmina_trainer.quantization.folding import require_finite_weights

    try:
        require_finite_weights(module)
    except InputError as exc:
        raise InputError(f"{where}: {exc.message}" if where else exc.message, exc.next_step) from exc
    halves = [n for n, p in module.named_parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if halves:
        prefix = f"{where}: " if where else ""
        raise InputError(
            f"{prefix}{len(halves)} weights are not float32, the first is {halves[0]}", "Call model.float() first."
        )


def refuse_bad_data(
    calibration: Array, held_out: Array, preprocessing: Preprocessing, domains: Mapping[str, Array]
) -> None:
    """Stop at frames that cannot set ranges, or were scaled differently from each other.

    Args:
        calibration: In the app's units.  # (N, ...)
        held_out: In the app's units.  # (M, ...)
        preprocessing: Its valid range is asked of every set.
        domains: Reference frames by domain.

    Raises:
        InputError: Too few, not finite, all alike, of another range; the message carries both numbers.
    """
    valid = preprocessing.valid_range
    require_frames(calibration, valid=valid)
    require_frames(held_out, valid=valid, least=1, where="held-out frames")
    low, high = float(calibration.min()), float(calibration.max())
    least, most = float(held_out.min()), float(held_out.max())
    width = high - low
    if least < low - MOST_BEYOND * width or most > high + MOST_BEYOND * width:
        raise InputError(
            f"calibration runs from {low:g} to {high:g}, held-out frames from {least:g} to {most:g}",
            "Scale both as the app does before it hands frames over.",
        )
    if most - least < width / 100:
        raise InputError(
            f"held-out frames run from {least:g} to {most:g}, a hundredth of calibration's {low:g} to {high:g}",
            "Scale both as the app does before it hands frames over.",
        )
    for name, frames in domains.items():
        if not np.isfinite(frames).all():
            raise InputError(f"domain {name}: {int((~np.isfinite(frames)).sum())} values are not finite")


def refuse_unfit_form(profile: HardwareProfile, form: str, config: QuantizeConfig | None) -> None:
    """Stop at a form that a target cannot compute.

    Raises:
        InputError: A float file or a float layer for an Edge TPU, 4-bit weights where they were not seen to work.
    """
    if config is not None:
        refuse_unfit(config, profile)
    if form == "float" and (profile.accelerator == "edgetpu" or profile.kind == "edgetpu"):
        raise InputError(
            f"--weights float: profile {profile.name} is an Edge TPU, which runs full-int8 operators alone",
            "Export with --weights 8, or for another profile.",
        )
