"""A chart's plane: scales, ticks, axes. Coordinates are of the SVG's own units; y grows downwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kasmina_trainer.pages.document import Content, Markup, element, joined

LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 14.0, 44.0


@dataclass(frozen=True)
class Scale:
    """From values to places on one axis.

    Attributes:
        low: Value at the beginning.
        high: Value at the end; more than ``low``.
        begin: Place of ``low``.
        end: Place of ``high``.
        log: Equal ratios take equal room; both values are above 0.
    """

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; values outside are held at the ends."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """Round values inside."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / max(count, 1)))
        return tuple(10.0**i for i in range(first, last + 1, every))


def linear_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Some ``count`` round values from ``low`` to ``high``.

    >>> linear_ticks(0, 9)
    (0.0, 2.0, 4.0, 6.0, 8.0)
    """
    raw = (high - low) / max(count, 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * f for f in (1, 2, 2.5, 5, 10) if unit * f >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1))


def padded(values: Sequence[float], *, zero: bool = False, share: float = 0.08) -> tuple[float, float]:
    """Ends of an axis that holds the values with some room; 0 is an end or inside where ``zero`` is set."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * share or abs(high) * 0.1 or 1.0
    if low == high == 0:
        return (0.0, 1.0) if zero else (-1.0, 1.0)
    return (low if zero and low == 0 else low - room), (high if zero and high == 0 else high + room)


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis: whole powers of ten around positive values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    return 10.0**low, 10.0 ** max(high, low + 1)


def number(value: float) -> str:
    """A figure as short as it can be told.

    >>> number(1234567), number(0.00012), number(2.0), number(1500)
    ('1.23 M', '0.00012', '2', '1,500')
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.3g} G"
    if size >= 1e6:
        return f"{value / 1e6:.3g} M"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")


def coordinate(value: float) -> str:
    """A place with one decimal."""
    return f"{value:.1f}"


@dataclass
class Plane:
    """The drawing area of one chart; shapes are added in the order in which they cover each other.

    Attributes:
        title: What the chart shows; read out by screen readers.
        x: Horizontal scale.
        y: Vertical scale.
        width: Of the whole drawing.
        height: Likewise.
    """

    title: str
    x: Scale
    y: Scale
    width: float
    height: float
    shapes: list[Markup] = field(default_factory=list)

    @classmethod
    def of(
        cls, title: str, x: tuple[float, float], y: tuple[float, float], *, width: float = 720, height: float = 340,
        log_x: bool = False, log_y: bool = False,
    ) -> Plane:  # fmt: skip
        """A plane with room for both axes."""
        across = Scale(*x, LEFT, width - RIGHT, log_x)
        return cls(title, across, Scale(*y, height - BOTTOM, TOP, log_y), width, height)

    def axes(self, x_title: str, y_title: str, *, x_ticks: Sequence[float] | None = None) -> None:
        """Grid lines, ticks and titles."""
        bottom, top = self.y.begin, self.y.end
        for value in self.y.ticks():
            at = self.y.at(value)
            self.line(self.x.begin, at, self.x.end, at, "grid")
            self.text(self.x.begin - 8, at + 4, number(value), anchor="end", class_="tick")
        for value in self.x.ticks() if x_ticks is None else x_ticks:
            at = self.x.at(value)
            self.line(at, bottom, at, bottom + 5, "axis")
            self.text(at, bottom + 19, number(value), anchor="middle", class_="tick")
        self.line(self.x.begin, bottom, self.x.end, bottom, "axis")
        self.text(self.x.end, bottom + 37, x_title, anchor="end", class_="tick")
        self.text(self.x.begin + 4, top + 2, y_title, class_="tick halo")

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        """A straight line between places."""
        self.shapes.append(
            element(
                "line", x1=coordinate(x1), y1=coordinate(y1), x2=coordinate(x2), y2=coordinate(y2), class_=class_
            )
        )  # fmt: skip

    def path(self, places: Sequence[tuple[float, float]], class_: str, *, closed: bool = False) -> None:
        """A line through places."""
        steps = " ".join(f"{'L' if i else 'M'}{coordinate(a)} {coordinate(b)}" for i, (a, b) in enumerate(places))
        self.shapes.append(element("path", d=steps + (" Z" if closed else ""), class_=class_))

    def dot(self, x: float, y: float, radius: float, class_: str, told: str) -> None:
        """A point with what it is, shown when it is pointed at."""
        circle = element(
            "circle", element("title", told), cx=coordinate(x), cy=coordinate(y), r=coordinate(radius), class_=class_
        )
        self.shapes.append(circle)

    def text(self, x: float, y: float, words: Content, *, anchor: str = "start", class_: str | None = None) -> None:
        """Words at a place."""
        self.shapes.append(
            element("text", words, x=coordinate(x), y=coordinate(y), text_anchor=anchor, class_=class_)
        )  # fmt: skip

    def figure(self, caption: str) -> Markup:
        """The finished chart with its caption."""
        drawing = element(
            "svg", element("title", self.title), joined(self.shapes), role="img",
            viewBox=f"0 0 {self.width:g} {self.height:g}", aria_label=self.title,
        )  # fmt: skip
        inside = element("div", drawing, class_="wide", tabindex=0, role="group", aria_label=self.title)
        return element("figure", inside, element("figcaption", caption), class_="chart")
