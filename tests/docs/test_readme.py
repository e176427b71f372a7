"""The README's embedding example is executed against a real bundle; its links, commands and make targets are there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from worlds.bundles import make_bundle

from kasmina_edge.bundle import pack
from kasmina_edge.fleet.repository import Repository

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")))
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    desk = Repository.desk(tmp_path / "desk", clock=time.time)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build/demo/digits-1.0.0.kasmina").write_bytes(pack(desk.sign_bundle(make_bundle())))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{EXAMPLE}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, version, label, score, latency_us = done.stdout.split()
    assert (name, version) == ("digits", "1.0.0")
    assert label in "0123456789"
    assert 0 < float(score) <= 1
    assert float(latency_us) > 0


def test_the_example_stays_short() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text())
    generated = {ROOT / "docs/benchmarks.md"}
    missing = [t for t in targets if not (path.parent / t).exists() and (path.parent / t).resolve() not in generated]
    assert missing == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for p in DOCUMENTS for t in re.findall(r"(?:^|`)make ([a-z0-9]+)", p.read_text(), re.MULTILINE)}
    assert {"demo", "test", "check", "bench"} <= named <= targets


@pytest.mark.parametrize("program", ["kasmina-edge", "kasmina-trainer"])
def test_every_verb_that_the_readme_shows_exists(program: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module = scripts[program].partition(":")[0]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {module} import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    verbs = set(re.findall(rf"^{program} ([a-z]+)", README, re.MULTILINE))
    assert verbs
    assert {verb for verb in verbs if verb not in done.stdout} == set()
