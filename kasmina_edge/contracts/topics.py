"""MQTT topic names, in one place: ``<root>/<site>/d/<device>/...`` and ``<root>/<site>/repo/...``.

Device id = user name = certificate CN, so one broker ACL pattern covers a device (``d/%u/#``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kasmina_edge.errors import InputError

_WORD = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True)
class Topics:
    """Topics of one site.

    >>> Topics("kasmina", "lab").reported("cam-1")
    'kasmina/lab/d/cam-1/reported'
    """

    root: str = "kasmina"
    site: str = "main"

    def __post_init__(self) -> None:
        for word in (self.root, self.site):
            if not _WORD.fullmatch(word):
                raise InputError(f"topic word {word!r}: expected 1 to 32 of a-z, 0-9 and -")

    def device(self, device: str, leaf: str) -> str:
        """Any leaf below a device's own folder."""
        if device != "+" and not _WORD.fullmatch(device):
            raise InputError(f"device id {device!r}: expected 1 to 32 of a-z, 0-9 and -")
        return f"{self.root}/{self.site}/d/{device}/{leaf}"

    def state(self, device: str) -> str:
        """Birth and will, retained."""
        return self.device(device, "state")

    def reported(self, device: str) -> str:
        """What the device runs, retained."""
        return self.device(device, "reported")

    def desired(self, device: str) -> str:
        """Nudge from the controller, retained."""
        return self.device(device, "desired")

    def request(self, device: str) -> str:
        """Device asks the controller for a file that is not retained."""
        return self.device(device, "req")

    def response(self, device: str) -> str:
        """The controller's answers, with the request's correlation data."""
        return self.device(device, "rsp")

    def barrier(self, device: str) -> str:
        """The device's message to itself: what was retained has arrived before it."""
        return self.device(device, "barrier")

    def telemetry(self, device: str, stream: str = "stats") -> str:
        """Batches from the outbox."""
        return self.device(device, f"t/{stream}")

    def event(self, device: str) -> str:
        """Audit events."""
        return self.device(device, "ev")

    def metadata(self, name: str) -> str:
        """A TUF metadata file, retained, e.g. ``timestamp.json``."""
        return f"{self.root}/{self.site}/repo/m/{name}"

    def target(self, name: str) -> str:
        """A small TUF target, retained, by its hash-prefixed path."""
        return f"{self.root}/{self.site}/repo/t/{name}"

    def controller(self) -> str:
        """Whether the controller is there to read, retained; below ``repo``, which every device may read."""
        return f"{self.root}/{self.site}/repo/controller"

    def device_of(self, topic: str) -> str | None:
        """The device id inside one of this site's device topics, or None."""
        parts = topic.split("/")
        if len(parts) >= 5 and parts[:3] == [self.root, self.site, "d"] and _WORD.fullmatch(parts[3]):
            return parts[3]
        return None
