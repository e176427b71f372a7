"""Pages stand alone, escape what they show, and carry every figure of a chart in a table beside it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.hardware_simulator.timeline import Roof, RooflinePoint, Slice
from kasmina_edge.hardware_simulator.workload import OpWork, TensorWork, Workload
from kasmina_trainer.pages.charts import MOST_BARS, Spot, memory_chart, roofline_chart, time_bars, trade_off
from kasmina_trainer.pages.document import Markup, document, element, facts, section, table, text
from kasmina_trainer.pages.figure import Plane, Scale, decades, linear_ticks, number, padded
from kasmina_trainer.pages.hardware import hardware_page

HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "link", "br", "img", "input"}


class Reader(HTMLParser):
    """Checks that every tag is closed in order; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str | Markup) -> Reader:
    reader = Reader()
    reader.feed(page if isinstance(page, str) else page.html)
    reader.close()
    assert reader.open == []
    return reader


def slices(count: int, *, where: str = "cpu") -> list[Slice]:
    return [
        Slice(f"op {i} CONV_2D", "conv_2d", 5.0 + 10.0 * i, 10.0, where, "compute", 1000 * (i + 1), 100 * i)
        for i in range(count)
    ]


def workload(name: str = "net") -> Workload:
    shape = (1, 8, 8, 4)
    ops = tuple(
        OpWork("conv_2d", (shape,), (shape,), "int8", (4, 3, 3, 4), "int8", 160, 8 * 8 * 4 * 36, place=f"op {i} <CONV>")
        for i in range(3)
    )
    tensors = tuple(TensorWork(f"t{i}", shape, "int8", i - 1, i) for i in range(4))
    return Workload(name, ops, tensors, "tflite")


