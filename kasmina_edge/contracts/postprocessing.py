"""What the device does to a detector's outputs: anchors, box coding, activation, thresholds, class names.

Boxes are coded as in SSD (Liu et al. 2016, arXiv:1512.02325) against anchors that are generated from grids, so that a
few numbers in the signed manifest stand for all of them. Offsets and scores come in tensors of their own: their ranges
differ by an order of magnitude, and an 8-bit tensor has one scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kasmina_edge.contracts.canonical import SignedContract

MAX_ANCHORS = 65_536
MAX_LEVELS, MAX_SIZES, MAX_SIDE, MAX_CLASSES = 16, 32, 512, 1_000
BOX_VALUES = 4

Side = Annotated[float, Field(gt=0, le=4)]
Share = Annotated[float, Field(gt=0, lt=1)]
OutputName = Annotated[str, Field(min_length=1, max_length=200)]


class AnchorLevel(SignedContract):
    """One grid of anchors, and the outputs that speak of them.

    The centre of cell (row, column) is ((row + 0.5) / rows, (column + 0.5) / columns). Anchors are numbered by row,
    then column, then size, as a channels-last convolution puts them out.

    Attributes:
        boxes: Manifest's name of the output with four offsets an anchor: y, x, height, width.
        scores: Manifest's name of the output with a score a class and anchor. Levels that name the same outputs lie in
            them one after another.
        rows: Cells from top to bottom.
        columns: Cells from left to right.
        sizes: Height and width of the anchors in every cell, in shares of the input's.
    """

    boxes: OutputName
    scores: OutputName
    rows: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    columns: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1, max_length=MAX_SIZES)]

    @property
    def anchors(self) -> int:
        """How many there are."""
        return self.rows * self.columns * len(self.sizes)


class Postprocessing(SignedContract):
    """From raw outputs to labelled boxes; see `kasmina_edge.engines.postprocessing`.

    Attributes:
        kind: How boxes are coded.
        labels: Class names, in the order of the scores.
        levels: Grids of anchors.
        centre_variance: Unit of the centre's offsets, in anchor sizes.
        size_variance: Unit of the size's offsets, in natural logarithms.
        activation: What turns the scores into shares of 1: over each class alone, over all classes, or nothing.
        background: The first score of every anchor is that of no object.
        score_threshold: Boxes below are not given.
        iou_threshold: Of two boxes of a class that overlap more (intersection over union), the better stays.
        maximum_detections: Most boxes of a frame.
        maximum_candidates: Most boxes looked at for overlaps, the best ones.
    """

    kind: Literal["ssd"] = "ssd"
    labels: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(min_length=1, max_length=MAX_CLASSES)]
    levels: Annotated[tuple[AnchorLevel, ...], Field(min_length=1, max_length=MAX_LEVELS)]
    centre_variance: Annotated[float, Field(gt=0, le=10)] = 0.1
    size_variance: Annotated[float, Field(gt=0, le=10)] = 0.2
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    background: bool = False
    score_threshold: Share = 0.3
    iou_threshold: Share = 0.5
    maximum_detections: Annotated[int, Field(ge=1, le=1_000)] = 100
    maximum_candidates: Annotated[int, Field(ge=1, le=10_000)] = 400

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.anchors > MAX_ANCHORS:
            raise ValueError(f"{self.anchors} anchors, at most {MAX_ANCHORS} are read")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is there twice")
        pairs = {(level.boxes, level.scores) for level in self.levels}
        if not len(pairs) == len({boxes for boxes, _ in pairs}) == len({scores for _, scores in pairs}):
            raise ValueError("levels that share an output share both: boxes and scores lie in the same order")
        shared = {level.boxes for level in self.levels} & {level.scores for level in self.levels}
        if shared:
            raise ValueError(
                f"output {min(shared)} holds boxes and scores: they need outputs, and so scales, of their own"
            )
        return self

    @property
    def anchors(self) -> int:
        """How many there are on all levels."""
        return sum(level.anchors for level in self.levels)

    @property
    def scores_an_anchor(self) -> int:
        """Classes, and one more where the background has a score."""
        return len(self.labels) + self.background

    def values(self) -> dict[str, int]:
        """How many numbers each output holds, by name."""
        found: dict[str, int] = {}
        for level in self.levels:
            found[level.boxes] = found.get(level.boxes, 0) + level.anchors * BOX_VALUES
            found[level.scores] = found.get(level.scores, 0) + level.anchors * self.scores_an_anchor
        return found

    def require_outputs(self, sizes: Iterable[tuple[str, str, int]]) -> None:
        """Refuse outputs that these levels do not describe.

        Args:
            sizes: Name, type and number of values of every output.

        Raises:
            ValueError: One is missing, left over, not float32 for the app, or of another size; the message says which.
        """
        wanted = self.values()
        for name, dtype, size in sizes:
            if name not in wanted:
                raise ValueError(f"postprocessing: no level reads output {name}")
            if dtype != "float32":
                raise ValueError(f"postprocessing: output {name} is {dtype} for the app, expected float32")
            if size != wanted.pop(name):
                raise ValueError(f"postprocessing: output {name} has {size} values, its levels {self.values()[name]}")
        if wanted:
            raise ValueError(f"postprocessing: there is no output {min(wanted)}")
