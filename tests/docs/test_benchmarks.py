"""`make bench`: rows are checked, a missed target and a broken module are not hidden."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks._page import Result, page

ROW: dict[str, Any] = {"name": "x", "target": 2.0, "measured": 1.0, "unit": "ms", "ok": True, "how": "a | b"}


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module called ``sample`` beside the real ones."""
    module = types.ModuleType("benchmarks.sample")
    monkeypatch.setitem(sys.modules, "benchmarks.sample", module)
    monkeypatch.setattr(run, "module_names", lambda: ["sample"])
    monkeypatch.setattr(run, "begun", lambda: ("2026-01-01", 0.0))
    return module


def bench(out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = run.main(["--only", "sample", "--out", str(out), *arguments])
    return code, json.loads(out.read_text())


def test_rows_are_written(benchmark_module: Any, tmp_path: Path) -> None:
    benchmark_module.rows = lambda: [ROW]
    assert bench(tmp_path / "build/bench.json") == (0, [ROW])


def test_a_missed_target_fails(benchmark_module: Any, tmp_path: Path) -> None:
    benchmark_module.rows = lambda: [ROW, ROW | {"ok": False}]
    assert bench(tmp_path / "bench.json")[0] == 1


def test_a_broken_module_fails(benchmark_module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> list[Any]:
        raise RuntimeError("no broker")

    benchmark_module.rows = rows
    assert bench(tmp_path / "bench.json") == (1, [])
    assert "sample: RuntimeError: no broker" in capsys.readouterr().err


def test_no_rows_fail(benchmark_module: Any, tmp_path: Path) -> None:
    benchmark_module.rows = list
    assert bench(tmp_path / "bench.json") == (1, [])


def test_quick_is_passed_on_where_it_is_taken(benchmark_module: Any, tmp_path: Path) -> None:
    benchmark_module.rows = lambda quick: [ROW | {"measured": int(quick)}]
    assert bench(tmp_path / "bench.json", "--quick")[1][0]["measured"] == 1
    assert bench(tmp_path / "bench.json")[1][0]["measured"] == 0


@pytest.mark.parametrize("row", [ROW | {"ok": 1}, {"name": "x"}, ROW | {"note": ""}, ["x"]])
def test_what_is_no_row_is_refused(row: Any) -> None:
    with pytest.raises(ValueError, match=r"benchmarks/sample\.py"):
        run.checked(row, "sample")


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(["--only", "nothing-of-the-kind"])
    assert caught.value.code == 2
    assert "no benchmark is called" in capsys.readouterr().err


def test_the_page_tells_the_machine_and_every_row() -> None:
    rows = [ROW, ROW | {"name": "y", "ok": False, "measured": 123456}, ROW | {"name": "z", "target": None}]
    text = page([Result("sample", rows, 3.0, "2026-01-01", 0.1)], ["sample", "other"])
    assert "- CPU: " in text
    assert "| x | 2 | 1 | ms | yes | a \\| b |" in text
    assert "| y | 2 | 123,456 | ms | **no** |" in text
    assert "| z | - | 1 | ms | stated |" in text
    assert "- targets missed: y\n- not run here: `other`\n" in text
    assert "## `make bench only=sample`\n\n2026-01-01, 3 s, alone on the machine.\n" in text
    assert "beside other work (2.0 cores busy before it)" in page(
        [Result("sample", rows, 3.0, "2026-01-01", 2.0)], ["sample"]
    )


def test_what_was_not_run_again_stays_on_the_page() -> None:
    names = ["first", "second", "third"]
    old = [
        Result("first", [ROW | {"ok": False}], 3.0, "2026-01-01", 0.1),
        Result("third", [ROW], 3.0, "2026-01-01", 0.1),
    ]
    before = page(old, names)
    assert page([], names, before) == before
    text = page([Result("second", [ROW | {"name": "y"}], 5.0, "2026-02-02", 0.1)], names, before)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## `make bench only={name}`" for name in names
    ]
    assert "2026-01-01, 3 s" in text and "2026-02-02, 5 s" in text and "not run here" not in text
    assert "- targets missed: x\n" in text
    mended = page([Result("first", [ROW], 4.0, "2026-03-03", 0.1)], names, text)
    assert "- targets missed: none\n" in mended and "only=first`\n\n2026-03-03, 4 s" in mended
    assert "only=first" not in page([], ["second"], text), "what is no module any more goes"


def test_a_full_run_is_kept_for_the_page_and_a_quick_one_is_not(
    benchmark_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark_module.rows = lambda quick: [ROW | {"measured": 5.0 if quick else 1.5}]
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    bench(tmp_path / "bench.json")
    bench(tmp_path / "bench.json", "--quick")
    assert not run.PAGE.exists()
    assert run.main(["--page", "--out", str(tmp_path / "bench.json")]) == 0
    assert "| x | 2 | 1.5 | ms | yes |" in run.PAGE.read_text()
    assert run.main(["--out", str(tmp_path / "bench.json")]) == 0
    assert "not run here" not in run.PAGE.read_text()


def test_every_benchmark_offers_rows() -> None:
    sources = {name: (run.ROOT / f"benchmarks/{name}.py").read_text() for name in run.module_names()}
    assert {name for name, text in sources.items() if "\ndef rows(" not in text} == set()
