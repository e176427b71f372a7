"""Two machines' answers side by side: outputs must lie within the engines' stated tolerance of each other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """What two machines disagree about, as sentences; empty when they agree."""
    found = []
    for name, ours in here["models"].items():
        theirs = there["models"][name]
        gap = np.abs(np.array(ours["outputs"]) - np.array(theirs["outputs"]))
        worst, equal = float(gap.max()), float((gap == 0).all(axis=1).mean())
        print(f"{name:12} worst difference {worst:g} (tolerance {ours['tolerance']:g}), {equal:.1%} of rows identical")
        if not worst <= ours["tolerance"]:
            found.append(f"{name}: outputs differ by {worst:g}, tolerance {ours['tolerance']:g}")
        if theirs["passed"] != theirs["samples"]:
            found.append(f"{name}: self-test {theirs['passed']} of {theirs['samples']} there")
    for part in ("deploy", "update"):
        for key, ours in here[part].items():
            if there[part][key] != ours:
                found.append(f"{part}.{key}: {ours!r} here, {there[part][key]!r} there")
    return found


def main() -> int:
    """The command; its exit code."""
    here, there = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    print(f"{here['machine']} and {there['machine']}:")
    found = differences(here, there)
    for line in found:
        print(f"  differs: {line}")
    if here["machine"] == there["machine"]:
        found.append("both are the same machine")
    print("they agree" if not found else f"{len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
