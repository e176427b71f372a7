"""Both towers as int8 files, asked frame by frame through the edge Runtime."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.runtime import Runtime
from kasmina_trainer.datasets.captioned import Pairs
from kasmina_trainer.export import export_bundle
from kasmina_trainer.multimodal import Recall, mean_recall, recall
from kasmina_trainer.seeds import SeededNetwork

Array = npt.NDArray[Any]


class Towers:
    """Two bundles of a Tiny-CLIP, for the profile ``x86-cpu``.

    Args:
        images: The image tower.
        texts: The text tower.
        calibration: Pairs that nothing is measured on; the first half sets the ranges, the rest measures parity.
    """

    def __init__(self, images: nn.Module, texts: nn.Module, calibration: Pairs) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kasmina-clip-")
        self.bundles: dict[str, Bundle] = {}
        self._add("pictures", images, app_pictures(calibration.pictures), None)
        self._add("texts", texts, calibration.texts.swapaxes(1, 2), None)

    def grown(self, images: SeededNetwork, calibration: Pairs) -> Towers:
        """The same with grafts on the image tower: a child of its bundle; the texts' stays."""
        other = copy.copy(self)
        other._folder = tempfile.TemporaryDirectory(prefix="kasmina-clip-")
        other.bundles = dict(self.bundles)
        other._add("pictures", images, app_pictures(calibration.pictures), self.bundles["pictures"])
        other.path("texts").write_bytes(pack(self.bundles["texts"]))
        return other

    @property
    def size_bytes(self) -> int:
        """Of both int8 files."""
        models = [model for bundle in self.bundles.values() for model in bundle.manifest.models]
        return sum(model.file.size_bytes for model in models if model.engine == "litert")

    def _add(self, name: str, tower: nn.Module, frames: Array, parent: Bundle | None) -> None:
        half = len(frames) // 2
        self.bundles[name] = export_bundle(
            tower, f"tiny-clip-{name}", version="1.1.0" if parent else "1.0.0", profile="x86-cpu", parent=parent,
            calibration=frames[:half], held_out=(frames[half:], None), minimum_agreement=0.9,
        )  # fmt: skip
        self.path(name).write_bytes(pack(self.bundles[name]))

    def path(self, name: str) -> Path:
        """Where the bundle of ``pictures`` or ``texts`` lies."""
        return Path(self._folder.name) / f"{name}.kasmina"

    def recall(self, galleries: list[Pairs]) -> Recall:
        """Mean recall of the int8 files over galleries."""
        with (
            Runtime.open(self.path("pictures"), verify=lambda _: None, telemetry=None) as pictures,
            Runtime.open(self.path("texts"), verify=lambda _: None, telemetry=None) as texts,
        ):
            return mean_recall(
                [
                    recall(answers(pictures, app_pictures(each.pictures)), answers(texts, each.texts.swapaxes(1, 2)))
                    for each in galleries
                ]
            )


def app_pictures(pictures: Array) -> Array:
    """Pictures as an app has them.  # (N, 3, 32, 32) to (N, 32, 32, 3)"""
    return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))


def answers(runtime: Runtime, frames: Array) -> Array:
    """What a bundle answers to each frame.  # (N, ...) to (N, E)"""
    return np.stack([next(iter(runtime.infer(frame).outputs.values()))[0] for frame in np.ascontiguousarray(frames)])
