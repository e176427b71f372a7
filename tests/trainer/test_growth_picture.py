"""The drawing of a growth: it stands alone, says everything in words as well, and nothing lies on anything else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from torch import nn
from worlds import small_growth

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_edge.errors import InputError
from kasmina_trainer.growth_picture import MOST_BLOCKS, Block, Site, description, outline, page, picture, save_picture
from kasmina_trainer.seeds import SeededNetwork, attach_seeds

SVG = "{http://www.w3.org/2000/svg}"
VERDICT = Acceptance(
    samples=100, clean_before=0.98, clean_after=0.97, target_before=0.3, target_after=0.8, gain_low=0.42,
    gain_high=0.58, clean_loss_high=0.02, accepted=True,
)  # fmt: skip


@pytest.fixture
def grown() -> SeededNetwork:
    """A graft at the first of two sites."""
    network = small_growth.seeded()
    network.graft("s1", "depthwise", seed=0)
    return network


def texts(svg: str) -> list[tuple[float, float, str, str]]:
    root = ElementTree.fromstring(svg)
    return [
        (float(t.attrib["x"]), float(t.attrib["y"]), t.attrib.get("text-anchor", "start"), "".join(t.itertext()))
        for t in root.iter(f"{SVG}text")
    ]


def test_every_part_and_every_figure_is_drawn(grown: SeededNetwork):
    svg = picture(grown, VERDICT, gains={"s1": 0.123}).html
    words = [text for *_, text in texts(svg)]
    for part in ("stem", "norm", "deep", "head", "depthwise", "at s1", "s2, dormant", "12.3 points gained"):
        assert any(part in word for word in words), part
    cost = sum(p.numel() for p in grown.graft_parameters("s1"))
    assert any(f"{cost} parameters" in word and "MACs a frame" in word for word in words)
    assert "probing, gate 1" in words and "Accepted by the gate." in words
    assert not any("s1" in word and "dormant" in word for word in words)


def test_it_is_told_in_words_as_well(grown: SeededNetwork):
    root = ElementTree.fromstring(picture(grown, VERDICT, gains={"s1": -0.01}).html)
    told = root.find(f"{SVG}desc")
    assert told is not None and told.text == root.attrib["aria-label"]
    assert "At s1 stands depthwise" in str(told.text) and "1.0 points lost), probing." in str(told.text)
    assert "Nothing grows at s2." in str(told.text)
    assert root.attrib["role"] == "img" and root.find(f"{SVG}title") is not None


@pytest.mark.parametrize(
    ("gain", "told"), [(-0.027, "2.7 points lost"), (0.027, "2.7 points gained"), (-0.0003, "nothing gained")]
)
def test_a_loss_is_called_a_loss(grown: SeededNetwork, gain: float, told: str):
    for drawn in (picture(grown, VERDICT, gains={"s1": gain}).html, page(grown, VERDICT, gains={"s1": gain})):
        assert told in drawn and "-2.7 points" not in drawn and "-0.0" not in drawn


def test_a_bound_below_zero_loses_nothing(grown: SeededNetwork):
    better = VERDICT.model_copy(update={"clean_loss_high": -0.004})
    assert (
        "none are lost" in picture(grown, better).html and "at most 2.0 points are lost" in picture(grown, VERDICT).html
    )


def test_without_colour_states_still_differ(grown: SeededNetwork):
    probing = picture(grown).html
    grown.accept()
    active = picture(grown).html
    strip = re.compile(r' class="[^"]*"')
    assert "dash" in probing and "dash" not in active
    assert strip.sub("", probing) != strip.sub("", active), "the words say it, too"


def test_words_do_not_lie_on_each_other(grown: SeededNetwork):
    grown.graft("s2", "depthwise", seed=0)
    reasons = tuple(f"a reason of some length, number {i}, with both of its numbers" for i in range(4))
    refused = VERDICT.model_copy(update={"accepted": False, "reasons": reasons})
    places = texts(picture(grown, refused, gains={"s1": 0.1, "s2": 0.2}).html)
    boxes = []
    for x, y, anchor, text in places:
        width = 6.9 * len(text)
        left = x - (width / 2 if anchor == "middle" else 0)
        assert left >= 0 and left + width <= 780, text
        boxes.append((left, left + width, y - 11, y + 3, text))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], (a[4], b[4])


def test_files_stand_alone_and_are_the_same_every_time(grown: SeededNetwork, tmp_path: Path):
    for name in ("net.svg", "net.html"):
        save_picture(tmp_path / name, grown, VERDICT)
        first = (tmp_path / name).read_text()
        save_picture(tmp_path / name, grown, VERDICT)
        assert (tmp_path / name).read_text() == first
        rest = first.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|<script|url\(|src=", rest)
    ElementTree.fromstring((tmp_path / "net.svg").read_text())
    assert "prefers-color-scheme:dark" in (tmp_path / "net.svg").read_text()
    assert "<table>" in (tmp_path / "net.html").read_text()
    with pytest.raises(InputError, match=r"net\.png: a growth picture is a \.svg or a \.html file, not \.png"):
        save_picture(tmp_path / "net.png", grown)


def test_names_cannot_become_tags():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>&x", nn.Conv2d(1, 2, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.children():
                x = part(x)
            return x.mean((2, 3))

    network = attach_seeds(Odd(), ["<b>&x"], example=torch.zeros(1, 1, 8, 8))
    svg = picture(network).html
    assert "<b>" not in svg and "&lt;b&gt;&amp;x" in svg
    ElementTree.fromstring(svg)


def test_a_deep_host_still_fits_on_a_page():
    layers: list[nn.Module] = [nn.Conv2d(1, 2, 3, 1, 1)]
    for _ in range(40):
        layers += [nn.Conv2d(2, 2, 3, 1, 1), nn.ReLU()]
    network = attach_seeds(nn.Sequential(*layers), ["2", "40"], example=torch.zeros(1, 1, 6, 6))
    parts = outline(network, {})
    blocks = [part for part in parts if isinstance(part, Block)]
    assert len(blocks) <= MOST_BLOCKS and [p.name for p in parts if isinstance(p, Site)] == ["2", "40"]
    assert sum(block.parameters for block in blocks) == sum(p.numel() for p in network.host_copy().parameters())
    assert any("to" in block.name and "parts" in block.kind for block in blocks)
    assert description(parts)[0].startswith("The host runs 0")


def test_a_page_has_the_figures_in_a_table(grown: SeededNetwork):
    html = page(grown, VERDICT, gains={"s1": 0.05})
    assert html.startswith("<!doctype html>") and "+5.0" in html and "In words" in html
    assert html.count("<svg") == 1
