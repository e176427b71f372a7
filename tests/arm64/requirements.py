"""What a device installs, and what the suites need there, one requirement a word; read from pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

EXTRAS = ("litert", "onnx", "fleet", "demo")
SUITES = ("pytest", "hypothesis", "onnx>=1.18,<2", "flatbuffers>=24,<26")


def main() -> None:
    """Print them on one line."""
    project = tomllib.loads(Path(__file__).resolve().parents[2].joinpath("pyproject.toml").read_text())["project"]
    found = [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]
    print(" ".join(r.replace(" ", "") for r in found), *SUITES)


if __name__ == "__main__":
    main()
