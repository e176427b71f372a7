"""The one style sheet of all pages: colours for light and dark, type, tables, charts."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--soft:#566270;--line:#d9dfe6;--bg:#f6f7f9;--card:#fff;--a:#2f5fb3;
--b:#0b7a5b;--c:#a35a00;--d:#7a4fb5;--hot:#b3261e;--wash:#e8eef8}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf1;--soft:#a5b0bd;--line:#343e4a;--bg:#11161c;--card:#1a2129;
--a:#86abf0;--b:#4cc69b;--c:#e7a654;--d:#bb9bec;--hot:#ff8a80;--wash:#22304a}}*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:980px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3em;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:0 0 10px}
p{margin:0 0 10px;max-width:72ch}.lead,.small,caption{color:var(--soft)}.small{font-size:.875rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px;margin-top:20px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:0}
.facts div{border-left:3px solid var(--line);padding-left:12px}dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.1rem;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.scroll,.wide{overflow-x:auto}
.scroll:focus-visible,.wide:focus-visible,summary:focus-visible{outline:2px solid var(--a);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.925rem}
caption{text-align:left;font-size:.85rem;padding-bottom:6px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}thead th{color:var(--soft);font-size:.85rem;vertical-align:bottom}tbody th{white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.marked{background:var(--wash)}
details{margin-top:14px}summary{cursor:pointer;color:var(--soft);font-size:.9rem;margin-bottom:8px}
svg{display:block;width:100%;height:auto}svg text{fill:var(--ink);font-size:13px}
svg .tick{fill:var(--soft);font-size:12px}svg .grid{stroke:var(--line);stroke-width:1}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.facts+p,.bars+p{margin-top:16px}.panels>*{min-width:0}.panels+.scroll{margin-top:18px}
.panels{display:grid;grid-template-columns:1fr 1fr;gap:20px}
.chart{margin:0}
figcaption{color:var(--soft);font-size:.875rem;margin-top:8px;max-width:72ch}.a{fill:var(--a)}.b{fill:var(--b)}
.c{fill:var(--c)}.d{fill:var(--d)}.hot{fill:var(--hot)}.quiet{fill:var(--soft)}.l-a{stroke:var(--a)}
.l-b{stroke:var(--b)}.l-hot{stroke:var(--hot)}.l-soft{stroke:var(--soft)}.line{fill:none;stroke-width:2}
.thin{fill:none;stroke-width:1.25}.dash{stroke-dasharray:5 4}.area{fill:var(--a);opacity:.22}
.dot{stroke:var(--card);stroke-width:2}.bars{display:grid;gap:5px}
.bar{display:grid;align-items:center;grid-template-columns:minmax(120px,230px) 1fr 76px;gap:12px}
.bar .name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-size:.9rem}
.track{background:var(--bg);border-radius:4px;height:14px;display:block}
.fill{display:block;height:14px;border-radius:4px;min-width:2px}.fill.a{background:var(--a)}
.fill.b{background:var(--b)}.fill.c{background:var(--c)}.fill.d{background:var(--d)}
.fill.quiet{background:var(--soft)}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;padding:0;list-style:none;color:var(--soft);
font-size:.875rem}
.key i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
i.a{background:var(--a)}i.b{background:var(--b)}i.c{background:var(--c)}i.d{background:var(--d)}
i.quiet{background:var(--soft)}
@media(max-width:640px){main{padding:20px 12px 48px}section{padding:16px 14px}h1{font-size:1.4rem}
.panels{grid-template-columns:1fr}.bar{grid-template-columns:minmax(0,1fr) 64px}.bar .track{grid-column:1/-1;
grid-row:2}.wide svg{min-width:520px}.panels .wide svg{min-width:0}
.scroll table{min-width:620px}td:last-child:not(.n){min-width:15rem}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
