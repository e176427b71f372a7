"""Pictures of data sets: a panel of each kind, every catalogue entry that is here, and the film of a drift."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from kasmina_edge.errors import InputError
from kasmina_trainer.cli import main
from kasmina_trainer.cli.data_panels import all_data_sets, panels
from kasmina_trainer.pages.data_picture import INK, Panel, picture, sketch
from kasmina_trainer.pages.drift_film import Frame, film

QUICK = ("digits", "spirals", "spheres", "parity", "checkerboard", "blobs", "brackets", "reber", "captioned-shapes")
Read = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing."""
    monkeypatch.setenv("KASMINA_DATASETS", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", QUICK)
def test_a_picture_stands_alone_and_is_the_same_twice(name: str) -> None:
    found = next(d for d in all_data_sets() if d.name == name)
    first, again, other = (picture(panels(found, seed), title=name) for seed in (1, 1, 2))
    assert first == again and first != other
    root = ElementTree.fromstring(first)  # well-formed, and nothing is fetched
    assert root.tag.endswith("svg") and "script" not in first
    links = re.findall(r'href="([^"]*)"', first)
    assert all(link.startswith("data:image/png") for link in links) and len(first) < 200_000


def test_every_data_set_shows_a_card_and_what_is_not_here_says_how_to_get_it(empty_cache: Path, capsys: Read) -> None:
    names = [d.name for d in all_data_sets()]
    assert {"hapt", "shakespeare", "imu-simulated", "mnist-c", "blobs", "ecg-simulated"} <= set(names)
    assert len(names) == len(set(names))
    for name in names:
        assert main(["data", "show", name]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "licence" in told and "source" in told
    target = empty_cache / "x.svg"
    assert main(["data", "show", "hapt", "--picture", str(target)]) == 2
    assert "kasmina-trainer data fetch hapt" in capsys.readouterr().err and not target.exists()


def test_show_writes_the_picture_and_sketches_it(empty_cache: Path, capsys: Read) -> None:
    target = empty_cache / "spirals.svg"
    assert main(["data", "show", "spirals", "--picture", str(target), "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert "ooo" in told and "xxx" in told and target.read_text().startswith("<svg")
    assert main(["data", "show", "spirals", "--picture", str(target), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["picture"] == str(target) and value["kind"] == "points" and value["units"]


def test_a_picture_of_points_says_which_colour_is_which() -> None:
    places, classes = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0, 1])
    named = picture([Panel("x", "points", places, classes, ("near & dear", "far"))], title="t")
    assert f'<tspan fill="{INK[0]}">● near &amp; dear' in named and f'<tspan fill="{INK[1]}">● far' in named
    assert "●" not in picture([Panel("x", "points", places, classes)], title="t")


def test_sketches_keep_places_and_shades() -> None:
    corners = Panel("x", "points", np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0, 1]))
    lines = sketch(corners, width=10, height=5).splitlines()
    assert lines[0] == "         x" and lines[-1] == "o"
    ramp = Panel("x", "image", np.linspace(0, 1, 10)[None])
    assert sketch(ramp, width=10, height=1) == " .:-=+*#%@"
    series = sketch(Panel("x", "series", np.linspace(0, 1, 50)[None]), width=10, height=5).splitlines()
    assert series[0].endswith("o") and series[-1].startswith("o")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Panel("a", "text", np.zeros((2, 2))), "do not fit"),
        (lambda: Panel("a", "points", np.zeros((5, 3))), "expected (N, 2)"),
        (lambda: Panel("a", "image", np.zeros(4)), "expected two axes"),
        (lambda: Panel("a", "image", np.zeros((4, 4, 2))), "expected two axes"),
        (lambda: picture([], title="none"), "a picture of nothing"),
        (lambda: film([], [], title="x", lead="y", begin=0), "0 frames"),
    ],
)
def test_what_is_no_panel_is_refused(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=re.escape(told)):
        make()


def frames(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [
        Frame(i * 100, rng.normal(size=(50, 2)), np.arange(50) % 3, np.arange(50) > i, 1 - i / 50, i / count)
        for i in range(count)
    ]


def test_a_film_shows_every_frame_once_in_its_turn_and_tells_the_first_alarm() -> None:
    page = film(frames(8), [(50, "early"), (420, "place <0>")], title="T", lead="L", begin=300)
    assert page == film(frames(8), [(50, "early"), (420, "place <0>")], title="T", lead="L", begin=300)
    delays = [float(d) for d in re.findall(r'class="f" style="animation-delay:([\d.]+)s"', page)]
    assert delays == pytest.approx([0.4 * i for i in range(8)])
    assert "120 samples" in page and "place &lt;0&gt;" in page and "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "12.500%{opacity:0}" in page
    calm = film(frames(8), [], title="T", lead="L", begin=300)
    assert "<dd>none</dd>" in calm and "first alarm</text>" not in calm


def test_drift_writes_its_film_and_says_when_it_was_flagged(empty_cache: Path, capsys: Read) -> None:
    target = empty_cache / "film.html"
    asked = ["data", "drift", str(target), "--kind", "sudden", "--samples", "6000", "--json"]
    assert main(asked) == 0
    value = json.loads(capsys.readouterr().out)
    assert 1200 <= value["first_alarm"] < 1300 and value["false_alarms"] == 0
    assert value["accuracy_last"] < value["accuracy_first"] and target.stat().st_size < 300_000
    assert main(["data", "drift", str(target), "--kind", "none", "--samples", "6000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["first_alarm"] is None
    assert main(["data", "drift", str(target), "--kind", "slow"]) == 2
    assert "expected one of none, sudden" in capsys.readouterr().err
