"""A network with what has grown in it, as a drawing: the host's blocks in order of flow, each graft as a branch.

The edge to a branch says its price, the edge back what it gained or lost. Nothing depends on colour alone: grafts on
trial are dashed, sites that sleep are hollow. The drawing has a description in words and needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

from torch import nn

from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_edge.errors import InputError
from kasmina_edge.storage import write_durable
from kasmina_trainer.blueprints.registry import GraftBlueprint, find_blueprint
from kasmina_trainer.pages.document import NOTHING, Markup, document, element, joined, paragraphs, section, table
from kasmina_trainer.pages.figure import coordinate, number
from kasmina_trainer.pages.style import STYLE
from kasmina_trainer.seeds import SeededNetwork, SiteState

WIDTH = 780.0
MOST_BLOCKS = 24
MOST_CHARACTERS = 100  # a line
_LINE_X, _BOX_X, _BOX_WIDTH = 150.0, 30.0, 240.0
_BRANCH_X, _BRANCH_WIDTH = 500.0, 250.0
_BOX, _GAP, _SLEEPING, _GROWN = 46.0, 22.0, 34.0, 100.0


@dataclass(frozen=True)
class Block:
    """A part of the host: its name, what it is, its parameters; several in a row may be one block."""

    name: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class Site:
    """A seed site, and the graft that stands there; ``macs`` and ``gain`` are None where they are not known."""

    name: str
    state: SiteState
    graft: Graft | None = None
    macs: int | None = None
    gain: float | None = None


@dataclass
class _Drawing:
    shapes: list[Markup] = field(default_factory=list)
    y: float = 20.0

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        self.shapes.append(
            element(
                "line", x1=coordinate(x1), y1=coordinate(y1), x2=coordinate(x2), y2=coordinate(y2), class_=class_
            )
        )  # fmt: skip

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", class_: str | None = None) -> None:
        self.shapes.append(element("text", words, x=coordinate(x), y=coordinate(y), text_anchor=anchor, class_=class_))

    def box(self, x: float, y: float, width: float, height: float, class_: str) -> None:
        self.shapes.append(
            element(
                "rect", x=coordinate(x), y=coordinate(y), width=coordinate(width), height=coordinate(height), rx=7,
                class_=class_,
            )
        )  # fmt: skip

    def flow(self, length: float) -> None:
        self.line(_LINE_X, self.y, _LINE_X, self.y + length, "axis line")
        self.y += length


def picture(
    network: SeededNetwork, acceptance: Acceptance | None = None, *, gains: Mapping[str, float] | None = None
) -> Markup:
    """The drawing, as an SVG element that stands in any page.

    Args:
        network: With its grafts.
        acceptance: The verdict, written below; None: there is none yet.
        gains: What each site's graft adds to the accuracy on the target, in shares of 1.
    """
    parts = outline(network, gains or {})
    drawing = _Drawing()
    _say(drawing, "what comes in")
    for part in parts:
        drawing.flow(_GAP)
        if isinstance(part, Block):
            _draw_block(drawing, part)
        elif part.graft is None:
            _draw_sleeping(drawing, part)
        else:
            _draw_grown(drawing, part)
    drawing.flow(_GAP)
    drawing.y += 18
    _say(drawing, "what the network answers")
    for sentence in _verdict(acceptance):
        for line in wrap(sentence, MOST_CHARACTERS):
            drawing.y += 24
            drawing.text(_BOX_X, drawing.y, line)
    words = description(parts)
    return element(
        "svg", element("title", f"{_kind(network.body)} with {_count(parts)}"), element("desc", " ".join(words)),
        joined(drawing.shapes), role="img", xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {drawing.y + 24:g}", aria_label=" ".join(words),
    )  # fmt: skip


def save_picture(
    path: Path | str,
    network: SeededNetwork,
    acceptance: Acceptance | None = None,
    *,
    gains: Mapping[str, float] | None = None,
) -> None:
    """Write the drawing.

    Args:
        path: ``.svg`` for the drawing alone, ``.html`` for a page with the same in words and in a table.
        network: With its grafts.
        acceptance: The verdict.
        gains: As in `picture`.

    Raises:
        InputError: Another suffix.
        StorageError: The disk refused.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".html"):
        raise InputError(f"{path}: a growth picture is a .svg or a .html file, not {path.suffix or 'without a suffix'}")
    drawn = picture(network, acceptance, gains=gains)
    if path.suffix == ".svg":
        style = element("style", Markup(STYLE + _STANDALONE))
        head, _, rest = drawn.html.partition(">")
        data = f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style.html}{rest}\n'
    else:
        data = page(network, acceptance, gains=gains)
    write_durable(path, data.encode(), mode=0o644)


