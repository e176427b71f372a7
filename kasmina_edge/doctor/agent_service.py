"""Whether an agent runs over the data folder, and whether something starts it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

UNITS = ("/etc/systemd/system/kasmina-edge.service", "/run/systemd/system/kasmina-edge.service")


def check_service(machine: Machine, folder: Path, ask: Callable[[], Mapping[str, Any] | None]) -> list[Finding]:
    """The agent's own answer, and the unit.

    Args:
        machine: Where.
        folder: The data folder.
        ask: What the agent's health socket says; None when none listens.
    """
    health = ask()
    unit = any(machine.exists(path) for path in UNITS)
    if health is None:
        step = "sudo systemctl start kasmina-edge" if unit else f"sudo kasmina-edge service install --data {folder}"
        return [Finding("service.agent", "service", "absent", "no agent runs over the data folder", "", step)]
    status = str(health.get("status", "unknown"))
    found = f"agent {status}, process {health.get('pid', '?')}"
    if status in ("ok", "starting"):
        cause = "" if unit else "started by hand or by a container: nobody starts it again unless that one does"
        return [Finding("service.agent", "service", "ok", found, cause)]
    problems = "; ".join(map(str, health.get("problems", ())))
    return [Finding("service.agent", "service", "fail", found, problems, "journalctl -u kasmina-edge -e")]
