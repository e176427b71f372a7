"""A picture of a data set, as one SVG that stands alone, and a sketch of it for a terminal.

A panel is one of four things, told by its kind: an ``image`` (H, W), or (H, W, 3) in colour, in [0, 1], a ``series``
(C, L), ``points`` (N, 2) with a class each, or a ``text``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.pages.document import Content, Markup, element, joined
from kasmina_trainer.pages.figure import coordinate
from kasmina_trainer.pages.grey_pictures import png_link

SIDE, HEAD, GAP, ACROSS = 220.0, 22.0, 14.0, 4
INK = ("#2f5fb3", "#d1740a", "#0b7a5b", "#7a4fb5", "#b3261e", "#566270", "#8a6d00", "#00798c")
MOST_POINTS, MOST_STEPS = 1500, 400
LETTERS = 33
"""Of a title that stand above a panel in full size; longer ones are set smaller."""
_STYLE = "text{font:13px system-ui,sans-serif;fill:#1b2430}.t{font:12px ui-monospace,monospace}.s{fill:#566270}"
_SHADES = " .:-=+*#%@"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Panel:
    """One part of a picture.

    Attributes:
        title: What it shows.
        kind: What ``values`` are, see the module's text.
        values: An array, or a text.
        classes: Of points, a number each.  # (N,)
        names: Of the classes, for the legend, which the first panel that has some gives.
    """

    title: str
    kind: Literal["image", "series", "points", "text"]
    values: Array | str
    classes: Array | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.values, str) != (self.kind == "text"):
            raise InputError(f"panel {self.title!r}: {self.kind} and {type(self.values).__name__} do not fit")
        coloured = self.kind == "image" and isinstance(self.values, np.ndarray) and self.values.shape[2:] == (3,)
        if isinstance(self.values, np.ndarray) and not coloured and (self.values.ndim != 2 or not self.values.size):
            raise InputError(f"panel {self.title!r}: {self.kind} of shape {self.values.shape}, expected two axes")
        if self.kind == "points" and isinstance(self.values, np.ndarray) and self.values.shape[1] != 2:
            raise InputError(f"panel {self.title!r}: points of shape {self.values.shape}, expected (N, 2)")


def picture(panels: Sequence[Panel], *, title: str, caption: str = "") -> str:
    """An SVG file with all panels; equal arguments give equal bytes.

    Raises:
        InputError: No panels.
    """
    if not panels:
        raise InputError(f"{title}: a picture of nothing")
    across = min(ACROSS, len(panels))
    lines = -(-len(panels) // across)
    legend = next((panel.names for panel in panels if panel.names), ())
    foot = 24 if caption or legend else 0
    width, height = GAP + across * (SIDE + GAP), 44 + lines * (SIDE + HEAD + GAP) + foot
    shapes = [
        element("rect", width=coordinate(width), height=coordinate(height), fill="#fff"),
        element("text", title, x=GAP, y=26, style="font-size:16px;font-weight:600"),
    ]
    for i, panel in enumerate(panels):
        left, top = GAP + i % across * (SIDE + GAP), 44 + i // across * (SIDE + HEAD + GAP)
        spelled = {"style": f"font-size:{13 * LETTERS / len(panel.title):.1f}px"} if len(panel.title) > LETTERS else {}
        shapes.append(element("text", panel.title, x=coordinate(left), y=coordinate(top + 14), **spelled))
        box: dict[str, Content] = {"width": SIDE, "height": SIDE, "fill": "#f6f7f9", "stroke": "#d9dfe6"}
        frame = element("rect", x=coordinate(left), y=coordinate(top + HEAD), **box)
        shapes += [frame, _drawn(panel, left, top + HEAD)]
    if caption:
        shapes.append(element("text", caption, x=GAP, y=coordinate(height - 12), class_="s"))
    if legend:
        spans = [element("tspan", f"\u25cf {each}  ", fill=INK[i % len(INK)]) for i, each in enumerate(legend)]
        at: dict[str, Content] = {"x": coordinate(width - GAP), "y": coordinate(height - 12), "text_anchor": "end"}
        shapes.append(element("text", joined(spans), **at))
    inside = element("title", title) + element("style", Markup(_STYLE)) + joined(shapes)
    whole = element(
        "svg", inside, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", width=coordinate(width),
        height=coordinate(height), role="img", aria_label=title,
    )  # fmt: skip
    return whole.html + "\n"


def sketch(panel: Panel, *, width: int = 56, height: int = 20) -> str:
    """One panel in characters.

    >>> print(sketch(Panel("x", "image", np.array([[0.0, 1.0]])), width=4, height=1))
      @@
    """
    if isinstance(panel.values, str):
        return panel.values[: width * height // 4]
    values = panel.values.astype(np.float64)
    if panel.kind == "image":
        rows = np.arange(height) * values.shape[0] // height
        columns = np.arange(width) * values.shape[1] // width
        values = values.mean(2) if values.ndim == 3 else values
        shades = np.clip(values[np.ix_(rows, columns)] * (len(_SHADES) - 1), 0, len(_SHADES) - 1).round().astype(int)
        return "\n".join("".join(_SHADES[s] for s in row) for row in shades)
    canvas = np.full((height, width), " ")
    if panel.kind == "series":
        x = np.tile(np.linspace(0, 1, values.shape[1]), len(values))
        y, marks = values.ravel(), np.repeat(np.arange(len(values)), values.shape[1])
    else:
        x, y = values.T
        marks = np.zeros(len(values), np.int64) if panel.classes is None else panel.classes
    column = np.clip(_share(x) * (width - 1), 0, width - 1).round().astype(int)
    row = np.clip((1 - _share(y)) * (height - 1), 0, height - 1).round().astype(int)
    for r, c, mark in zip(row.tolist(), column.tolist(), marks.tolist(), strict=True):
        canvas[r, c] = "ox+*#%@&"[int(mark) % 8]
    return "\n".join("".join(line).rstrip() for line in canvas)


def _drawn(panel: Panel, left: float, top: float) -> Markup:
    if isinstance(panel.values, str):
        rows = [panel.values[i : i + 28] for i in range(0, 28 * 13, 28)]
        lines = [
            element("text", row.replace("\n", " "), x=coordinate(left + 8), y=coordinate(top + 20 + 15 * i), class_="t")
            for i, row in enumerate(rows)
        ]
        return joined(lines)
    if panel.kind == "image":
        return element(
            "image", href=png_link(panel.values), x=coordinate(left), y=coordinate(top), width=SIDE, height=SIDE,
            style="image-rendering:pixelated", preserveAspectRatio="none",
        )  # fmt: skip
    return _series(panel.values, left, top) if panel.kind == "series" else _points(panel, left, top)


def _series(values: Array, left: float, top: float) -> Markup:
    """Channels above each other, each in its own band and to its own scale."""
    step = max(1, values.shape[1] // MOST_STEPS)
    kept, band = values[:, ::step], SIDE / len(values)
    paths = []
    for i, row in enumerate(kept):
        x = left + 4 + np.linspace(0, SIDE - 8, len(row))
        y = top + band * i + 3 + (1 - _share(row)) * (band - 6)
        steps = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
        paths.append(element("polyline", points=steps, fill="none", stroke=INK[i % len(INK)], stroke_width="1.2"))
    return joined(paths)


def _points(panel: Panel, left: float, top: float) -> Markup:
    assert isinstance(panel.values, np.ndarray), "points are an array"
    values = panel.values[:MOST_POINTS].astype(np.float64)
    classes = np.zeros(len(values), np.int64) if panel.classes is None else panel.classes[:MOST_POINTS]
    low, high = values.min(0), values.max(0)
    size = float((high - low).max()) or 1.0
    at = (values - (low + high) / 2) / size * (SIDE - 16) + SIDE / 2
    groups = []
    for label in np.unique(classes).tolist():
        dots = "".join(f"M{left + a:.1f} {top + SIDE - b:.1f}h0" for a, b in at[classes == label].tolist())
        groups.append(
            element("path", d=dots, stroke=INK[int(label) % len(INK)], stroke_width="3.2", stroke_linecap="round",
                    opacity="0.75")
        )  # fmt: skip
    return joined(groups)


def _share(values: Array) -> npt.NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    found: npt.NDArray[np.float64] = (values - low) / ((high - low) or 1.0)
    return found
