"""The detector of benchmarks/detection.py: trained once and kept in build/bench/ until its sources change.

``python -m benchmarks._detector FILE STEPS`` trains it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_trainer.datasets import composed_scenes
from kasmina_trainer.datasets.composed_scenes import Scenes

ROOT = Path(__file__).resolve().parent.parent
LABELS = tuple(str(digit) for digit in range(10))
TRAIN_SCENES, TEST_SCENES = 8_000, 1_000
STEPS, QUICK_STEPS = 1_600, 300
SOURCES = (
    "datasets/composed_scenes.py",
    "datasets/digits.py",
    "detection/network.py",
    "detection/training.py",
    "hosts.py",
)
Array = npt.NDArray[Any]


def scenes(quick: bool) -> tuple[Scenes, Scenes]:
    """Scenes to learn from, and scenes of other images of digits."""
    return composed_scenes.split_scenes(TRAIN_SCENES // (4 if quick else 1), TEST_SCENES // (2 if quick else 1), seed=0)


def trained(quick: bool) -> Any:
    """The detector in evaluation mode; trained in a process of its own when it is not there."""
    import torch

    from kasmina_trainer.detection.network import build_detector

    steps = QUICK_STEPS if quick else STEPS
    digest = hashlib.sha256("".join(code_of(ROOT / "kasmina_trainer" / name) for name in SOURCES).encode()).hexdigest()
    path = ROOT / "build/bench" / f"detector-{steps}-{digest[:12]}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks._detector", str(path), str(steps)]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    network = build_detector(classes=len(LABELS))
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def code_of(path: Path) -> str:
    """A source without its comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def joined_head(network: Any, *, frame_pixels: int) -> Any:
    """The detector with offsets and scores of each grid joined into one output: what must not be done.

    Args:
        network: The detector.
        frame_pixels: Centres leave in pixels of a frame of this side, and scores as shares of 1, as many detectors are
            exported (sizes stay coded: no 8-bit kernel has an exponential); 0: raw offsets and logits are joined.
    """
    import torch
    from torch import nn

    from kasmina_edge.engines.postprocessing import anchors_of
    from kasmina_trainer.detection.network import postprocessing

    post = postprocessing(LABELS)
    anchors = torch.from_numpy(anchors_of(post).astype(np.float32))

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            start = 0
            for i, level in enumerate(post.levels):
                own = anchors[start : start + level.anchors].reshape(level.rows, level.columns, -1, 4)
                start += level.anchors
                places, sizes = own[..., :2] * frame_pixels, own[..., 2:] * frame_pixels
                still = torch.zeros_like(sizes)
                for name, value in (
                    ("places", torch.cat([places, still], -1)),
                    ("moves", torch.cat([sizes * post.centre_variance, still + 1], -1)),
                ):
                    self.register_buffer(f"{name}{i}", value.flatten(2).permute(2, 0, 1)[None].contiguous())

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            maps = self.network(x)
            found = []
            for i in range(len(post.levels)):
                boxes, scores = maps[2 * i], maps[2 * i + 1]
                if frame_pixels:
                    boxes = boxes * getattr(self, f"moves{i}") + getattr(self, f"places{i}")
                    scores = torch.sigmoid(scores)
                found.append(torch.cat([boxes, scores], 1))
            return tuple(found)

    return Joined().eval()


def parted(joined: list[Array], *, frame_pixels: int) -> dict[str, Array]:
    """Outputs of `joined_head`, de-quantized and channels last, as the detector's own outputs.

    Scores in shares of 1 become logits again, so that one post-processing reads both.
    """
    from kasmina_edge.engines.postprocessing import anchors_of
    from kasmina_trainer.detection.network import postprocessing

    post = postprocessing(LABELS)
    anchors = anchors_of(post)
    found: dict[str, Array] = {}
    start = 0
    for level, both in zip(post.levels, joined, strict=True):
        own = anchors[start : start + level.anchors]
        start += level.anchors
        cut = 4 * len(level.sizes)
        boxes, scores = both[..., :cut].astype(np.float64), both[..., cut:].astype(np.float64)
        if frame_pixels:
            flat = boxes.reshape(len(both), -1, 4)
            moved = (flat[..., :2] / frame_pixels - own[:, :2]) / (own[:, 2:] * post.centre_variance)
            boxes = np.concatenate([moved, flat[..., 2:]], -1).reshape(boxes.shape)
            share = np.clip(scores, 1e-6, 1 - 1e-6)
            scores = np.log(share / (1 - share))
        found[level.boxes], found[level.scores] = boxes, scores
    return found


def _train(path: Path, steps: int) -> None:
    import torch

    from kasmina_trainer.detection.training import DetectorSettings, train_detector

    torch.set_num_threads(1)
    learn, _ = scenes(quick=steps == QUICK_STEPS)
    network = train_detector(learn, labels=LABELS, seed=0, settings=DetectorSettings(steps=steps))
    temporary = path.with_suffix(".tmp")
    torch.save(network.state_dict(), temporary)
    temporary.replace(path)


if __name__ == "__main__":
    _train(Path(sys.argv[1]), int(sys.argv[2]))
