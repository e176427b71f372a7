"""Whether the broker can be reached: by name, by port, and as MQTT."""

from __future__ import annotations

from collections.abc import Callable

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.errors import KasminaError


def check_broker(address: str, connect: Callable[[str], None]) -> list[Finding]:
    """One try.

    Args:
        address: As in the settings; empty: none is set.
        connect: Connects and disconnects, or raises a KasminaError.
    """
    if not address:
        return [Finding("service.broker", "service", "absent", "no broker address is set")]
    try:
        connect(address)
    except KasminaError as exc:
        return [Finding("service.broker", "service", "fail", f"{address}: not reached", exc.message, exc.next_step)]
    return [Finding("service.broker", "service", "ok", f"{address}: connected as this device")]
