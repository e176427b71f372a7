"""Attack success by epsilon: the figures, and their picture as SVG or HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.errors import InputError
from kasmina_edge.storage import write_durable
from kasmina_trainer.adversarial.attacks import Attacked
from kasmina_trainer.pages.document import Markup, document, element, joined, section, table
from kasmina_trainer.pages.figure import Plane, number
from kasmina_trainer.pages.style import STYLE

_COLOURS = ("a", "b", "c", "d", "hot")
_MORE = ".l-c{stroke:var(--c)}.l-d{stroke:var(--d)}"
_ALONE = "svg{background:var(--card);font-family:system-ui,sans-serif}"
TITLE = "Attack success by epsilon"


@dataclass(frozen=True)
class Point:
    """One attack at one strength.

    Attributes:
        epsilon: Most that a pixel moves, in units of full scale.
        success_rate: Share of the pictures answered rightly before that are wrong now.
        accuracy: Share of all pictures still answered rightly.
        median_queries: Answers that a fooled picture cost.
    """

    epsilon: float
    success_rate: float
    accuracy: float
    median_queries: float


@dataclass(frozen=True)
class Curve:
    """One attack on one target at several strengths.

    Attributes:
        name: Of attack and target.
        points: In order of epsilon.
    """

    name: str
    points: tuple[Point, ...]


def curve(name: str, attack: Callable[[float], Attacked], epsilons: Sequence[float]) -> Curve:
    """Run an attack at several strengths.

    Args:
        name: For the legend.
        attack: Takes epsilon.
        epsilons: Strengths, in units of full scale.

    Raises:
        InputError: No strengths, or some that do not rise.
    """
    if not epsilons or not all(map(math.isfinite, epsilons)) or list(epsilons) != sorted(set(epsilons)):
        raise InputError(f"epsilons {list(epsilons)}: expected at least one, each above the one before")
    found = ((epsilon, attack(epsilon)) for epsilon in epsilons)
    return Curve(name, tuple(Point(e, made.success_rate, made.accuracy, made.median_queries) for e, made in found))


def save_curves(curves: Sequence[Curve], path: Path | str) -> None:
    """Write the picture: ``.svg`` for the drawing alone, ``.html`` for a page with the figures in a table.

    Raises:
        InputError: No curves, one without points, or another suffix.
        StorageError: The disk refused.
    """
    place = Path(path)
    if not curves or not all(each.points for each in curves) or place.suffix not in (".svg", ".html"):
        raise InputError(f"{place}: {len(curves)} curves with points: expected at least one, and a .svg or .html file")
    text = _svg(curves) if place.suffix == ".svg" else _page(curves)
    write_durable(place, text.encode(), mode=0o644)


def _drawn(curves: Sequence[Curve]) -> Plane:
    most = max(point.epsilon for each in curves for point in each.points)
    plane = Plane.of(TITLE, (0.0, most * 1.02 or 1.0), (0.0, 104.0), height=340 + 18 * len(curves))
    plane.y = type(plane.y)(0.0, 104.0, plane.y.begin - 18 * len(curves), plane.y.end)
    plane.axes("epsilon, in units of full scale", "pictures fooled, %")
    for at, each in enumerate(curves):
        colour = _COLOURS[at % len(_COLOURS)]
        places = [(plane.x.at(point.epsilon), plane.y.at(100 * point.success_rate)) for point in each.points]
        plane.path(places, f"line l-{colour}" + (" dash" if at >= len(_COLOURS) else ""))
        for place, point in zip(places, each.points, strict=True):
            plane.dot(*place, 4, f"dot {colour}", f"{each.name}: {100 * point.success_rate:.1f} % at {point.epsilon:g}")
        below = plane.height - 18 * len(curves) + 18 * at + 8
        plane.dot(plane.x.begin + 6, below - 4, 5, colour, each.name)
        plane.text(plane.x.begin + 18, below, each.name, class_="tick")
    return plane


def _svg(curves: Sequence[Curve]) -> str:
    plane = _drawn(curves)
    return element(
        "svg", element("title", TITLE), element("style", Markup(STYLE + _MORE + _ALONE)), joined(plane.shapes),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {plane.width:g} {plane.height:g}", role="img",
    ).html + "\n"  # fmt: skip


def _page(curves: Sequence[Curve]) -> str:
    cells = [
        (each.name, f"{point.epsilon:g}", f"{100 * point.success_rate:.1f}", f"{100 * point.accuracy:.1f}",
         number(point.median_queries))
        for each in curves
        for point in each.points
    ]  # fmt: skip
    columns = ("attack", "epsilon", "fooled, %", "still right, %", "median queries")
    figures = table(columns, cells, caption=TITLE, numbers=(1, 2, 3, 4))
    chart = element("style", Markup(_MORE)) + _drawn(curves).figure(
        "Of the pictures that were answered rightly, the share that no longer is. Every pixel moves by at most epsilon."
    )
    return document(
        TITLE, "What it takes to fool this network.", [section("Curves", chart), section("Figures", figures)]
    )
