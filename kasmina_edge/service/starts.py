"""A brake for restart storms: an agent that ended early many times in a row waits before it works again.

systemd before 254 restarts at a fixed pace, and a container runtime may know no brake at all; each start costs a broker
a connection and a flash disk a few writes. Starts are counted in one file, within one boot of the machine, because a
clock may be wrong after a cold start. A run that lasts, or that is stopped on purpose, sets the count back.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from kasmina_edge.errors import KasminaError
from kasmina_edge.storage import write_durable

log = logging.getLogger(__name__)

FREE_STARTS = 3
LONGEST_DELAY_S = 300.0
STEADY_S = 300.0
"""An agent that worked so long did not end early, whatever ends it."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_BYTES = 4096


def delay_s(early_ends: int) -> float:
    """How long the next start waits.

    Args:
        early_ends: Starts in a row that ended early.

    >>> [delay_s(n) for n in (0, 2, 3, 4, 7, 11, 12, 10_000)]
    [0.0, 0.0, 1.0, 2.0, 16.0, 256.0, 300.0, 300.0]
    """
    if early_ends < FREE_STARTS:
        return 0.0
    return float(min(2.0 ** min(early_ends - FREE_STARTS, 30), LONGEST_DELAY_S))


class StartCounter:
    """The count of one data folder; a file that cannot be read counts as none, one that cannot be written as unsaid.

    Args:
        path: The file.
        machine_boot: Names this boot of the machine; a count of another boot is forgotten.
    """

    def __init__(self, path: Path, machine_boot: str) -> None:
        self._path = path
        self._machine_boot = machine_boot
        self.early_ends = self._read()

    def begin(self) -> float:
        """Count this start as one that ends early until it is known better; gives the seconds to wait first."""
        waiting = delay_s(self.early_ends)
        self._write(self.early_ends + 1)
        return waiting

    def settle(self) -> None:
        """This run lasted, or ends on purpose."""
        if self._read() != 0:
            self._write(0)

    def _read(self) -> int:
        try:
            value = json.loads(self._path.read_bytes()[:_MAX_BYTES])
            count = value["early_ends"]
            if value["machine_boot"] != self._machine_boot or not isinstance(count, int) or isinstance(count, bool):
                return 0
            return max(0, min(count, 1_000_000))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return 0

    def _write(self, count: int) -> None:
        body = {"format": 1, "early_ends": count, "machine_boot": self._machine_boot}
        try:
            write_durable(self._path, json.dumps(body, sort_keys=True).encode())
        except KasminaError as exc:
            log.warning("starts: %s", exc.message)


def machine_boot(path: Path = BOOT_ID) -> str:
    """The kernel's name of this boot (random(4)); empty where it has none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()[:64]
    except OSError:
        return ""
