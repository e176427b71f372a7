"""Drifting clusters as a film: one HTML file that stands alone, without script. CSS shows frame after frame.

Each frame holds the points of a stretch of the stream in the colours of the *answers*, rings where an answer was wrong.
Below runs the accuracy of the fixed model with the line at which too much is lost, and the alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.pages.data_picture import INK
from kasmina_trainer.pages.document import Markup, document, element, facts, joined, section, table
from kasmina_trainer.pages.figure import Plane, coordinate, number, padded

SIDE, FRAME_S, MOST_FRAMES, MOST_POINTS = 460.0, 0.4, 60, 300
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """A stretch of the stream.

    Attributes:
        sample: Its first sample.
        x: Points.  # (N, 2)
        answers: What the model says.  # (N,)
        right: Whether that is so.  # (N,)
        accuracy: Share of right answers in the whole stretch.
        share: How much of the new there is, 0 to 1.
    """

    sample: int
    x: Array
    answers: Array
    right: Array
    accuracy: float
    share: float


def film(
    frames: Sequence[Frame], alarms: Sequence[tuple[int, str]], *, title: str, lead: str, begin: int, lost: float = 0.05
) -> str:
    """The page; equal arguments give equal bytes.

    Args:
        frames: 2 to `MOST_FRAMES`, in time order; of each at most `MOST_POINTS` points are drawn.
        alarms: Samples and what alarmed, in time order.
        title: Of the page.
        lead: What is shown, in a sentence.
        begin: Sample at which the change begins.
        lost: Accuracy below the first frame's that counts as lost.

    Raises:
        InputError: Another number of frames.
    """
    if not 2 <= len(frames) <= MOST_FRAMES:
        raise InputError(f"{len(frames)} frames: expected 2 to {MOST_FRAMES}")
    span = _span(frames)
    shown = [_points(frame, i, span) for i, frame in enumerate(frames)]
    ground = element("rect", width=SIDE, height=SIDE, class_="ground")
    film_strip = element(
        "svg", element("title", title), ground, joined(shown), viewBox=f"0 0 {SIDE:g} {SIDE:g}", role="img",
        aria_label=title, class_="film",
    )  # fmt: skip
    pause = Markup('<input type="checkbox" id="pause"><label for="pause">hold the film</label>')
    first = next((a for a in alarms if a[0] >= begin), None)
    early = sum(1 for a in alarms if a[0] < begin)
    told = facts(
        [
            ("change begins at sample", f"{begin:,}"),
            ("first alarm after", "none" if first is None else f"{first[0] - begin:,} samples"),
            ("by", "-" if first is None else first[1]),
            ("false alarms before", early),
        ]
    )
    rows = [
        (f"{f.sample:,}", f"{100 * f.share:.0f}", f"{100 * f.accuracy:.1f}", _alarms_in(frames, i, alarms))
        for i, f in enumerate(frames)
    ]
    whole = table(
        ("sample", "% new", "% right", "alarms"), rows, caption="Every frame", numbers=(0, 1, 2), marked=()
    )  # fmt: skip
    style = element("style", Markup(_style(len(frames))))
    return document(
        title,
        lead,
        [
            style + section("What was found", told),
            section("Points in the colours of the answers; rings: wrong", pause, film_strip),
            section("Accuracy of the model, which does not learn", _curve(frames, alarms, begin, lost)),
            section("Frame by frame", whole),
        ],
    )


def _span(frames: Sequence[Frame]) -> tuple[npt.NDArray[np.float64], float]:
    """Middle and size of all points, for one scale on both axes."""
    points = np.concatenate([f.x[:MOST_POINTS] for f in frames]).astype(np.float64)
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, float((high - low).max()) * 1.06 or 1.0


def _points(frame: Frame, order: int, span: tuple[npt.NDArray[np.float64], float]) -> Markup:
    middle, size = span
    at = (frame.x[:MOST_POINTS].astype(np.float64) - middle) / size * SIDE
    answers, right = frame.answers[: len(at)], frame.right[: len(at)].astype(bool)
    groups = []
    for label in np.unique(answers).tolist():
        ink = INK[int(label) % len(INK)]
        for good, width, inner in ((True, 6.0, ""), (False, 9.0, "bad")):
            some = at[(answers == label) & (right == good)].tolist()
            dots = "".join(f"M{SIDE / 2 + a:.0f} {SIDE / 2 - b:.0f}h0" for a, b in some)
            if dots:
                groups.append(element("path", d=dots, stroke=ink, stroke_width=width, class_=f"dots {inner}".strip()))
                if not good:
                    groups.append(element("path", d=dots, stroke_width=4.5, class_="dots hole"))
    words = f"from sample {frame.sample:,}: {100 * frame.accuracy:.1f} % right"
    groups.append(element("text", words, x=12, y=22, class_="halo"))
    return element("g", *groups, class_="f", style=f"animation-delay:{order * FRAME_S:.1f}s")


def _curve(frames: Sequence[Frame], alarms: Sequence[tuple[int, str]], begin: int, lost: float) -> Markup:
    ends = (float(frames[0].sample), float(frames[-1].sample))
    values = [100 * f.accuracy for f in frames]
    line = values[0] - 100 * lost
    plane = Plane.of("Accuracy over time", ends, padded([*values, line]), height=280)
    plane.axes("sample", "% of answers right")
    level = plane.y.at(line)
    plane.line(plane.x.begin, level, plane.x.end, level, "thin l-hot dash")
    plane.text(plane.x.end, level - 6, f"{number(100 * lost)} points lost", anchor="end", class_="tick halo")
    plane.path([(plane.x.at(f.sample), plane.y.at(v)) for f, v in zip(frames, values, strict=True)], "line l-a")
    for sample, class_, words in ((begin, "thin l-soft dash", "change begins"), *_first(alarms, begin)):
        at = plane.x.at(sample)
        plane.line(at, plane.y.begin, at, plane.y.end, class_)
        # below the curve, which is high where a change begins
        plane.text(at + 5, plane.y.begin - (18 if words == "first alarm" else 36), words, class_="tick halo")
    for sample, words in alarms[:100]:
        plane.dot(plane.x.at(sample), plane.y.begin - 6, 3.5, "dot hot", f"{sample:,}: {words}")
    step = len(frames) * FRAME_S
    cursor = element("line", x1=0, x2=0, y1=plane.y.begin, y2=plane.y.end, class_="cursor")
    plane.shapes.append(cursor)
    told = "Red dots are alarms; the green line is at the frame above."
    return plane.figure(f"{told} A frame lasts {FRAME_S:g} s, the film {step:.0f} s.")


def _first(alarms: Sequence[tuple[int, str]], begin: int) -> list[tuple[int, str, str]]:
    return next(([(sample, "thin l-hot", "first alarm")] for sample, _ in alarms if sample >= begin), [])


def _alarms_in(frames: Sequence[Frame], i: int, alarms: Sequence[tuple[int, str]]) -> str:
    end = frames[i + 1].sample if i + 1 < len(frames) else None
    inside = [words for sample, words in alarms if sample >= frames[i].sample and (end is None or sample < end)]
    return "; ".join(inside[:2]) + (f" and {len(inside) - 2} more" if len(inside) > 2 else "")


def _style(frames: int) -> str:
    seconds, share = frames * FRAME_S, 100 / frames
    left, right = coordinate(58.0), coordinate(704.0)
    return (
        f".film{{max-width:{SIDE:g}px;margin:10px auto 0}}.ground{{fill:var(--bg)}}"
        ".dots{fill:none;stroke-linecap:round;opacity:.85}.hole{stroke:var(--card);opacity:1}.bad{opacity:1}"
        f".f{{opacity:0;animation:f {seconds:.1f}s step-end infinite}}"
        f"@keyframes f{{0%{{opacity:1}}{share:.3f}%{{opacity:0}}}}"
        f".cursor{{stroke:var(--b);stroke-width:2;animation:c {seconds:.1f}s linear infinite}}"
        f"@keyframes c{{from{{transform:translateX({left}px)}}to{{transform:translateX({right}px)}}}}"
        "body:has(#pause:checked) .f,body:has(#pause:checked) .cursor{animation-play-state:paused}"
        "label{margin-left:6px}"
        "@media(prefers-reduced-motion:reduce){.f,.cursor{animation:none}.f:last-of-type{opacity:1}}"
    )