def page(
    network: SeededNetwork, acceptance: Acceptance | None = None, *, gains: Mapping[str, float] | None = None
) -> str:
    """The drawing with its words and figures, as a page that stands alone."""
    parts = outline(network, gains or {})
    rows = [
        (
            site.name, site.graft.blueprint if site.graft else "", site.state.value,
            number(float(site.graft.parameters)) if site.graft else "",
            number(float(site.macs)) if site.macs is not None else "",
            _points(site.gain) if site.gain is not None else "",
            f"{site.graft.intensity:g}" if site.graft else "",
        )
        for site in parts if isinstance(site, Site)
    ]  # fmt: skip
    columns = ("site", "blueprint", "state", "parameters", "MACs a frame", "gain, points", "gate")
    figure = element("figure", picture(network, acceptance, gains=gains), class_="chart")
    sections = [
        section("The network and what has grown", element("style", Markup(_INSIDE)), figure),
        section("Site by site", table(columns, rows, caption="Every seed site", numbers=(3, 4, 5, 6))),
        section(
            "In words", paragraphs(description(parts)), paragraphs(_verdict(acceptance)) if acceptance else NOTHING
        ),
    ]
    return document(f"{_kind(network.body)} with {_count(parts)}", "; ".join(_verdict(acceptance)[:1]), sections)


def outline(network: SeededNetwork, gains: Mapping[str, float]) -> list[Block | Site]:
    """The host's parts and its sites, in order of flow; long runs without a site become one block."""
    grafts = {graft.site: graft for graft in network.grafts if not graft.mergeable}
    ports, states = network.ports, network.states

    def site(name: str) -> Site:
        graft = grafts.get(name)
        macs = graft.macs or None if graft is not None else None
        if graft is not None and macs is None:
            kind = find_blueprint(graft.blueprint, graft.blueprint_version)
            if isinstance(kind, GraftBlueprint) and not kind.refusal(ports[name]):
                macs = kind.cost(ports[name]).macs
        return Site(name, states[name], graft, macs, gains.get(name))

    parts: list[Block | Site] = []
    placed: set[str] = set()
    host = network.host_copy()
    children = [name for name, _ in host.named_children()]
    outside = [n for n in network.sites if n.split(".")[0] not in children]
    if "input" in outside:
        parts.append(site("input"))
        placed.add("input")
    for name, child in host.named_children():
        inside = [n for n in network.sites if n == name or n.startswith(f"{name}.")]
        if not (isinstance(child, nn.Identity) and inside == [name]):
            parts.append(Block(name, _kind(child), sum(p.numel() for p in child.parameters())))
        parts += [site(n) for n in inside]
        placed |= set(inside)
    parts += [site(n) for n in network.sites if n not in placed]
    return _shortened(parts)


def description(parts: Sequence[Block | Site]) -> tuple[str, ...]:
    """The drawing in words, one sentence a part that has grown, and one for the rest."""
    blocks = [part.name for part in parts if isinstance(part, Block)]
    told = [f"The host runs {', '.join(blocks)}." if blocks else "The host has no parts of its own."]
    for part in parts:
        if isinstance(part, Site) and part.graft is not None:
            gain = f", {_gained(part.gain)}" if part.gain is not None else ""
            told.append(f"At {part.name} stands {part.graft.blueprint} ({_price(part)}{gain}), {part.state.value}.")
    sleeping = [part.name for part in parts if isinstance(part, Site) and part.graft is None]
    if sleeping:
        told.append(f"Nothing grows at {', '.join(sleeping)}.")
    return tuple(told)


def _draw_block(drawing: _Drawing, block: Block) -> None:
    drawing.box(_BOX_X, drawing.y, _BOX_WIDTH, _BOX, "block")
    drawing.text(_LINE_X, drawing.y + 19, _clipped(block.name, 32), anchor="middle")
    size = f", {number(float(block.parameters))} parameters" if block.parameters else ""
    drawing.text(_LINE_X, drawing.y + 36, _clipped(f"{block.kind}{size}", 38), anchor="middle", class_="tick")
    drawing.y += _BOX


def _draw_sleeping(drawing: _Drawing, site: Site) -> None:
    top = drawing.y
    drawing.flow(_SLEEPING)
    drawing.shapes.append(_dot(_LINE_X, top + _SLEEPING / 2, "hollow"))
    drawing.text(_LINE_X + 18, top + _SLEEPING / 2 + 4, f"{site.name}, {site.state.value}", class_="tick")


