"""Brokers as child processes on this machine: iotcore embedded in a wheel, or mosquitto when it is installed.

iotcore has no access rules for topics, keeps nothing on disk, and a single client that it refuses (say, for a slash in
its name) can keep new ones out: it serves a desk, a demo and tests, with trusted devices only. mosquitto carries the
production rules: a device may read the repository and its own folder and write its own folder, the controller may do
everything in the site.

``python -m kasmina_edge.transport.broker --kind embedded --port 0 --ready-file F`` runs one until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import EngineError, InputError, KasminaError, LinkError
from kasmina_edge.storage import make_private_folder, write_durable

EMBEDDED_PAYLOAD_BYTES = 2 * 1024 * 1024
MOSQUITTO_PACKET_BYTES = 300_000
PASSWORD_ROUNDS = 101
_HOST = "127.0.0.1"
_HELLO = bytes.fromhex("101200044d5154540502000a000005") + b"probe"  # MQTT 5 CONNECT, clean start, client id "probe"
_START_TRIES = 5


@dataclass(frozen=True)
class TlsFiles:
    """Certificate chain and private key of a broker, PEM."""

    certificate: Path
    key: Path


class BrokerProcess:
    """A running broker; ends its process, by id, when closed or at the end of the block.

    Attributes:
        address: What `MqttTransport` takes.
    """

    def __init__(
        self,
        prepare: Callable[[Path, int], list[str]],
        port: int,
        folder: Path | None,
        *,
        start_s: float,
        tls: bool = False,
        ends_with_stdin: bool = False,
    ) -> None:
        self._prepare = prepare
        self._scheme = "mqtts" if tls else "mqtt"
        self._ends_with_stdin = ends_with_stdin
        self._start_s = start_s
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="kasmina-broker-")
        self.folder = make_private_folder(folder or Path(self._temporary.name if self._temporary else ""))
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start_on_some_port()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``mqtt://127.0.0.1:PORT``, or ``mqtts://localhost:PORT`` with TLS."""
        return f"{self._scheme}://{'localhost' if self._scheme == 'mqtts' else _HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process, None when it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Run again on the same port after `stop` or `kill`.

        Raises:
            LinkError: It ended, or accepted nobody, within the time to start.
        """
        if self.pid is not None:
            return
        with open(self.folder / "broker.log", "ab") as output:
            self._process = subprocess.Popen(
                self._prepare(self.folder, self.port),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + self._start_s
        while time.monotonic() < deadline:
            if self._ended_within(0.02):
                raise LinkError(
                    f"{self.address}: the broker ended with code {self._process.returncode}: {self._said()}"
                )
            with contextlib.suppress(OSError):
                if self._answers():
                    return
        self.kill()
        raise LinkError(f"{self.address}: the broker accepted nobody within {self._start_s:g} s: {self._said()}")

    def _answers(self) -> bool:
        """Whether it speaks: an open port is not enough, a broker with a wrong setting opens it and ends."""
        with socket.create_connection((_HOST, self.port), timeout=1.0) as plain:
            if self._scheme == "mqtts":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False  # a question to a child process on loopback; nothing secret is said
                context.verify_mode = ssl.CERT_NONE
                with context.wrap_socket(plain):
                    return True
            plain.sendall(_HELLO)
            return bool(plain.recv(1))

    def stop(self, timeout_s: float = 5.0) -> None:
        """End it politely, then for certain."""
        if self._process is not None and self._process.poll() is None:
            if self._ends_with_stdin and self._process.stdin is not None:
                self._process.stdin.close()
            else:
                self._process.terminate()
            if not self._ended_within(timeout_s):
                self._process.kill()
        self._reap()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL): what it had not written to disk is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._reap()

    def close(self) -> None:
        """Stop it and remove a temporary folder; calling it twice is harmless."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start_on_some_port(self) -> None:
        if self.port:
            with contextlib.suppress(OSError), socket.create_connection((_HOST, self.port), timeout=0.2):
                raise InputError(f"port {self.port} on {_HOST} is in use", "Choose another, or 0 for a free one.")
            self.start()
            return
        for left in reversed(range(_START_TRIES)):
            self.port = free_port()
            try:
                self.start()
                return
            except LinkError:
                if not left:
                    raise

    def _ended_within(self, timeout_s: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _said(self) -> str:
        try:
            lines = (self.folder / "broker.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return "it wrote no log"
        return lines[-1] if lines else "it wrote nothing"


def start_embedded(
    port: int = 0, folder: Path | None = None, *, max_payload_bytes: int = EMBEDDED_PAYLOAD_BYTES, start_s: float = 10.0
) -> BrokerProcess:
    """Run iotcore (MQTT 5 listener, loopback). It keeps retained messages in memory only.

    Args:
        port: 0 finds a free one.
        folder: For its settings and log; a temporary one when None.
        max_payload_bytes: Its own default of 20,480 is too short for update chunks.
        start_s: How long it may take to accept connections.

    Raises:
        EngineError: iotcore is not installed.
        InputError: The port is in use.
        LinkError: It did not start.
    """
    if importlib.util.find_spec("iotcore") is None:
        raise EngineError("the embedded broker (iotcore) is not installed", "Install it: pip install iotcore.")

    def prepare(where: Path, chosen: int) -> list[str]:
        settings = where / "iotcore.toml"
        write_durable(settings, _iotcore_settings(chosen, max_payload_bytes).encode())
        # -P keeps a folder named iotcore from shadowing the package; the child ends when its stdin closes.
        return [sys.executable, "-P", "-m", "iotcore._serve", json.dumps({"config_path": str(settings)})]

    return BrokerProcess(prepare, port, folder, start_s=start_s, ends_with_stdin=True)


def start_mosquitto(
    port: int = 0,
    folder: Path | None = None,
    *,
    users: Mapping[str, str] | None = None,
    controller: str = "controller",
    topics: Topics | None = None,
    tls: TlsFiles | None = None,
    start_s: float = 10.0,
) -> BrokerProcess:
    """Run mosquitto (loopback) with the settings that a fleet needs; its defaults drop messages silently.

    Args:
        port: 0 finds a free one.
        folder: For its settings, log and store; a temporary one when None.
        users: Passwords by user name. With them, anonymous clients are refused and access rules hold: user names are
            device ids, and ``controller`` is the one that may write the repository. None serves everybody.
        controller: The controller's user name.
        topics: The site that the rules speak of.
        tls: Serve ``mqtts://`` with these files.
        start_s: How long it may take to accept connections.

    Raises:
        EngineError: mosquitto is not installed.
        InputError: The port is in use, or a user name is not a device id.
        LinkError: It did not start.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise EngineError(
            "mosquitto is not installed on this machine",
            "Install it (apt-get install mosquitto), or use the embedded broker.",
        )
    site = topics or Topics()

    def prepare(where: Path, chosen: int) -> list[str]:
        settings = where / "mosquitto.conf"
        if users is not None:
            write_durable(where / "passwords", password_file(users).encode())
            write_durable(where / "access", access_rules(controller, site).encode())
        write_durable(settings, _mosquitto_settings(chosen, where, users is not None, tls).encode())
        return [program, "-c", str(settings)]

    return BrokerProcess(prepare, port, folder, start_s=start_s, tls=tls is not None)


def free_port() -> int:
    """A loopback TCP port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        return int(sock.getsockname()[1])


def access_rules(controller: str, topics: Topics) -> str:
    """mosquitto's access file: the controller owns the site; a device reads the repository and owns its folder."""
    site = f"{topics.root}/{topics.site}"
    return (
        f"user {controller}\ntopic readwrite {site}/#\n\n"
        f"pattern read {site}/repo/#\npattern read {site}/d/%u/#\npattern write {site}/d/%u/#\n"
    )


def password_file(users: Mapping[str, str], *, salts: Callable[[], bytes] = lambda: os.urandom(12)) -> str:
    """mosquitto's password file (PBKDF2-HMAC-SHA512, its ``$7$`` form); no password is kept or shown.

    Raises:
        InputError: A user name that is not a device id, or an empty password.
    """
    lines = []
    for user, password in sorted(users.items()):
        Topics().device(user, "state")
        if not password:
            raise InputError(f"user {user}: the password is empty")
        salt = salts()
        key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ROUNDS)
        lines.append(f"{user}:$7${PASSWORD_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}")
    return "\n".join(lines) + "\n"


def _mosquitto_settings(port: int, folder: Path, with_users: bool, tls: TlsFiles | None) -> str:
    access = (
        f"allow_anonymous false\npassword_file {folder}/passwords\nacl_file {folder}/access\n"
        if with_users
        else "allow_anonymous true\n"
    )
    encryption = f"certfile {tls.certificate}\nkeyfile {tls.key}\ntls_version tlsv1.2\n" if tls else ""
    return (
        f"user {pwd.getpwuid(os.geteuid()).pw_name}\n"
        "set_tcp_nodelay true\nmax_queued_messages 100000\nmax_inflight_messages 100\n"
        f"max_packet_size {MOSQUITTO_PACKET_BYTES}\n"
        f"persistence true\npersistence_location {folder}/\nlog_dest stderr\n"
        f"listener {port} {_HOST}\n{access}{encryption}"
    )


def _iotcore_settings(port: int, max_payload_bytes: int) -> str:
    return f"""id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 1000
max_segment_size = 16777216
max_segment_count = 4
[v5.1]
name = "mqtt5"
listen = "{_HOST}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload_bytes}
max_inflight_count = 200
dynamic_filters = true
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one broker until SIGINT or SIGTERM; the ready file appears when it accepts connections."""
    parser = argparse.ArgumentParser(prog="python -m kasmina_edge.transport.broker", description=main.__doc__)
    parser.add_argument("--kind", choices=("embedded", "mosquitto"), default="embedded")
    parser.add_argument("--port", type=int, default=0, help="0 finds a free one")
    parser.add_argument("--folder", type=Path, help="settings, log and store; temporary when left out")
    parser.add_argument("--users", type=Path, help="JSON file of passwords by user name (mosquitto)")
    parser.add_argument("--ready-file", type=Path, help='gets {"address": ...}')
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    try:
        with _start(options.kind, options.port, options.folder, options.users) as broker:
            if options.ready_file:
                write_durable(options.ready_file, json.dumps({"address": broker.address, "pid": broker.pid}).encode())
            print(f"{options.kind} broker at {broker.address}", flush=True)
            while not ended.wait(0.5):
                if broker.pid is None:
                    raise LinkError(f"{broker.address}: the broker ended by itself")
    except KasminaError as exc:
        print(f"{exc.message}\n{exc.next_step}".strip(), file=sys.stderr)
        return exc.exit_code
    return 0


def _start(kind: Literal["embedded", "mosquitto"], port: int, folder: Path | None, users: Path | None) -> BrokerProcess:
    if kind == "embedded":
        return start_embedded(port, folder)
    return start_mosquitto(port, folder, users=None if users is None else json.loads(users.read_text()))


if __name__ == "__main__":
    sys.exit(main())
