"""The charts: time of every operation, memory over time, roofline, and what is lost for what is saved.

Each has a table with the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kasmina_edge.hardware_simulator.timeline import Roof, RooflinePoint, Slice
from kasmina_trainer.pages.document import NOTHING, Content, Markup, element, folded, joined, table
from kasmina_trainer.pages.figure import Plane, decades, number, padded

MOST_BARS = 25
_COLOURS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Spot:
    """A point of a trade-off.

    Attributes:
        number: As in the table beside the chart.
        name: What it is.
        x: Its price.
        y: What is lost.
        x_low: Lower end of the price's band; None: without one.
        x_high: Upper end.
        y_low: Lower end of the interval of what is lost.
        y_high: Upper end.
        chosen: It was taken.
        front: No other point beats it.
        allowed: It keeps the goals.
    """

    number: int
    name: str
    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    chosen: bool = False
    front: bool = False
    allowed: bool = True


def time_bars(slices: Sequence[Slice], fixed_us: float) -> Markup:
    """Milliseconds of every operation, the longest ones as bars; all of them in the table."""
    total = sum(s.latency_us for s in slices) + fixed_us
    if not slices or total <= 0:
        return element("p", "No operation takes time.")
    places = list(dict.fromkeys(s.where for s in slices))
    colours = {where: _COLOURS[min(i, len(_COLOURS) - 1)] for i, where in enumerate(places)}
    shown = sorted(slices, key=lambda s: -s.latency_us)[:MOST_BARS]
    kept = {id(s) for s in shown}
    top = max([s.latency_us for s in shown] + [fixed_us])
    rows = [_bar(s.place, s.latency_us, top, colours[s.where]) for s in slices if id(s) in kept]
    rest = sum(s.latency_us for s in slices if id(s) not in kept)
    if rest:
        rows.append(_bar(f"{len(slices) - len(shown)} shorter ones, each less", rest, max(top, rest), "quiet"))
    if fixed_us:
        rows.insert(0, _bar("the call itself", fixed_us, top, "quiet"))
    key = element("ul", *(element("li", element("i", class_=colours[w]), w) for w in places), class_="key")
    cells = [
        (s.place, s.where, s.bound, number(s.latency_us), f"{100 * s.latency_us / total:.1f}", number(float(s.macs)))
        for s in slices
    ]
    columns = ("operation", "runs on", "limited by", "us", "% of all", "MAC")
    whole = table(columns, cells, caption="Time of every operation", numbers=(3, 4, 5))
    caption = f"{number(total)} us in all, in the order of execution."
    return (
        key + element("div", *rows, class_="bars") + element("p", caption, class_="small") + folded("As a table", whole)
    )


def memory_chart(slices: Sequence[Slice], arena_bytes: int, limit_bytes: int | None) -> Markup:
    """Bytes of activations that are alive while time passes, what packing needs and, where near, what there is."""
    if not slices or slices[-1].begin_us + slices[-1].latency_us <= 0:
        return element("p", "The model file does not say how long its tensors live.")
    end_us = slices[-1].begin_us + slices[-1].latency_us
    peak = max(s.live_bytes for s in slices)
    near = limit_bytes is not None and limit_bytes < 3 * max(peak, arena_bytes)
    top = max([peak, arena_bytes] + ([limit_bytes] if near and limit_bytes is not None else [])) / 1000
    plane = Plane.of("Memory over time", (0.0, end_us / 1000), (0.0, top * 1.12 or 1.0), height=300)
    plane.axes("ms since the inference began", "kB of activations")
    floor = plane.y.begin
    outline: list[tuple[float, float]] = [(plane.x.at(slices[0].begin_us / 1000), floor)]
    for s in slices:
        left, right = plane.x.at(s.begin_us / 1000), plane.x.at((s.begin_us + s.latency_us) / 1000)
        height = plane.y.at(s.live_bytes / 1000)
        outline += [(left, height), (right, height)]
    plane.path([*outline, (outline[-1][0], floor)], "area", closed=True)
    plane.path(outline, "line l-a")
    _level(plane, arena_bytes / 1000, f"arena {number(arena_bytes / 1000)} kB", "line l-b dash")
    if near and limit_bytes is not None:
        _level(plane, limit_bytes / 1000, f"there is {number(limit_bytes / 1000)} kB", "line l-hot dash")
    most = max(slices, key=lambda s: s.live_bytes)
    caption = (
        f"At most {number(peak / 1000)} kB are alive at once, during {most.place}; packed, with every tensor aligned, "
        f"the arena takes {number(arena_bytes / 1000)} kB."
    )
    cells = [(s.place, number(s.begin_us), number(s.latency_us), number(s.live_bytes / 1000)) for s in slices]
    whole = table(
        ("operation", "begins, us", "takes, us", "alive, kB"), cells, caption="Memory over time", numbers=(1, 2, 3)
    )
    return plane.figure(caption) + folded("As a table", whole)


def roofline_chart(points: Sequence[RooflinePoint], roof: Roof) -> Markup:
    """Work a byte against work a second, both logarithmic, under the target's two limits where it states them."""
    if not points:
        return element("p", "No operation multiplies, so there is no roofline.")
    xs, ys = [p.intensity for p in points], [p.achieved_gmacs for p in points]
    ends = decades(xs)
    limits = [limit for limit in (roof.at(ends[0]), roof.at(ends[1]), roof.peak_gmacs) if limit is not None]
    plane = Plane.of("Roofline", ends, decades([*ys, *limits]), height=380, log_x=True, log_y=True)
    plane.axes("multiply-accumulates a byte moved", "billions of multiply-accumulates a second")
    _roof(plane, roof, ends)
    total = sum(p.latency_us for p in points)
    longest = sorted(range(len(points)), key=lambda i: -points[i].latency_us)[:5]
    for p in points:
        radius = 4 + 10 * (p.latency_us / total) ** 0.5
        told = f"{p.place}: {number(p.achieved_gmacs)} GMAC/s at {number(p.intensity)} MAC a byte"
        plane.dot(plane.x.at(p.intensity), plane.y.at(p.achieved_gmacs), radius, "dot a", told)
    spots = [Spot(k + 1, "", points[i].intensity, points[i].achieved_gmacs, chosen=True) for k, i in enumerate(longest)]
    _write_labels(plane, spots)
    names = "; ".join(f"{k + 1} {points[i].place}" for k, i in enumerate(longest))
    known = "" if roof.peak_gmacs is not None or roof.bytes_per_s is not None else " The profile states no limits."
    cells = [
        (
            p.place, number(p.intensity), number(p.achieved_gmacs),
            "" if p.roof_gmacs is None else number(p.roof_gmacs),
            "" if p.roof_gmacs is None else f"{100 * p.achieved_gmacs / p.roof_gmacs:.1f}", number(p.latency_us),
        )
        for p in points
    ]  # fmt: skip
    columns = ("operation", "MAC a byte", "GMAC/s", "limit", "% of it", "us")
    whole = table(columns, cells, caption="Roofline of every operation", numbers=(1, 2, 3, 4, 5))
    caption = f"A dot's area is its share of the time. The longest: {names}.{known}"
    return plane.figure(caption) + folded("As a table", whole)


