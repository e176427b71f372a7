"""``doctor``: what this machine can run, why not the rest, and what to do about it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kasmina_edge.cli.output import emit, plain
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.contracts.record import printable
from kasmina_edge.doctor import Finding, Machine, examine
from kasmina_edge.errors import EngineError
from kasmina_edge.settings import Settings

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "absent": "dim"}
UNITS = (Path("/etc/systemd/system/kasmina-edge.service"),)
WORDS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "absent": "-"}


def doctor(
    profile: Annotated[str | None, typer.Option("--profile", help="Hardware target, e.g. coral.")] = None,
    data: Annotated[Path, typer.Option("--data", envvar="KASMINA_DATA", help="This device's data folder.")] = Path(
        "kasmina-data"
    ),
    broker: Annotated[bool, typer.Option("--broker", help="Also try to reach the broker (5 s).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """What this machine can run, why not the rest, and what to do about it."""
    from kasmina_edge.doctor.inference import broken_engines, check_engines, engine_findings
    from kasmina_edge.engines import engine_types
    from kasmina_edge.service.health_socket import SOCKET_NAME, ask

    known = data if os.access(data, os.R_OK | os.X_OK) else None  # a service's folder is closed to other users
    settings = Settings.read(known, flags={"device.profile": profile})
    target = load_profile(settings["device.profile"]).chosen(accelerator_device=settings["device.accelerator"])
    kinds = engine_types()
    checks = check_engines(target, kinds)
    more = [*engine_findings(checks, target), *broken_engines()]
    if broker:
        more += _broker(settings)
    findings = examine(
        Machine(),
        data.absolute(),
        describe_key=lambda: _describe_key(data, settings),
        ask_agent=lambda: ask(data / SOCKET_NAME),
        more=more,
    )
    runs = [name for name, check in checks.items() if check.ok and not kinds[name].simulated]
    value = {
        "profile": target.name,
        "runs": runs,
        "engines": {name: dataclasses.asdict(check) for name, check in checks.items()},
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    emit(value, as_json=as_json, table=_pages(findings, target, runs))
    if not runs:
        raise EngineError("no engine runs on this machine", "Install one: `pip install ai-edge-litert`.")


def _pages(findings: Sequence[Finding], profile: HardwareProfile, runs: Sequence[str]) -> RenderableType:
    """One table an area, wide as the terminal: mark, and below what was found its cause and what to do."""
    parts: list[RenderableType] = []
    for area in dict.fromkeys(finding.area for finding in findings):
        table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=True)
        table.add_column(no_wrap=True, width=4)
        table.add_column(overflow="fold")
        for finding in (f for f in findings if f.area == area):
            table.add_row(Text(WORDS[finding.level], style=COLOURS[finding.level]), _lines(finding))
        parts += [Text(area[0].upper() + area[1:], style="bold"), table]
    bad = [f for f in findings if f.level in ("fail", "warn")]
    parts.append(plain(""))
    parts.append(plain(f"Profile {profile.name}: runs here on {', '.join(runs) or 'nothing'}; {_count(bad)}."))
    return Group(*parts)


def _lines(finding: Finding) -> Text:
    text = Text(printable(finding.found))
    if finding.cause:
        text.append("\n" + printable(finding.cause), style="dim")
    if finding.next_step:
        text.append("\n→ " + printable(finding.next_step), style="cyan" if finding.level != "absent" else "dim")
    return text


def _count(bad: Sequence[Finding]) -> str:
    fails = sum(f.level == "fail" for f in bad)
    warns = len(bad) - fails
    return f"{fails} {'fault' if fails == 1 else 'faults'}, {warns} {'warning' if warns == 1 else 'warnings'}"


def _describe_key(data: Path, settings: Settings, units: Sequence[Path] = UNITS) -> tuple[bool | None, str]:
    """What the keystore says of a stolen disk; the service's credential counts although this shell was not given it."""
    from kasmina_edge.safety.keystore import CREDENTIAL, SystemdCredential, choose_keystore

    kind, key_file = str(settings["safety.keystore"]), str(settings["safety.key_file"])
    unit = next((path.read_text(errors="replace") for path in units if path.is_file()), "")
    if kind in ("auto", "systemd") and not key_file and f"={CREDENTIAL}:" in unit:
        state = SystemdCredential(Path("/run/credentials/kasmina-edge.service")).describe(data)
    else:
        state = choose_keystore(data.absolute(), kind=kind, key_file=key_file).describe(data.absolute())
    return state.stolen_disk_readable, state.sentence


def _broker(settings: Settings) -> list[Finding]:
    from kasmina_edge.cli.agent_process import read_secret
    from kasmina_edge.doctor.broker import check_broker

    def connect(address: str) -> None:
        from kasmina_edge.transport.mqtt import MqttTransport

        transport = MqttTransport(
            address,
            f"{settings['device.id']}-doctor",
            username=settings["broker.username"] or None,
            password=read_secret(settings["broker.password_file"]),
            ca_file=settings["broker.ca_file"] or None,
            insecure=settings["broker.insecure"],
        )
        try:
            transport.connect(5.0)
        finally:
            transport.close()

    return check_broker(settings["broker.address"], connect)