def test_the_page_stands_alone_and_escapes_names() -> None:
    page = hardware_page(workload(HOSTILE), load_profile("stm32l4r5"))
    reader = read(page)
    assert "script" not in reader.tags
    assert HOSTILE in "".join(reader.words)
    assert "op 1 <CONV>" in "".join(reader.words)
    outside = [value for name, value in reader.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert outside == []
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert dict(reader.attributes)["lang"] == "en"
    assert page == hardware_page(workload(HOSTILE), load_profile("stm32l4r5"))


def test_every_drawing_has_a_title_and_a_table() -> None:
    reader = read(hardware_page(workload(), load_profile("coral-usb")))
    assert reader.tags.count("svg") == 2
    assert reader.tags.count("table") == reader.tags.count("caption") == 3
    assert reader.attributes.count(("role", "img")) == 2
    words = "".join(reader.words)
    for heading in ("What it costs", "Where the time goes", "Where the memory goes", "How near to the limits"):
        assert heading in words


def test_both_colour_schemes_are_there() -> None:
    page = document("a", "b", [])
    assert "prefers-color-scheme:dark" in page
    light, dark = (re.findall(r"(--\w+):", part.split("}")[0]) for part in page.split(":root{")[1:3])
    assert light == dark
    assert len(light) == 11


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back_as_it_was(words: str) -> None:
    reader = Reader()
    reader.feed(element("p", words.replace("\r", "").replace("\x00", "")).html)
    assert "".join(reader.words) == words.replace("\r", "").replace("\x00", "")
    assert reader.tags == ["p"]


def test_attributes_cannot_be_left() -> None:
    made = element("p", title='"><script>', class_="x", data_of=None)
    assert made.html == '<p title="&quot;&gt;&lt;script&gt;" class="x"></p>'
    assert text(None) == ""
    assert read(table(("a", HOSTILE), [(HOSTILE, 1)], caption=HOSTILE)).tags.count("script") == 0
    assert read(section(HOSTILE, facts([(HOSTILE, HOSTILE)]))).tags.count("script") == 0


def test_time_is_told_for_every_operation_and_drawn_for_the_longest() -> None:
    found = read(time_bars(slices(MOST_BARS + 10), 5.0))
    assert found.tags.count("tr") == MOST_BARS + 10 + 1
    bars = [value for name, value in found.attributes if name == "class" and value == "bar"]
    assert len(bars) == MOST_BARS + 2, "the call itself and the rest have one each"
    assert "10 shorter ones, each less" in found.words
    assert "No operation takes time." in time_bars([], 0.0).html


def test_memory_is_drawn_in_scale() -> None:
    chart = memory_chart(slices(4), 5000, 6000)
    assert "arena 5 kB" in chart.html and "there is 6 kB" in chart.html
    assert "At most 4 kB are alive at once, during op 3 CONV_2D" in chart.html
    assert "there is" not in memory_chart(slices(4), 5000, 10**9).html, "a limit far away would flatten the rest"
    assert "does not say" in memory_chart([], 0, None).html


def test_the_roof_is_drawn_where_the_profile_states_one() -> None:
    points = [RooflinePoint("op 0", 2.0, 1.0, 4.0, 10.0), RooflinePoint("op 1", 200.0, 3.0, 50.0, 90.0)]
    both = roofline_chart(points, Roof(50.0, 2e9)).html
    assert both.count("l-hot") == 1 and "25.0" in both
    none = roofline_chart(points, Roof(None, None)).html
    assert "l-hot" not in none and "states no limits" in none
    assert "no roofline" in roofline_chart([], Roof(None, None)).html


def test_points_that_lie_together_share_a_label() -> None:
    spots = [Spot(1, "a", 10.0, 0.0), Spot(2, HOSTILE, 10.01, 0.001), Spot(3, "c", 20.0, 0.4, chosen=True, front=True)]
    drawn = read(trade_off(spots, "t", "kB", "points lost", "c", x_goal=15, y_goal=0.5))
    words = [w.strip() for w in drawn.words]
    assert "1, 2" in words and "3" in words
    assert "at most 15" in words and "at most 0.5" in words
    assert "script" not in drawn.tags


def test_bands_reach_into_the_axes() -> None:
    spots = [Spot(1, "a", 1.0, 0.1, 0.5, 1.5, -3.0, 3.0)]
    chart = trade_off(spots, "t", "ms", "points", "c").html
    assert chart.count("thin l-soft") == 2


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6), value=st.floats(-2e6, 2e6), count=st.integers(2, 9)
)  # fmt: skip
def test_a_scale_keeps_order_and_ends(low: float, width: float, value: float, count: int) -> None:
    high = low + width
    if not high > low:
        return
    scale = Scale(low, high, 50.0, 700.0)
    assert 50.0 <= scale.at(value) <= 700.0
    assert scale.at(low) == 50.0
    assert math.isclose(scale.at(high), 700.0)
    assert scale.at(low + width / 3) <= scale.at(low + width / 2)
    if width > 1e-3 * max(abs(low), abs(high)):
        found = linear_ticks(low, high, count)
        assert 1 <= len(found) <= 2 * count + 1
        assert all(low - width * 1e-6 <= t <= high + width * 1e-6 for t in found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_decades_hold_their_values(values: list[float]) -> None:
    low, high = decades(values)
    assert low <= min(values) * 1.000001 and high >= max(values) * 0.999999 and high > low
    assert all(low <= t * 1.000001 for t in Scale(low, high, 0, 1, log=True).ticks())


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (0.25, "0.25"), (12, "12"), (999, "999"), (-0.5, "-0.5"), (3.2e9, "3.2 G")]
)
def test_numbers_are_short(value: float, told: str) -> None:
    assert number(value) == told


def test_an_axis_of_one_value_has_room() -> None:
    assert padded([5.0]) == (4.5, 5.5)
    assert padded([0.0]) == (-1.0, 1.0)
    assert padded([0.0], zero=True) == (0.0, 1.0)
    plane = Plane.of("t", (0.0, 1.0), (0.0, 2.0))
    plane.axes("x", "y")
    assert read(plane.figure("c")).tags[0] == "figure"
