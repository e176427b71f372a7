"""What a service tells systemd: sd_notify(3) datagrams, written straight onto ``$NOTIFY_SOCKET``.

No library is needed: a message is ``NAME=value`` lines in one datagram to a socket in the file system or, when the
address begins with ``@``, in the abstract name space. Nothing here ever blocks or raises: a service manager that does
not listen is no reason to stop working.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping

log = logging.getLogger(__name__)

PETS_A_WATCHDOG = 4
"""How often the dog is petted in its time; sd_watchdog_enabled(3) asks for at least 2."""


class Notifier:
    """Speaks for this process to the service manager; without one, every method does nothing.

    Args:
        address: A path, or a name behind ``@``; empty: nobody listens.
        watchdog_s: The manager ends a process that was silent for longer, in seconds; None: it does not watch.
        timer: Monotonic seconds.
    """

    def __init__(
        self, address: str = "", watchdog_s: float | None = None, *, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self.watchdog_s = watchdog_s
        self._timer = timer
        self._petted_at: float | None = None
        self._said = ""
        self._socket: socket.socket | None = None
        if not address.startswith(("/", "@")):
            return
        with contextlib.suppress(OSError):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                sock.connect("\0" + address[1:] if address.startswith("@") else address)
            except OSError as exc:
                log.warning("the service manager does not listen at %s (%s)", address, exc.strerror)
                sock.close()
                raise
            self._socket = sock

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int | None = None) -> Notifier:
        """As ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` say; they are removed, so that no child speaks.

        Args:
            environ: Usually ``os.environ``.
            pid: This process.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        period, owner = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        mine = owner in ("", str(os.getpid() if pid is None else pid))
        watchdog_s = int(period) / 1e6 if mine and period.isdigit() and int(period) > 0 else None
        return cls(address, watchdog_s)

    @property
    def listening(self) -> bool:
        """Whether a service manager listens."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """The service is up."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; the same line is sent once."""
        if text != self._said:
            self._said = text
            self._send(f"STATUS={_line(text)}")

    def stopping(self) -> None:
        """The service goes down on purpose."""
        self._send("STOPPING=1", "STATUS=stopping")

    def pet(self) -> None:
        """The work loop came round; sent at most `PETS_A_WATCHDOG` times in the watchdog's time."""
        if self.watchdog_s is None or self._socket is None:
            return
        now = self._timer()
        if self._petted_at is None or now - self._petted_at >= self.watchdog_s / PETS_A_WATCHDOG:
            self._petted_at = now
            self._send("WATCHDOG=1")

    @contextlib.contextmanager
    def allow(self, seconds: float) -> Iterator[None]:
        """One step may be silent for so long; afterwards the watchdog's own time holds again (``WATCHDOG_USEC=``)."""
        usual = self.watchdog_s
        if usual is None or seconds <= usual:
            yield
            return
        self._send(f"WATCHDOG_USEC={int(seconds * 1e6)}", "WATCHDOG=1")
        try:
            yield
        finally:
            self._send(f"WATCHDOG_USEC={int(usual * 1e6)}", "WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # full or gone: the next one may arrive
            self._socket.send("\n".join(lines).encode())


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