def trade_off(
    spots: Sequence[Spot], title: str, x_title: str, y_title: str, caption: str, *, x_goal: float | None = None,
    y_goal: float | None = None, width: float = 460, from_zero: bool = False,
) -> Markup:  # fmt: skip
    """Points with their bands, numbered as in a table; the front as a line, goals as dashed ones."""
    xs = [v for s in spots for v in (s.x, s.x_low, s.x_high) if v is not None]
    ys = [v for s in spots for v in (s.y, s.y_low, s.y_high) if v is not None]
    span = padded([*xs, *([x_goal] if x_goal is not None else [])], zero=from_zero, share=0.12)
    plane = Plane.of(
        title, (max(0.0, span[0]), span[1]), padded([*ys, 0.0, *([y_goal] if y_goal is not None else [])]),
        width=width, height=360,
    )  # fmt: skip
    plane.axes(x_title, y_title, x_ticks=plane.x.ticks(4))
    if y_goal is not None:
        _level(plane, y_goal, f"at most {number(y_goal)}", "thin l-hot dash")
    if x_goal is not None:
        at = plane.x.at(x_goal)
        plane.line(at, plane.y.begin, at, plane.y.end, "thin l-hot dash")
        plane.text(at - 5, plane.y.begin - 8, f"at most {number(x_goal)}", anchor="end", class_="tick halo")
    steps = sorted((s for s in spots if s.front), key=lambda s: (s.x, s.y))
    corners: list[tuple[float, float]] = []
    for s in steps:
        if corners:
            corners.append((plane.x.at(s.x), corners[-1][1]))
        corners.append((plane.x.at(s.x), plane.y.at(s.y)))
    if len(steps) > 1:
        plane.path(corners, "thin l-soft")
    for s in sorted(spots, key=lambda s: s.chosen):
        _spot(plane, s)
    _write_labels(plane, spots)
    return plane.figure(caption)


