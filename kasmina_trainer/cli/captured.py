"""Labelled captures as the fleet's controller writes them, or a stand-in for trying things out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import digits
from kasmina_trainer.datasets.digits import Samples

SIMULATED_SAMPLES = 300


def read_captured(path: Path) -> Samples:
    """Labelled captures as the controller writes them, as (N, C, H, W) and labels.

    Raises:
        InputError: Missing, not plain arrays, or of other shapes; the message carries what was found.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "y") if name not in arrays]
            if missing:
                raise InputError(f"{path}: array {missing[0]} is missing, it holds {', '.join(arrays) or 'nothing'}")
            x, y = np.asarray(arrays["x"]), np.asarray(arrays["y"])
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file", "Write it with `kasmina-edge fleet captures`.") from exc
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise InputError(f"{path}: not a file of plain arrays ({exc})") from exc
    shape = (digits.SIDE, digits.SIDE, 1)
    if x.shape[1:] != shape or y.shape != x.shape[:1] or x.dtype != np.float32 or y.dtype.kind not in "iu":
        raise InputError(
            f"{path}: expected x (N, {digits.SIDE}, {digits.SIDE}, 1) float32 and y (N,) integers, "
            f"got x {x.shape} {x.dtype} and y {y.shape} {y.dtype}"
        )
    if not np.isfinite(x).all():
        raise InputError(f"{path}: x holds {int((~np.isfinite(x)).sum())} values that are not numbers")
    if len(y) and (y.min() < 0 or y.max() >= len(digits.LABELS)):
        raise InputError(f"{path}: labels run from {y.min()} to {y.max()}, expected 0 to {len(digits.LABELS) - 1}")
    return digits.to_nchw(x), y.astype(np.int64)


def target(captured: Path | None, simulated: str | None, camera: digits.Digits, seed: int) -> Samples:
    """What ``--captured`` or ``--simulated`` names, as (N, C, H, W) and labels.

    Raises:
        InputError: Neither or both are named, or the file is refused by `read_captured`.
    """
    if (captured is None) == (simulated is None):
        raise InputError(
            "no labelled captures were named: grafts are grown, calibrated and exported with them",
            "Pass --captured FILE, or --simulated blur to try it (the same for evolve and export).",
        )
    if captured is not None:
        return read_captured(captured)
    from kasmina_trainer.datasets.corruptions import corrupt

    assert simulated is not None
    filmed = camera.take(slice(0, SIMULATED_SAMPLES))
    return corrupt(filmed.x, simulated, seed=seed), filmed.y
