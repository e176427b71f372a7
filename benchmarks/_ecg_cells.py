"""What benchmarks/domain_ecg.py trains and makes, kept in build/bench/ until the code that made it changes.

A cell is a seed's trained net with the windows that its export and its test need. A file's name holds a digest of the
sources without their comments; exporting and scoring are never kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks._detector import code_of
from benchmarks._quantize_nets import FOLDER, ROOT
from kasmina_trainer.datasets.digits import Images, Samples
from kasmina_trainer.datasets.medical_simulator import neurokit
from kasmina_trainer.datasets.medical_simulator.windows import PATIENTS, Windows, split
from kasmina_trainer.ecg_detector.learning import SETTINGS, train_pattern_net
from kasmina_trainer.ecg_detector.nets import PatternNet

Array = npt.NDArray[Any]
CALIBRATION = 400
_ROOM = ROOT / "kasmina_trainer/datasets/medical_simulator"
_MADE = (
    *("conduction", "course", "dipole", "heart_rate", "leads", "noise", "patients", "patterns", "recording", "shapes"),
    *("supraventricular", "ventricular", "windows"),
)
_TRAINED = ("ecg_detector/learning", "ecg_detector/nets", "datasets/ecg_peaks")


@dataclass(frozen=True)
class Cell:
    """One seed.

    Attributes:
        net: Trained, in evaluation mode.
        calibration: Windows of training patients.  # (N, 3, 1, 1280)
        validation: Windows of patients that neither train nor test.
        test: Windows of patients that nothing has seen.
    """

    net: PatternNet
    calibration: Images
    validation: Samples
    test: Windows


def cell(seed: int, quick: bool) -> Cell:
    """The cell of a seed; a quick one is small and never kept."""
    if quick:
        return _cell(_trained(seed, (10, 3, 6), 60))
    sources = (*(_ROOM / f"{name}.py" for name in _MADE), *(ROOT / f"kasmina_trainer/{name}.py" for name in _TRAINED))
    key = _digest([seed, PATIENTS, SETTINGS, CALIBRATION, torch.__version__], sources)
    return _cell(_kept(f"ecg-{seed}-{key}.npz", lambda: _trained(seed, PATIENTS, SETTINGS.steps)))


def neurokit_windows(count: int, seed: int, *, keep: bool) -> Samples:
    """Windows of neurokit2's signals.

    Raises:
        InputError: neurokit2 is not installed; what was kept is not told in its absence.
    """
    version = neurokit.generator().__version__

    def made() -> dict[str, Array]:
        x, y = neurokit.windows(count, seed=seed)
        return {"x": x, "y": y}

    key = _digest([count, seed, version], (_ROOM / "neurokit.py", _ROOM / "windows.py"))
    found = _kept(f"ecg-neurokit-{key}.npz", made) if keep else made()
    return found["x"], found["y"]


def _trained(seed: int, patients: tuple[int, int, int], steps: int) -> dict[str, Array]:
    train, validation, test = split(seed, patients=patients)
    net = train_pattern_net(train.samples, seed=seed, settings=replace(SETTINGS, steps=steps))
    return {
        **{f"net.{name}": value.numpy() for name, value in net.state_dict().items()},
        "calibration": train.x[:: max(1, len(train.x) // CALIBRATION)],
        "validation_x": validation.x,
        "validation_y": validation.y,
        **{f"test_{name}": getattr(test, name) for name in ("x", "y", "patients", "snr_db")},
    }


def _cell(arrays: Mapping[str, Array]) -> Cell:
    net = PatternNet()
    net.load_state_dict(
        {name[4:]: torch.from_numpy(np.array(value)) for name, value in arrays.items() if name.startswith("net.")}
    )
    test = Windows(*(arrays[f"test_{name}"] for name in ("x", "y", "patients", "snr_db")))
    return Cell(net.eval(), arrays["calibration"], (arrays["validation_x"], arrays["validation_y"]), test)


def _digest(facts: object, sources: Iterable[Path]) -> str:
    text = "".join(code_of(path) for path in sources)
    return hashlib.sha256(f"{facts} {text}".encode()).hexdigest()[:12]


def _kept(name: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    path = FOLDER / name
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, allow_pickle=False, **make())
        part.rename(path)
    with np.load(path) as found:
        return {each: found[each] for each in found.files}
