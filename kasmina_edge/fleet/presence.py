"""The controller tells devices that it is there to read, and its will tells them when it no longer is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from kasmina_edge.contracts.presence import ControllerState
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import InputError, LinkError
from kasmina_edge.transport.transport import Message, Transport, Will

log = logging.getLogger(__name__)


def controller_will(topics: Topics) -> Will:
    """The will that a controller's transport is made with."""
    return Will(topics.controller(), ControllerState(online=False).to_bytes())


class Presence:
    """Keeps "online" retained while this controller runs, also over a broker that forgot and another one's late will.

    Args:
        transport: Not connected yet; made with `controller_will`.
        topics: The site.
        clock: Wall clock, seconds since 1970 UTC.
    """

    def __init__(self, transport: Transport, topics: Topics, clock: Callable[[], float]) -> None:
        self._transport, self._topic, self._clock = transport, topics.controller(), clock
        self._here = self._stores = True
        transport.on_connection(lambda connected: self._say(online=self._reads) if connected else None)
        transport.on_storing(self._storing)
        transport.subscribe(self._topic, self._heard)

    def leave(self) -> None:
        """Say goodbye; a polite end of the link sends no will."""
        self._here = False
        self._say(online=False)

    @property
    def _reads(self) -> bool:
        return self._here and self._stores

    def _storing(self, stores: bool) -> None:
        """A controller that cannot store is as good as away: devices then keep what they have to say."""
        self._stores = stores
        self._say(online=self._reads)

    def _heard(self, message: Message) -> None:
        with contextlib.suppress(InputError):
            if self._reads and not ControllerState.from_bytes(message.payload, where=message.topic).online:
                self._say(online=True)

    def _say(self, *, online: bool) -> None:
        state = ControllerState(online=online, at_s=self._clock())
        try:
            self._transport.publish(self._topic, state.to_bytes(), retain=True)
        except LinkError as exc:
            log.info("controller's state not sent: %s", exc.message)
