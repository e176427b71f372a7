"""Requests and the broker's answers to them, tied by packet id."""

from __future__ import annotations

import logging
import threading

from kasmina_edge.transport.transport import Acknowledgement

log = logging.getLogger(__name__)


class Pairing:
    """Brings packet ids and acknowledgements together, whichever comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[int, Acknowledgement] = {}
        self._early: dict[int, str | None] = {}

    def expect(self, packet_id: int, acknowledgement: Acknowledgement) -> None:
        """A request went out under this id."""
        with self._lock:
            if packet_id not in self._early:
                self._expected[packet_id] = acknowledgement
                return
            refusal = self._early.pop(packet_id)
        _settle(acknowledgement, refusal)

    def answer(self, packet_id: int, refusal: str | None) -> None:
        """An answer came in; ``refusal`` is the reason, None for agreement."""
        with self._lock:
            acknowledgement = self._expected.pop(packet_id, None)
            if acknowledgement is None:
                self._early[packet_id] = refusal
                return
        _settle(acknowledgement, refusal)

    def forget(self) -> None:
        """The link is gone, and the ids with it."""
        with self._lock:
            self._expected.clear()
            self._early.clear()


def _settle(acknowledgement: Acknowledgement, refusal: str | None) -> None:
    if refusal is not None:
        log.warning("%s was refused by the broker: %s", acknowledgement.what, refusal)
    acknowledgement.settle(refusal)
