"""The frame of a page: head, sections, tables. Text from outside comes in as `str` and is escaped here.

Markup is a type of its own, so that a name can never become a tag by accident.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kasmina_trainer.pages.style import STYLE


@dataclass(frozen=True)
class Markup:
    """HTML that this package wrote; everything else is text."""

    html: str

    def __add__(self, other: Markup) -> Markup:
        return Markup(self.html + other.html)


NOTHING = Markup("")
Content = Markup | str | int | float | None


def text(value: Content) -> str:
    """HTML of a value: markup as it is, anything else escaped; nothing for None.

    >>> text("<b> & \\"c\\"")
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    if isinstance(value, Markup):
        return value.html
    return "" if value is None else html.escape(str(value), quote=True)


def element(tag: str, *children: Content, **attributes: Content) -> Markup:
    """An element; ``_`` at the end of an attribute's name is dropped and ``_`` inside becomes ``-``.

    >>> element("a", "x", class_="y").html
    '<a class="y">x</a>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(text, children))
    return Markup(f"<{tag}{given}>{inner}</{tag}>")


def joined(parts: Iterable[Markup]) -> Markup:
    """Markup after markup."""
    return Markup("".join(part.html for part in parts))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Content]], *, caption: str, numbers: Sequence[int] = (),
    marked: Sequence[int] = (),
) -> Markup:  # fmt: skip
    """A table whose first cell is each row's heading.

    Args:
        columns: Headings.
        rows: Cells.
        caption: What it shows, for those who cannot see the chart beside it.
        numbers: Columns that hold figures; they are set flush right.
        marked: Rows that are set off.
    """

    def side(i: int) -> str | None:
        return "n" if i in numbers else None

    head = element("tr", *(element("th", c, scope="col", class_=side(i)) for i, c in enumerate(columns)))
    body = [
        element(
            "tr",
            *(
                element("th", cell, scope="row", class_=side(0)) if i == 0 else element("td", cell, class_=side(i))
                for i, cell in enumerate(row)
            ),
            class_="marked" if number in marked else None,
        )
        for number, row in enumerate(rows)
    ]
    whole = element(
        "table", element("caption", caption), element("thead", head), element("tbody", joined(body))
    )  # fmt: skip
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def folded(summary: str, content: Markup) -> Markup:
    """Content that opens on a click."""
    return element("details", element("summary", summary), content)


def section(heading: str, *content: Content) -> Markup:
    """A card with a heading."""
    return element("section", element("h2", heading), *content)


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """Figures with what they are, side by side."""
    cells = [element("div", element("dt", name), element("dd", value)) for name, value in pairs]
    return element("dl", joined(cells), class_="facts")


def paragraphs(sentences: Iterable[str], *, class_: str | None = None) -> Markup:
    """One paragraph each."""
    return joined(element("p", sentence, class_=class_) for sentence in sentences)


def document(title: str, lead: str, sections: Iterable[Markup]) -> str:
    """The whole page; equal arguments give equal bytes."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
    )
    header = element("header", element("h1", title), element("p", lead, class_="lead"))
    main = element("main", header, joined(sections))
    return f"{head}<body>{main.html}</body></html>\n"
