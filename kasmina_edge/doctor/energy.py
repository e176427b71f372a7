"""Whether energy can be measured here, and what stands in the way."""

from __future__ import annotations

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine
from kasmina_edge.telemetry.energy_sources import find_sources


def check_energy(machine: Machine) -> list[Finding]:
    """One line: what is read, what may not be read, or that nothing is there."""
    found = find_sources(machine.root)
    if found.sources:
        kind = "counts" if found.sources[0].unit == "uJ" else "shows power"
        return [Finding("machine.energy", "machine", "ok", f"energy: {found.names} {kind} ({found.scope})")]
    if found.refused:
        first = found.refused[0]
        return [
            Finding(
                "machine.energy", "machine", "absent", f"energy: {first.name} is there, and may not be read",
                first.reason, first.next_step,
            )
        ]  # fmt: skip
    cause = "energy comes from the profile's figures"
    return [Finding("machine.energy", "machine", "absent", "energy: no RAPL counter and no power sensor", cause)]
