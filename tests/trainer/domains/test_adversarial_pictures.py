"""What is drawn and told of corruptions and attacks: contact sheets, curves, and the benchmark's verdicts."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks._mnist_c_cells import Line, gone_wrong
from benchmarks.domain_mnist_c import FULL as WHOLE
from benchmarks.domain_mnist_c import RECIPE, _best, _growth_rows
from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.attacks import Attacked
from kasmina_trainer.adversarial.curves import curve, save_curves
from kasmina_trainer.adversarial.mnist_c import KINDS, corrupt, picture
from kasmina_trainer.pages.grey_pictures import contact_sheet, png

RNG = np.random.default_rng(0)


def pixels_of(data: bytes) -> np.ndarray:
    """A plain reader of what `png` writes."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    size = int.from_bytes(data[33:37], "big")
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_a_png_holds_the_pixels_and_its_checksums_hold() -> None:
    x = RNG.random((5, 7))
    data = png(x)
    assert np.array_equal(pixels_of(data), np.round(x * 255))
    at, names = 8, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        assert zlib.crc32(body) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        names.append(body[:4])
        at += 12 + size
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    with pytest.raises(InputError, match="expected \\(height, width\\)"):
        png(RNG.random((2, 3, 4)))


def test_a_contact_sheet_names_every_kind_and_holds_its_pictures() -> None:
    x = RNG.random((3, 1, 28, 28), np.float32)
    cells = picture(x, seed=4)
    assert [name for name, _ in cells] == ["clean", *KINDS]
    assert np.array_equal(cells[0][1], x[:, 0]) and np.array_equal(
        cells[-1][1], corrupt(x, "canny-edges", seed=4)[:, 0]
    )
    sheet = contact_sheet(cells, title="Kinds & <sorts>", across=4)
    root = ElementTree.fromstring(sheet)  # our own bytes
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["clean", *KINDS] and "Kinds &amp; &lt;sorts&gt;" in sheet
    held = [pixels_of(base64.b64decode(found)) for found in re.findall(r"base64,([^\"]+)", sheet)]
    assert np.array_equal(held[3], np.round(np.concatenate(list(cells[3][1]), 1) * 255))
    assert contact_sheet(cells, title="x") == contact_sheet(cells, title="x")
    with pytest.raises(InputError, match="expected one shape"):
        contact_sheet([("a", x[:, 0]), ("b", x[:2, 0])], title="x")


def attacked(share: float) -> Attacked:
    fooled = np.arange(100) < 100 * share
    return Attacked(np.zeros((100, 1, 2, 2), np.float32), np.ones(100, bool), fooled, np.arange(100))


def test_curves_are_drawn_and_told(tmp_path: Path) -> None:
    made = curve("PGD <40>", lambda epsilon: attacked(5 * epsilon), (0.02, 0.1, 0.2))
    assert [point.success_rate for point in made.points] == [0.1, 0.5, 1.0]
    assert [point.accuracy for point in made.points] == [0.9, 0.5, 0.0] and made.points[0].median_queries == 4.5
    for name in ("a.svg", "a.html"):
        save_curves([made, replace(made, name="other")], tmp_path / name)
        written = (tmp_path / name).read_text()
        assert "PGD &lt;40&gt;" in written and "<40>" not in written and "50.0" in written
    ElementTree.fromstring((tmp_path / "a.svg").read_text())  # our own bytes
    with pytest.raises(InputError, match=r"expected at least one, and a \.svg"):
        save_curves([made], tmp_path / "a.png")
    with pytest.raises(InputError, match="each above the one before"):
        curve("x", attacked, (0.2, 0.1))


def line(form: str, accuracy: float, *, clean: float = 0.99, lost: float = 0.1, validation: float = 0.9) -> Line:
    return Line(
        form, 0, 20_000, 0.4, validation, lost, 0.99, clean, dict.fromkeys(KINDS, 0.5), dict.fromkeys(KINDS, accuracy),
        None if form == WHOLE else True, 1.0,
    )  # fmt: skip


def test_the_benchmark_judges_means_losses_and_missing_hosts() -> None:
    def verdicts(found: dict[str, list[Line]], seeds: int) -> dict[str, bool]:
        return {each["name"].partition(": ")[2]: each["ok"] for each in _growth_rows(found, seeds)}

    good = {RECIPE: [line(RECIPE, 0.955)] * 3, WHOLE: [line(WHOLE, 0.97)] * 3}
    assert all(verdicts(good, 3).values())
    assert not verdicts(good, 4)["mean of 15 after grafting"]  # a host is missing
    poor = {**good, RECIPE: [line(RECIPE, 0.9, clean=0.98)] * 3}
    failed = {name for name, ok in verdicts(poor, 3).items() if not ok}
    assert failed == {"mean of 15 after grafting", "clean loss of the grafts", "share of full fine-tuning's gain"}
    share = next(each for each in _growth_rows(good, 3) if "share" in each["name"])
    assert share["measured"] == pytest.approx(0.455 / 0.47)


def test_a_recipe_is_chosen_among_those_that_lose_little_clean_accuracy() -> None:
    tried = [line(RECIPE, 0.9, lost=0.1, validation=0.93), line(RECIPE, 0.9, lost=0.5, validation=0.99)]
    assert (_best(tried, careful=True), _best(tried, careful=False)) == (0, 1)
    assert _best([replace(each, validation_clean=each.validation_clean + 1) for each in tried], careful=True) == 0


def test_rows_go_wrong_in_each_way_as_often_and_a_way_tells_nothing_about_a_class() -> None:
    x, y = RNG.random((300, 1, 28, 28), np.float32), np.arange(300) % 10  # classes in turn, as some parts have them
    sets = [gone_wrong((x, y), 3, turn) for turn in (0, 5, 10)]
    seen = []
    for turn, (wrong, labels) in zip((0, 5, 10), sets, strict=True):
        assert labels is y
        kind_of = np.full(300, -1)
        for at in range(15):
            kind = KINDS[(at + turn) % 15]
            rows = np.random.default_rng(3).permutation(300)[at::15]
            assert np.array_equal(wrong[rows], corrupt(x[rows], kind, seed=1000 * (3 + 100 * turn) + at)), kind
            kind_of[rows] = (at + turn) % 15
        assert (np.bincount(kind_of) == 20).all()
        assert max(np.bincount(y[kind_of == kind], minlength=10).max() for kind in range(15)) < 10  # in turn: 10 of 20
        seen.append(kind_of)
    assert (seen[0] != seen[1]).all() and (seen[1] != seen[2]).all() and (seen[0] != seen[2]).all()
