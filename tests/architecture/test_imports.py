"""What importlinter cannot see: imports made at run time, and imports that no extra of pyproject.toml declares."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINER_SIDE = ("torch", "optuna", "kasmina_trainer", "firmware_bridge", "sklearn", "litert_torch", "ai_edge_quantizer")
EXTRAS = ("ai_edge_litert", "onnxruntime", "iotcore", "tflite_runtime", "onnx", "pycoral", "bsdiff4")

IMPORT_ALL = """
import importlib, json, pkgutil, sys

refused = set(json.loads(sys.argv[1]))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"refused here: {name}", name=name)

sys.meta_path.insert(0, Refuse())
import kasmina_edge
names, faults = [], {}
for module in pkgutil.walk_packages(kasmina_edge.__path__, "kasmina_edge."):
    if not module.name.endswith("__main__"):
        names.append(module.name)
        try:
            importlib.import_module(module.name)
        except BaseException as exc:
            faults[module.name] = repr(exc)
print(json.dumps({"names": names, "faults": faults, "loaded": sorted(refused & set(sys.modules))}))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with the repository on its path."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def import_everything(refused: tuple[str, ...]) -> dict[str, object]:
    """Import every module of kasmina_edge where ``refused`` cannot be imported."""
    done = python("-c", IMPORT_ALL, json.dumps(refused))
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_every_edge_module_imports_on_a_device_that_has_only_the_core() -> None:
    report = import_everything((*TRAINER_SIDE, *EXTRAS))
    assert report["faults"] == {}
    assert report["loaded"] == []
    on_disk = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in (ROOT / "kasmina_edge").rglob("*.py")
        if p.name != "__main__.py" and p.parent != ROOT / "kasmina_edge" / "profiles"
    } - {"kasmina_edge"}
    assert set(report["names"]) == on_disk  # type: ignore[call-overload]


def test_the_refusal_refuses() -> None:
    report = import_everything(("numpy",))
    assert "kasmina_edge.health" in report["faults"]  # type: ignore[operator]


@pytest.mark.parametrize(
    "statement",
    [
        "import kasmina_edge, sys; assert 'torch' not in sys.modules",
        "import kasmina_edge, sys; assert 'tuf' not in sys.modules and 'numpy' not in sys.modules",
        "import kasmina_edge.cli, sys; assert not {'torch', 'ai_edge_litert', 'onnxruntime'} & set(sys.modules)",
        "import kasmina_edge.cli.agent_process, kasmina_edge.agent, kasmina_edge.transport.mqtt, sys; "
        "assert not {'typer', 'rich', 'ai_edge_litert', 'onnxruntime'} & set(sys.modules)",
        "import kasmina_trainer, sys; assert 'torch' not in sys.modules",
        "import kasmina_trainer.cli, sys; assert 'torch' not in sys.modules",
    ],
)
def test_a_light_import_stays_light(statement: str) -> None:
    done = python("-c", statement)
    assert done.returncode == 0, done.stderr


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"kasmina_edge", "kasmina_trainer", "firmware_bridge", "__future__"}


def canonical(requirement: str) -> str:
    """The distribution's name in PEP 503 form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~!; ]", requirement, maxsplit=1)[0]).lower()


def undeclared(package: str, groups: tuple[str, ...], allowed_unknown: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Imports of ``package`` that the core and ``groups`` of extras do not declare, with the files that make them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(r for g in groups for r in project["optional-dependencies"][g])]
    declared = {canonical(line) for line in lines}
    by_import = importlib.metadata.packages_distributions()
    faults: dict[str, list[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in imported(path) - set(allowed_unknown):
            if not declared & {canonical(d) for d in by_import.get(name, [name])}:
                faults.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return faults


def test_every_import_of_the_edge_is_a_declared_dependency() -> None:
    probed_on_old_images = ("tflite_runtime", "pycoral")
    assert undeclared("kasmina_edge", ("litert", "onnx", "demo", "fleet"), probed_on_old_images) == {}


def test_every_import_of_the_trainer_is_a_declared_dependency() -> None:
    assert undeclared("kasmina_trainer", ("litert", "onnx", "demo", "fleet", "trainer")) == {}


def test_an_undeclared_import_is_seen() -> None:
    assert "numpy" in imported(ROOT / "kasmina_edge/contracts/arrays.py")
    assert "torch" in undeclared("kasmina_trainer", ())


FORBIDDEN_IN_CONTRACTS = {
    "socket",
    "subprocess",
    "sqlite3",
    "shutil",
    "tempfile",
    "threading",
    "urllib",
    "time",
    "random",
}
IO_CALLS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "mkdir", "unlink", "glob", "iterdir"}


def input_and_output(path: Path) -> set[str]:
    """Names of calls in a file that touch the disk, and of imports that touch the world."""
    tree = ast.parse(path.read_text())
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return (calls & IO_CALLS) | (modules & FORBIDDEN_IN_CONTRACTS)


def test_contracts_do_no_input_or_output_but_reading_profiles() -> None:
    found = {p.name: input_and_output(p) for p in (ROOT / "kasmina_edge/contracts").glob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {"profile.py": {"read_bytes", "glob"}}