def _draw_grown(drawing: _Drawing, site: Site) -> None:
    assert site.graft is not None
    top = drawing.y
    away, back = top + 20, top + 74
    drawing.flow(_GROWN)
    dash = " dash" if site.state is SiteState.PROBING else ""
    drawing.line(_LINE_X, away, _BRANCH_X, away, f"line l-a{dash}")
    drawing.line(_BRANCH_X, back, _LINE_X + 9, back, f"line l-a{dash}")
    drawing.shapes.append(_arrow(_BRANCH_X, away, 1))
    drawing.shapes.append(_arrow(_LINE_X + 9, back, -1))
    drawing.shapes.append(_dot(_LINE_X, away, "a"))
    drawing.shapes.append(element("circle", cx=coordinate(_LINE_X), cy=coordinate(back), r=9, class_="hollow"))
    drawing.line(_LINE_X - 5, back, _LINE_X + 5, back, "axis")
    drawing.line(_LINE_X, back - 5, _LINE_X, back + 5, "axis")
    drawing.box(_BRANCH_X, top + 6, _BRANCH_WIDTH, 82, f"branch{dash}")
    middle = _BRANCH_X + _BRANCH_WIDTH / 2
    drawing.text(middle, top + 34, _clipped(site.graft.blueprint, 30), anchor="middle")
    drawing.text(middle, top + 53, _clipped(f"at {site.name}", 36), anchor="middle", class_="tick")
    state = f"{site.state.value}, gate {site.graft.intensity:g}"
    drawing.text(middle, top + 71, state, anchor="middle", class_="tick")
    drawing.text(_LINE_X + 22, away - 7, _price(site), class_="tick")
    drawing.text(_LINE_X + 22, back - 7, _gained(site.gain), class_="tick")


def _say(drawing: _Drawing, words: str) -> None:
    drawing.text(_LINE_X, drawing.y - 4, words, anchor="middle", class_="tick")


def _dot(x: float, y: float, class_: str) -> Markup:
    return element("circle", cx=coordinate(x), cy=coordinate(y), r=6, class_=class_)


def _arrow(x: float, y: float, way: int) -> Markup:
    tip = f"M{coordinate(x)} {coordinate(y)} L{coordinate(x - 9 * way)} {coordinate(y - 5)} "
    return element("path", d=f"{tip}L{coordinate(x - 9 * way)} {coordinate(y + 5)} Z", class_="a")


def _price(site: Site) -> str:
    assert site.graft is not None
    macs = f", {number(float(site.macs))} MACs a frame" if site.macs is not None else ""
    return f"{number(float(site.graft.parameters))} parameters{macs}"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _gained(share: float | None) -> str:
    """What a graft brought on the target, with the word for its sign.

    >>> _gained(0.123), _gained(-0.027), _gained(-0.0002)
    ('12.3 points gained', '2.7 points lost', 'nothing gained')
    """
    if share is None:
        return "gain not measured"
    points = f"{abs(100 * share):.1f}"
    if points == "0.0":
        return "nothing gained"
    return f"{points} points {'gained' if share > 0 else 'lost'}"


def _lost(share: float) -> str:
    """The same of an upper bound on what is lost.

    >>> _lost(0.024), _lost(-0.01)
    ('at most 2.4 points are lost', 'none are lost')
    """
    return f"at most {100 * share:.1f} points are lost" if share > 0 else "none are lost"


def _verdict(acceptance: Acceptance | None) -> tuple[str, ...]:
    if acceptance is None:
        return ("Not judged yet.",)
    a = acceptance
    return (
        "Accepted by the gate." if a.accepted else "Refused by the gate: " + "; ".join(a.reasons) + ".",
        f"Captured inputs: {100 * a.target_before:.1f} % right before, {100 * a.target_after:.1f} % after; the gain is "
        f"{_points(a.gain_low)} to {_points(a.gain_high)} points.",
        f"Clean inputs: {100 * a.clean_before:.1f} % before, {100 * a.clean_after:.1f} % after; "
        f"{_lost(a.clean_loss_high)}.",
    )


def _shortened(parts: list[Block | Site]) -> list[Block | Site]:
    """No more blocks than a page holds: runs of blocks are joined, longest first."""
    while sum(isinstance(part, Block) for part in parts) > MOST_BLOCKS:
        runs: list[tuple[int, int]] = []
        start = 0
        for i in range(len(parts) + 1):
            if i == len(parts) or isinstance(parts[i], Site):
                runs.append((i - start, start))
                start = i + 1
        length, begin = max(runs)
        if length < 2:
            break
        run = [part for part in parts[begin : begin + length] if isinstance(part, Block)]
        whole = Block(f"{run[0].name} to {run[-1].name}", f"{len(run)} parts", sum(b.parameters for b in run))
        parts = [*parts[:begin], whole, *parts[begin + length :]]
    return parts


def _count(parts: Sequence[Block | Site]) -> str:
    grown = sum(isinstance(part, Site) and part.graft is not None for part in parts)
    return f"{grown} graft{'' if grown == 1 else 's'}"


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _clipped(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


_INSIDE = """
.block{fill:var(--bg);stroke:var(--soft);stroke-width:1.25}.branch{fill:var(--wash);stroke:var(--a);stroke-width:2}
.hollow{fill:var(--card);stroke:var(--soft);stroke-width:1.5}svg .axis.line{stroke-width:1.5}
"""
_STANDALONE = _INSIDE + "svg{background:var(--card);font-family:system-ui,sans-serif}"
