"""``kasmina-edge run`` without the libraries that draw tables and parse options: they cost 10 MB that an agent keeps.

`light_arguments` understands the plain form that a service uses; whatever it does not understand, help and mistakes
included, goes the way of all verbs (kasmina_edge/cli/device.py), which ends in the same `run_agent`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasmina_edge.cli.loglines import configure_lines, hush_native_libraries
from kasmina_edge.errors import InputError, KasminaError, LinkError

VALUES = {"--data": "data", "--profile": "profile", "--address": "address"}
SWITCHES = {"--insecure": "insecure", "--wait-for-broker": "wait_for_broker", "--json": "as_json"}
DEFAULT_DATA = "kasmina-data"


def light_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The keywords of `run_agent`; None when the arguments are not ``run`` in its plain form.

    >>> light_arguments(["run", "--data", "d", "--json"], {})["as_json"]
    True
    >>> light_arguments(["run", "--help"], {}) is None
    True
    """
    if not arguments or arguments[0] != "run":
        return None
    folder = Path(environ.get("KASMINA_DATA") or DEFAULT_DATA)
    found: dict[str, Any] = {"data": folder, "profile": None, "address": None}
    found |= dict.fromkeys(SWITCHES.values(), False)
    rest = list(arguments[1:])
    while rest:
        name, given, value = rest.pop(0).partition("=")
        if name in SWITCHES and not given:
            found[SWITCHES[name]] = True
        elif name in VALUES and (given or rest):
            text = value if given else rest.pop(0)
            if not text or text.startswith("-"):
                return None
            found[VALUES[name]] = Path(text) if name == "--data" else text
        else:
            return None
    return found


def light_main(argv: Sequence[str] | None) -> int | None:
    """Run the agent when the arguments are plain; None when they are for the whole program."""
    arguments = sys.argv[1:] if argv is None else argv
    keywords = light_arguments(arguments, os.environ)
    if keywords is None:
        return None
    if argv is None:
        hush_native_libraries()
    try:
        run_agent(**keywords)
    except KasminaError as exc:
        if not keywords["as_json"]:
            sys.stderr.write(f"{exc.message}\n{exc.next_step} (exit {exc.exit_code})\n".replace("\n (", "\n("))
        else:
            import json

            body = {"error": exc.kind, "message": exc.message, "next_step": exc.next_step, "exit_code": exc.exit_code}
            sys.stdout.write(json.dumps(body, sort_keys=True) + "\n")
        return exc.exit_code
    return 0


def run_agent(
    data: Path,
    *,
    profile: str | None = None,
    address: str | None = None,
    insecure: bool = False,
    wait_for_broker: bool = False,
    as_json: bool = False,
) -> None:
    """Run a device's agent until a signal stops it.

    Raises:
        InputError: The folder is not enrolled, or no broker is set.
        LockedError: Another agent holds the folder.
        LinkError: No broker answers, and ``wait_for_broker`` is False.
    """
    from kasmina_edge.service.bounds import few_arenas, limit_open_files

    few_arenas()
    from kasmina_edge.agent import Agent
    from kasmina_edge.service.notify import Notifier
    from kasmina_edge.service.signals import STOP_WITHIN_S, stop_on_signals
    from kasmina_edge.settings import Settings
    from kasmina_edge.transport.mqtt import MqttTransport
    from kasmina_edge.transport.transport import Transport, Will

    notifier = Notifier.from_environ(os.environ)
    flags: dict[str, Any] = {"device.profile": profile, "broker.address": address}
    if insecure:
        flags["broker.insecure"] = True
    settings = Settings.read(data, flags=flags)
    if not settings["broker.address"]:
        raise InputError(
            f"{data}: no broker address is set",
            "Enrol this device with `kasmina-edge fleet enroll`, or pass --address.",
        )
    configure_lines(settings["device.experiment_id"], as_json=as_json)
    with contextlib.suppress(ValueError, OSError):
        faulthandler.enable(sys.stderr)  # says where every thread was when the watchdog ends the process

    def connect(will_topic: str, will_payload: bytes) -> Transport:
        transport = MqttTransport(
            settings["broker.address"],
            settings["device.id"],
            username=settings["broker.username"] or None,
            password=read_secret(settings["broker.password_file"]),
            ca_file=settings["broker.ca_file"] or None,
            insecure=settings["broker.insecure"],
            will=Will(will_topic, will_payload),
        )
        try:
            transport.connect(10.0, keep_trying=wait_for_broker)
        except LinkError as exc:
            if not wait_for_broker:
                raise
            logging.getLogger(__name__).warning("%s: it is tried again and again", exc.message)
        return transport

    agent = Agent(data, settings, connect, notifier=notifier)
    limit_open_files(2 * settings["agent.max_open_files"])
    agent.run(stop_on_signals(STOP_WITHIN_S))


def read_secret(path: str) -> str | None:
    """The one line of a password file; None when no file is set.

    Raises:
        InputError: It cannot be read.
    """
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as exc:
        raise InputError(f"{path}: the broker's password file cannot be read ({exc.strerror})") from exc
