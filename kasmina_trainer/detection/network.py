"""A single-shot detector of digits, about 50,000 parameters, for 64x64 grey scenes.

SSD (Liu et al. 2016) on a depthwise-separable trunk (Howard et al. 2017; the separable heads are those of SSDLite,
Sandler et al. 2018). Two grids of anchors, at strides 8 and 16. **Offsets and scores leave in tensors of their own**,
one pair a grid: an 8-bit tensor has one scale, and a concatenation forces one scale on all that it joins. Nothing in
it needs a float island: convolutions and ReLU only; sigmoid and decoding belong to the device's post-processing.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from kasmina_edge.contracts.postprocessing import BOX_VALUES, AnchorLevel, Postprocessing
from kasmina_trainer.datasets.composed_scenes import SIDE
from kasmina_trainer.hosts import SeparableBlock

STRIDES = (8, 16)
ANCHOR_PIXELS = (((16.0, 11.0), (22.0, 15.0)), ((27.0, 14.0), (28.0, 20.0)))
"""Height and width of the anchors of each grid, pixels."""
PRIOR = 0.02
"""Score that an untrained network gives to every class (Lin et al. 2017, section 4.1)."""


class _Head(nn.Module):
    """Depthwise 3x3, batch norm, ReLU, pointwise 1x1 with bias."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        answer: torch.Tensor = self.pointwise(torch.relu(self.norm(self.depthwise(x))))
        return answer


class DigitDetector(nn.Module):
    """Finds digits in 64x64 grey scenes.

    Args:
        classes: How many kinds of object.
        width: Channels of the first layer; the others are multiples of it.

    Attributes:
        output_names: Names of the outputs, in their order.
        input_shape: Shape of one input.  # (C, H, W)
    """

    input_shape = (1, SIDE, SIDE)
    output_names = tuple(f"{kind}-{stride}" for stride in STRIDES for kind in ("boxes", "scores"))

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.trunk = nn.Sequential(  # (N, w, 32, 32) to (N, 6w, 8, 8)
            SeparableBlock(width, 2 * width, 1),
            SeparableBlock(2 * width, 3 * width, 2),
            SeparableBlock(3 * width, 4 * width, 1),
            SeparableBlock(4 * width, 6 * width, 2),
            SeparableBlock(6 * width, 6 * width, 1),
        )
        self.deep = SeparableBlock(6 * width, 8 * width, 2)  # (N, 8w, 4, 4)
        anchors = [len(sizes) for sizes in ANCHOR_PIXELS]
        self.boxes = nn.ModuleList(
            _Head(c, n * BOX_VALUES) for c, n in zip((6 * width, 8 * width), anchors, strict=True)
        )
        self.scores = nn.ModuleList(_Head(c, n * classes) for c, n in zip((6 * width, 8 * width), anchors, strict=True))
        for head in self.scores:
            assert isinstance(head, _Head) and head.pointwise.bias is not None
            nn.init.constant_(head.pointwise.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 1, 64, 64) in [0, 1] to offsets and logits of each grid.

        Returns:
            As `output_names`: (N, 4A, 8, 8), (N, CA, 8, 8), (N, 4A, 4, 4), (N, CA, 4, 4) for A anchors a cell and C
            classes; the channels of one anchor lie side by side.
        """
        near = self.trunk(torch.relu(self.norm(self.stem(x))))
        maps = (near, self.deep(near))
        return tuple(head(maps[i]) for i in range(len(maps)) for head in (self.boxes[i], self.scores[i]))


def build_detector(*, seed: int = 0, classes: int = 10, width: int = 16) -> DigitDetector:
    """A fresh detector whose first weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitDetector(classes, width)


def postprocessing(labels: tuple[str, ...], *, score_threshold: float = 0.3) -> Postprocessing:
    """What a device does to this detector's outputs.

    Args:
        labels: Class names.
        score_threshold: Boxes below are not given.
    """
    levels = tuple(
        AnchorLevel(
            boxes=f"boxes-{stride}",
            scores=f"scores-{stride}",
            rows=SIDE // stride,
            columns=SIDE // stride,
            sizes=tuple((height / SIDE, width / SIDE) for height, width in sizes),
        )
        for stride, sizes in zip(STRIDES, ANCHOR_PIXELS, strict=True)
    )
    return Postprocessing(labels=labels, levels=levels, score_threshold=score_threshold, maximum_detections=20)
