"""``python -m kasmina_edge.engines.conformance ENGINE BUNDLE.kasmina [PROFILE]``."""

from __future__ import annotations

import sys
from pathlib import Path

from kasmina_edge.bundle import read_file
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines.conformance import Subject, verdicts
from kasmina_edge.engines.registry import engine_type
from kasmina_edge.errors import KasminaError


def main(argv: list[str] | None = None) -> int:
    """Hold a registered engine to every promise, on a bundle.

    Returns:
        0 when every promise that was asked is kept, 1 when one is broken, 2 for a wrong call.
    """
    args = sys.argv[1:] if argv is None else argv
    if len(args) not in (2, 3):
        sys.stderr.write("usage: python -m kasmina_edge.engines.conformance ENGINE BUNDLE.kasmina [PROFILE]\n")
        return 2
    try:
        subject = Subject(engine_type(args[0]), read_file(Path(args[1])), load_profile((*args, "x86-cpu")[2]))
        found = list(verdicts(subject))
    except KasminaError as exc:
        sys.stderr.write(f"{exc.message}\n{exc.next_step}\n")
        return exc.exit_code
    for name, verdict, detail in found:
        sys.stdout.write(f"{verdict:9}  {name.replace('_', ' ')}{': ' + detail if detail else ''}\n")
    counts = {v: sum(1 for _, verdict, _ in found if verdict == v) for v in ("kept", "broken", "not asked")}
    sys.stdout.write(f"{len(found)} promises: " + ", ".join(f"{n} {v}" for v, n in counts.items()) + "\n")
    return 1 if counts["broken"] or not counts["kept"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