def _spot(plane: Plane, s: Spot) -> None:
    x, y = plane.x.at(s.x), plane.y.at(s.y)
    ink = "l-b" if s.chosen else "l-soft"
    if s.y_low is not None and s.y_high is not None:
        plane.line(x, plane.y.at(s.y_low), x, plane.y.at(s.y_high), f"thin {ink}")
    if s.x_low is not None and s.x_high is not None:
        plane.line(plane.x.at(s.x_low), y, plane.x.at(s.x_high), y, f"thin {ink}")
    colour = "b" if s.chosen else "a" if s.allowed else "quiet"
    plane.dot(x, y, 8 if s.chosen else 5.5, f"dot {colour}", f"{s.number} {s.name}: {number(s.x)}, {number(s.y)}")


def _write_labels(plane: Plane, spots: Sequence[Spot]) -> None:
    """Numbers beside the points, to the left of them where the right has no room; near ones share a label."""
    groups: list[list[Spot]] = []
    for s in spots:
        x, y = plane.x.at(s.x), plane.y.at(s.y)
        for group in groups:
            if abs(plane.x.at(group[0].x) - x) < 16 and abs(plane.y.at(group[0].y) - y) < 14:
                group.append(s)
                break
        else:
            groups.append([s])
    for group in groups:
        words, room = ", ".join(str(s.number) for s in group), 12.0 if any(s.chosen for s in group) else 9.0
        right, y = max(plane.x.at(s.x) for s in group) + room, plane.y.at(group[0].y) - 7
        if right + 7 * len(words) < plane.width:
            plane.text(right, y, words, class_="halo")
        else:
            plane.text(min(plane.x.at(s.x) for s in group) - room, y, words, anchor="end", class_="halo")


def _level(plane: Plane, value: float, words: str, class_: str) -> None:
    at = plane.y.at(value)
    plane.line(plane.x.begin, at, plane.x.end, at, class_)
    plane.text(plane.x.end, at - 6, words, anchor="end", class_="tick halo")


def _roof(plane: Plane, roof: Roof, ends: tuple[float, float]) -> None:
    if roof.peak_gmacs is None and roof.bytes_per_s is None:
        return
    corners = [ends[0], ends[1]]
    if roof.peak_gmacs is not None and roof.bytes_per_s is not None:
        ridge = roof.peak_gmacs * 1e9 / roof.bytes_per_s
        if ends[0] < ridge < ends[1]:
            corners.insert(1, ridge)
    heights = [(plane.x.at(c), plane.y.at(roof.at(c) or 0.0)) for c in corners]
    plane.path(heights, "line l-hot")
    words = "peak" if roof.peak_gmacs is not None else "memory"
    plane.text(heights[-1][0], heights[-1][1] - 8, words, anchor="end", class_="tick halo")


def _bar(name: str, value: float, top: float, colour: str) -> Markup:
    fill = element("span", class_=f"fill {colour}", style=f"width:{100 * value / top if top else 0:.1f}%")
    told: tuple[Content, ...] = (
        element("span", name, class_="name", title=name),
        element("span", fill, class_="track"),
        element("span", f"{number(value)} us", class_="n"),
    )
    return element("div", *told, class_="bar")


def side_by_side(*charts: Markup) -> Markup:
    """Two charts in a row where there is room."""
    return element("div", joined(charts), class_="panels") if charts else NOTHING
