"""Whether the controller is there to read: its birth and will, retained on ``repo/controller``.

A broker takes what devices send whether or not anybody reads it, and drops it when its queue is full; a device that
knows of the controller's absence keeps its telemetry where it is safe.
"""

from __future__ import annotations

from typing import Literal

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.errors import InputError, KasminaError


class ControllerState(Contract):
    """What the controller says of itself, and its will says for it.

    Attributes:
        at_s: Wall clock when it came, seconds since 1970 UTC; None in a will.
    """

    format: Literal[1] = 1
    online: bool
    at_s: float | None = None

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A message that is not one is ignored by its reader."""
        return InputError
