"""A unix socket in the data folder that answers each connection with one JSON object about the running agent.

It is for ``kasmina-edge status`` and ``top``, and for health checks where there is no systemd. One thread answers from
values that the work loop left behind, so that a loop that is stuck is told and never waited for. Who may ask is the
socket's mode, 0600 unless told, inside a folder of mode 0700.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kasmina_edge.errors import StorageError

log = logging.getLogger(__name__)

SOCKET_NAME = "agent.sock"
MAX_ANSWER_BYTES = 32 * 1024
SEND_WITHIN_S = 0.5
BACKLOG = 8


class HealthSocket:
    """Listens from `start` to `close`.

    Args:
        path: The socket; a left-over of a killed agent is replaced (the caller holds the agent's lock).
        answer: The object to send; called on this socket's thread, so it must only read what is there already.
        mode: File mode, 0o600 or 0o660.
    """

    def __init__(self, path: Path, answer: Callable[[], Mapping[str, Any]], *, mode: int = 0o600) -> None:
        self._path = path
        self._answer = answer
        self._mode = mode
        self._listener: socket.socket | None = None
        self._wake: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            StorageError: The socket cannot be made there.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            with _short(self._path) as name:
                before = os.umask(0o177)
                try:
                    listener.bind(name)
                finally:
                    os.umask(before)
            self._path.chmod(self._mode)
            listener.listen(BACKLOG)
        except OSError as exc:
            listener.close()
            raise StorageError(f"{self._path}: no health socket can be made here ({exc.strerror or exc})") from exc
        self._listener = listener
        self._wake = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, args=(listener, self._wake[0]), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and remove the socket; calling it twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is None or self._listener is None or self._wake is None:
            return
        os.write(self._wake[1], b"x")
        thread.join(2.0)
        self._listener.close()
        for fd in self._wake:
            os.close(fd)
        self._listener = self._wake = None
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _serve(self, listener: socket.socket, wake: int) -> None:
        both, waking = select.poll(), select.poll()  # select() refuses descriptors from 1024 on
        both.register(listener.fileno(), select.POLLIN)
        for poll in (both, waking):
            poll.register(wake, select.POLLIN)
        while True:
            if any(fd == wake for fd, _ in both.poll()):
                return
            try:
                peer, _ = listener.accept()
            except OSError as exc:  # out of descriptors, or the peer left already
                log.info("health socket: %s", exc)
                if waking.poll(SEND_WITHIN_S * 1000):
                    return
                continue
            with peer, contextlib.suppress(OSError):
                peer.settimeout(SEND_WITHIN_S)
                peer.sendall(self._bytes())

    def _bytes(self) -> bytes:
        try:
            data = json.dumps(self._answer(), sort_keys=True).encode()
        except Exception as exc:  # whatever the answer is made of: the next question deserves one
            log.exception("health socket: no answer")
            data = json.dumps({"format": 1, "status": "unknown", "problems": [type(exc).__name__]}).encode()
        if len(data) > MAX_ANSWER_BYTES:
            data = json.dumps({"format": 1, "status": "unknown", "problems": ["the answer is too long"]}).encode()
        return data + b"\n"


def ask(path: Path, *, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """What the agent behind a health socket answers; None when none listens, or no whole object came in time."""
    found = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(timeout_s)
            with _short(path) as name:
                sock.connect(name)
            while len(found) <= MAX_ANSWER_BYTES and (part := sock.recv(65536)):
                found += part
        value = json.loads(found)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and len(found) <= MAX_ANSWER_BYTES + 1 else None


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits the 107 bytes which ``sun_path`` has, however deep the folder lies (unix(7))."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
