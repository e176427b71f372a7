"""All checks in the order in which people read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kasmina_edge.doctor.agent_service import check_service
from kasmina_edge.doctor.board import check_board
from kasmina_edge.doctor.data_folder import check_data_folder
from kasmina_edge.doctor.edgetpu_library import check_compiler, check_library
from kasmina_edge.doctor.edgetpu_pci import check_pci
from kasmina_edge.doctor.edgetpu_usb import check_usb
from kasmina_edge.doctor.energy import check_energy
from kasmina_edge.doctor.finding import AREAS, Finding
from kasmina_edge.doctor.libraries import check_libraries
from kasmina_edge.doctor.machine import Machine


def examine(
    machine: Machine,
    folder: Path,
    *,
    describe_key: Callable[[], tuple[bool | None, str]] | None = None,
    ask_agent: Callable[[], Mapping[str, Any] | None] = lambda: None,
    more: list[Finding] | None = None,
) -> list[Finding]:
    """Everything but the engines, which need their libraries.

    Args:
        machine: What is looked at.
        folder: The data folder.
        describe_key: See `check_data_folder`.
        ask_agent: See `check_service`.
        more: Findings of the caller's, which are sorted in.
    """
    checks: tuple[Callable[[], list[Finding]], ...] = (
        lambda: check_library(machine),
        lambda: check_usb(machine),
        lambda: check_pci(machine),
        lambda: check_compiler(machine),
        lambda: check_libraries(machine),
        lambda: check_board(machine),
        lambda: check_energy(machine),
        lambda: check_data_folder(machine, folder, describe_key),
        lambda: check_service(machine, folder, ask_agent),
    )
    found = list(more or ())
    for check in checks:
        found += _run(check)
    return sorted(found, key=lambda finding: AREAS.index(finding.area))


def _run(check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check that fails on what it met says so, and the others go on."""
    try:
        return check()
    except Exception as exc:
        return [Finding("doctor", "machine", "warn", f"a check failed: {type(exc).__name__}: {exc}"[:200])]
