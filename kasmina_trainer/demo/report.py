"""The demo's closing table and its HTML page: drift curve, the update's journey, the grown network, all from findings.

The page is one file without scripts or outside resources; charts are inline SVG.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from kasmina_edge.cli.output import size_text
from kasmina_trainer.demo.findings import Findings

COLUMNS = ("", "clean", "out of focus", "")
_WIDTH, _HEIGHT, _LEFT, _TOP = 860, 220, 46, 14


def table(found: Findings) -> Table:
    """What a manager understands and an engineer can check."""
    shown = Table(box=None, padding=(0, 2), header_style="bold")
    for column in COLUMNS:
        shown.add_column(column, justify="right" if column in ("clean", "out of focus") else "left", overflow="fold")
    for row in found.rows:
        shown.add_row(*cells(row))
    return shown


def cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """One row's texts."""
    return row["name"], percent(row.get("clean")), percent(row.get("target")), row.get("note", "")


def percent(share: float | None) -> str:
    """``97.4 %``, or nothing."""
    return "" if share is None else f"{100 * share:.1f} %"


def markdown(found: Findings) -> str:
    """The same table for README.md."""
    lines = ["| | clean | out of focus | |", "|---|---:|---:|---|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in found.rows]
    return "\n".join(lines) + "\n"


def page(found: Findings) -> str:
    """The whole HTML page."""
    facts = found.facts
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Kasmina demo: a camera recovers</title><style>{_STYLE}</style></head><body><main>
<header><h1>A camera went out of focus. A {_size(found)} graft brought it back.</h1>
<p class="lead">Three device agents, a controller and a broker as real processes; real handwritten digits; seed
{found.seed}; {facts["seconds"]:.0f} s in all.</p></header>
<section><h2>Result</h2><div class="scroll">{_html_table(found)}</div>
<p class="small">Accuracy of the deployed int8 file on {facts["test_samples"]} digits that nothing was trained, probed
or captured from. Made by <code>make demo</code>.</p></section>
<section><h2>Drift of {html.escape(str(facts["device"]))}</h2>{_drift_chart(found)}
<p class="small">Distance of each telemetry window to the nearest domain the running bundle was accepted on, in units of
that domain's alarm threshold. It clears when a bundle arrives that has learned the new domain.</p></section>
<section><h2>What travelled</h2>{_bytes_chart(found)}</section>
<section><h2>The grown network</h2>{_network(found)}</section>
<section><h2>Every step</h2><ol class="steps">{_steps(found)}</ol></section>
</main></body></html>
"""


def _size(found: Findings) -> str:
    return size_text(found.update_bytes.get("model delta", 0))


def _html_table(found: Findings) -> str:
    head = "".join(f"<th scope='col'>{html.escape(c)}</th>" for c in COLUMNS)
    body = ""
    for row in found.rows:
        name, clean, target, note = (html.escape(c) for c in cells(row))
        body += (
            f"<tr><th scope='row'>{name}</th><td class='n'>{clean}</td><td class='n'>{target}</td><td>{note}</td></tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _drift_chart(found: Findings) -> str:
    points = [p for p in found.drift if p["drift"] is not None]
    if len(points) < 2:
        return "<p>No drift was measured.</p>"
    start, end = float(points[0]["at_s"]), float(points[-1]["at_s"])
    top = max(1.5, max(float(p["drift"]) for p in points) * 1.1)

    def x(at_s: float) -> float:
        return _LEFT + (at_s - start) / max(end - start, 1e-9) * (_WIDTH - _LEFT - 10)

    def y(value: float) -> float:
        return _TOP + (1 - value / top) * (_HEIGHT - _TOP - 26)

    line = " ".join(f"{x(p['at_s']):.1f},{y(p['drift']):.1f}" for p in points)
    marks = ""
    releases = [p for i, p in enumerate(points) if i and p["release"] != points[i - 1]["release"]]
    for p in releases:
        at = x(p["at_s"])
        side = "text-anchor='end'" if at > _WIDTH - 90 else ""
        marks += (
            f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{_TOP}' y2='{_HEIGHT - 26}' class='mark'/>"
            f"<text x='{at - 5 if side else at + 5:.1f}' y='{_HEIGHT - 34}' {side} class='tick'>"
            f"release {p['release']}</text>"
        )
    checks = "".join(
        f"<circle cx='{x(p['at_s']):.1f}' cy='{y(p['check'] * top):.1f}' r='2.5' class='check'/>"
        for p in found.drift
        if p["check"] is not None
    )
    alarm = y(1.0)
    seconds = "".join(
        f"<text x='{x(start + t):.1f}' y='{_HEIGHT - 8}' class='tick' text-anchor='middle'>{t} s</text>"
        for t in range(0, int(end - start) + 1, max(1, int((end - start) / 8)))
    )
    return (
        f"<div class='wide'><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='Drift over time'>"
        f"<line x1='{_LEFT}' x2='{_WIDTH - 10}' y1='{alarm:.1f}' y2='{alarm:.1f}' class='alarm'/>"
        f"<text x='{_LEFT - 6}' y='{alarm + 4:.1f}' class='tick' text-anchor='end'>alarm</text>"
        f"<text x='{_LEFT - 6}' y='{y(0) + 4:.1f}' class='tick' text-anchor='end'>0</text>"
        f"{marks}{checks}<polyline points='{line}' class='drift'/>{seconds}</svg></div>"
        "<p class='legend'><span class='k drift'></span>drift <span class='k dot'></span>share of check frames right "
        "(top = 100 %) <span class='k alarm'></span>alarm line</p>"
    )


def _bytes_chart(found: Findings) -> str:
    parts = {k: v for k, v in found.update_bytes.items() if k != "total" and v}
    whole = found.facts["model_bytes"]
    total = sum(parts.values())
    top = max(whole, total)
    rows = ""
    for name, size in [*sorted(parts.items(), key=lambda p: -p[1]), ("received in all", total), ("whole model", whole)]:
        css = "whole" if name == "whole model" else "sum" if name == "received in all" else "part"
        rows += (
            f"<div class='bar'><span class='name'>{html.escape(name)}</span><span class='track'>"
            f"<span class='fill {css}' style='width:{max(0.4, 100 * size / top):.1f}%'></span></span>"
            f"<span class='n'>{size_text(size)}</span></div>"
        )
    return f"<div class='bars'>{rows}</div>"


def _network(found: Findings) -> str:
    """The host as a chain with its seed sites; grafts stand above the site they grew at."""
    nodes: Sequence[str] = found.facts["network"]
    grown = {g["site"]: g for g in found.grafts}
    step = (_WIDTH - 40) / len(nodes)
    out = ""
    for i, name in enumerate(nodes):
        left = 20 + i * step
        site = name in found.facts["sites"]
        width = step - 14
        out += (
            f"<rect x='{left:.0f}' y='110' width='{width:.0f}' height='44' rx='8' "
            f"class='{'site' if site else 'layer'}'/>"
            f"<text x='{left + width / 2:.0f}' y='137' text-anchor='middle'>{html.escape(name)}</text>"
        )
        if i:
            out += f"<line x1='{left - 14:.0f}' x2='{left:.0f}' y1='132' y2='132' class='flow'/>"
        graft = grown.get(name)
        if graft:
            out += (
                f"<path d='M{left + 12:.0f} 110 C {left + 12:.0f} 70, {left + 12:.0f} 64, {left + 26:.0f} 64' "
                "class='graft'/>"
                f"<rect x='{left + 18:.0f}' y='34' width='{max(width, 120):.0f}' height='44' rx='8' class='grown'/>"
                f"<text x='{left + 28:.0f}' y='53' class='node'>{html.escape(graft['blueprint'])}</text>"
                f"<text x='{left + 28:.0f}' y='70' class='tick'>{graft['parameters']} parameters</text>"
            )
    label = f"The host with grafts at {', '.join(grown) or 'no site'}"
    drawn = f"<svg viewBox='0 0 {_WIDTH} 180' role='img' aria-label='{html.escape(label)}'>{out}</svg>"
    return f"<div class='wide'>{drawn}</div>"


def _steps(found: Findings) -> str:
    return "".join(
        f"<li><span class='t'>{s.seconds:.1f} s</span> <strong>{html.escape(s.name)}</strong>"
        f"<br><span class='small'>{html.escape(s.note)}</span></li>"
        for s in found.steps
    )


_STYLE = """
:root{--ink:#1b2430;--soft:#5a6675;--line:#d9dfe6;--bg:#f7f8fa;--card:#fff;--a:#0b6e4f;--b:#2f5fb3;--red:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf1;--soft:#a3afbd;--line:#333d49;--bg:#12171d;--card:#1a2129;
--a:#4cc69b;--b:#86abf0;--red:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:940px;margin:0 auto;padding:32px 20px 60px}h1{font-size:1.9rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.1rem;margin:0 0 12px}.lead{color:var(--soft);margin:0 0 8px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px;margin-top:20px}
.small,.legend,.tick{color:var(--soft);font-size:.85rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:8px 10px;border-bottom:1px solid var(--line)}
tbody th{font-weight:600;white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{width:100%;height:auto}.drift{fill:none;stroke:var(--b);stroke-width:2}
.alarm{stroke:var(--red);stroke-dasharray:5 4}
.mark{stroke:var(--soft);stroke-dasharray:2 3}.check{fill:var(--a)}text{fill:var(--ink);font-size:13px}
text.tick{fill:var(--soft);font-size:12px}.layer{fill:var(--bg);stroke:var(--line)}.site{fill:var(--bg);stroke:var(--b)}
.grown{fill:var(--card);stroke:var(--a);stroke-width:2}.flow,.graft{stroke:var(--soft);fill:none}.graft{stroke:var(--a)}
.k{display:inline-block;width:18px;height:0;border-top:2px solid var(--b);margin:0 4px 4px 12px}
.k.alarm{border-top:2px dashed var(--red)}.k.dot{width:8px;height:8px;border:0;border-radius:50%;background:var(--a)}
.bar{display:grid;grid-template-columns:150px 1fr 80px;gap:12px;align-items:center;margin:6px 0}
.track{background:var(--bg);border-radius:6px;height:16px}.fill{display:block;height:16px;border-radius:6px;background:var(--b)}
.fill.sum{background:var(--a)}.fill.whole{background:var(--soft)}.steps{padding-left:0;list-style:none;margin:0}
.steps li{border-top:1px solid var(--line);padding:10px 0 10px 76px;position:relative}.steps li:first-child{border:0}
.t{position:absolute;left:0;color:var(--soft);font-variant-numeric:tabular-nums}
@media(max-width:600px){.bar{grid-template-columns:96px 1fr 64px}h1{font-size:1.4rem}tbody th{white-space:normal}
th,td{padding:6px}tr{display:grid;grid-template-columns:1fr 66px 66px;border-bottom:1px solid var(--line)}
th,td{border:0}td:last-child,thead th:last-child{grid-column:1/-1;padding-top:0}td:empty{display:none}
.wide{overflow-x:auto}.wide svg{min-width:640px}}
"""
