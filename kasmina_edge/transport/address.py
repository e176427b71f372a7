"""Broker addresses: ``mqtts://host:8883``, or ``mqtt://`` to this machine."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from kasmina_edge.errors import InputError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where a broker listens.

    >>> str(parse_address("mqtt://127.0.0.1:1884"))
    'mqtt://127.0.0.1:1884'
    """

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_address(text: str, *, insecure: bool = False) -> Address:
    """Read ``mqtts://host:8883`` or ``mqtt://127.0.0.1:1883``.

    Args:
        text: The address; the port may be left out (8883 with TLS, 1883 without).
        insecure: Accept an unencrypted link to another machine.

    Raises:
        InputError: Malformed, or unencrypted off loopback without ``insecure``.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise InputError(f"address {text!r}: {exc}", "Write mqtts://HOST:PORT.") from exc
    if parts.scheme not in ("mqtt", "mqtts") or not host:
        raise InputError(f"address {text!r}: expected mqtts://HOST:PORT or mqtt://127.0.0.1:PORT")
    if parts.username or parts.password:
        raise InputError(
            f"address of {host}: user name and password do not belong in an address",
            "Give them as settings, where no log or process list shows them.",
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise InputError(f"address {text!r}: expected nothing but scheme, host and a port from 1 to 65535")
    tls = parts.scheme == "mqtts"
    if not tls and host not in _LOOPBACK and not insecure:
        raise InputError(
            f"address {text!r}: unencrypted, and {host} is another machine",
            f"Use mqtts://{host}, or say --insecure if the network is trusted.",
        )
    return Address(host, port or (8883 if tls else 1883), tls)
