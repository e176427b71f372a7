"""House rules about files: length, names, no path of one machine, profiles and golden bytes that are really there."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kasmina_edge import contracts
from kasmina_edge.contracts.canonical import Contract, SignedContract
from kasmina_edge.contracts.profile import read_profile

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 600
EMPTY_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager|processor|handler)s?(_|$)")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(work|farm|root|home/[a-z]\w*|Users/[a-z]\w*|tmp/[a-z]\w*)/")
TEXT = {
    ".py",
    ".toml",
    ".md",
    ".json",
    ".txt",
    ".yaml",
    ".yml",
    ".c",
    ".h",
    ".js",
    ".css",
    ".html",
    ".cfg",
    ".conf",
    "",
}


def listed() -> list[Path]:
    """Every file of the repository that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / n for n in names if n and (ROOT / n).is_file()]


def test_the_listing_sees_this_file() -> None:
    assert Path(__file__).resolve() in listed()


def test_no_source_file_is_too_long() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in listed() if p.suffix in {".py", ".c", ".h", ".js"}}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MOST_LINES} == {}


def test_no_name_says_nothing() -> None:
    empty = [
        str(p.relative_to(ROOT))
        for p in listed()
        if any(EMPTY_NAMES.search(part.removesuffix(".py")) for part in p.relative_to(ROOT).parts)
    ]
    classes = re.compile(r"^class \w*(Utils?|Helper|Manager|Misc|Processor)\b", re.MULTILINE)
    empty += [str(p.relative_to(ROOT)) for p in listed() if p.suffix == ".py" and classes.search(p.read_text())]
    assert empty == []


def test_no_file_holds_a_path_of_one_machine() -> None:
    found = [
        f"{p.relative_to(ROOT)}: {match.group()}"
        for p in listed()
        if p.suffix in TEXT and p != Path(__file__).resolve()
        for match in MACHINE_PATHS.finditer(p.read_text(errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"), [("open /home/user/x", True), ("/var/lib/kasmina", False), ("see docs/work/x", False)]
)
def test_a_path_of_one_machine_is_told_from_others(text: str, is_one: bool) -> None:
    assert bool(MACHINE_PATHS.search(text)) is is_one


PROFILES = sorted((ROOT / "profiles").glob("*.toml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_parses_and_has_its_sources(path: Path) -> None:
    profile = read_profile(path)
    assert profile.name == path.stem
    assert all(len(text) > 20 for text in (profile.source, *(a.source for a in profile.anchors)))
    assert f"`{profile.name}`" in (ROOT / "profiles/README.md").read_text()


def test_profile_names_and_aliases_are_told_apart() -> None:
    assert len(PROFILES) >= 4
    profiles = [read_profile(p) for p in PROFILES]
    names = [n for p in profiles for n in (p.name, *p.aliases)]
    assert len(names) == len(set(names))


def test_the_profiles_readme_explains_every_key() -> None:
    text = (ROOT / "profiles/README.md").read_text()
    keys = {k for p in PROFILES for k in tomllib.loads(p.read_text())}
    explained = {k.partition("[")[0] for k in re.findall(r"`([a-z0-9_\[\].]+)`", text)}
    assert keys - explained == set()


def contract_classes() -> set[type[Contract]]:
    """Every contract there is, but the bases."""
    for module in pkgutil.iter_modules(contracts.__path__, contracts.__name__ + "."):
        importlib.import_module(module.name)
    found: set[type[Contract]] = set()
    todo: list[type[Contract]] = [Contract]
    while todo:
        for child in todo.pop().__subclasses__():
            todo.append(child)
            if child.__module__.startswith("kasmina_edge.contracts.") and not child.__name__.startswith("_"):
                found.add(child)
    return found - {SignedContract}


def classes_inside(value: Any) -> set[type[Contract]]:
    """The contract classes of a value and of everything it holds."""
    if isinstance(value, Contract):
        return {type(value)}.union(*(classes_inside(v) for _, v in value))
    if isinstance(value, dict):
        return set().union(*(classes_inside(v) for v in value.values()))
    if isinstance(value, (tuple, list)):
        return set().union(*(classes_inside(v) for v in value))
    return set()


def test_every_contract_has_golden_bytes() -> None:
    by_name = {c.__name__: c for c in contract_classes()}
    seen: set[type[Contract]] = set()
    for path in (ROOT / "tests/golden").glob("contracts-*/*.json"):
        seen |= classes_inside(by_name[path.stem].from_bytes(path.read_bytes(), where=path.name))
    assert {c.__name__ for c in contract_classes() - seen} == set()


def test_the_wheel_holds_both_packages_and_the_profiles(tmp_path: Path) -> None:
    hatch = pytest.importorskip("hatchling.build", reason="hatchling comes with the dev extra")
    code = f"import os; os.chdir({str(ROOT)!r}); import hatchling.build as b; print(b.build_wheel({str(tmp_path)!r}))"
    assert hatch
    import sys

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("kasmina-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"kasmina_edge/profiles/{p.name}" for p in PROFILES} <= names
    assert {"kasmina_edge/errors.py", "kasmina_trainer/__init__.py"} <= names
    conf = ROOT / "kasmina_trainer/intensity_scaler/conf"
    assert {str(p.relative_to(ROOT)) for p in [conf / "intensity.yaml", *conf.rglob("*.yaml")]} <= names
    assert not [n for n in names if n.startswith(("tests/", "docs/"))]
