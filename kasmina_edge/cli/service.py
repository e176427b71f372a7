"""The agent as a systemd service: install, remove, show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kasmina_edge.cli.output import console, emit, plain, rows_table
from kasmina_edge.errors import InputError
from kasmina_edge.service.installing import Host, install, plan_unit, remove
from kasmina_edge.service.unit import Scope, UnitPlan, unit_text

app = typer.Typer(help="Run this device's agent as a systemd service.", no_args_is_help=True)

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The enrolled data folder.", show_default="/var/lib/kasmina; ~/kasmina-data"),
]
UserOption = Annotated[bool, typer.Option("--user", help="A service of your own, without root.")]
AsOption = Annotated[str, typer.Option("--as", help="A user of this system; left out: one that systemd makes.")]
AcceleratorOption = Annotated[str, typer.Option("--accelerator", help="Let the Edge TPU in: usb or pci.")]
MemoryOption = Annotated[int, typer.Option("--memory-mb", min=128, help="The kernel ends the agent above this.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@app.command("install")
def install_command(
    data: DataOption = None,
    user: UserOption = False,
    run_as: AsOption = "",
    accelerator: AcceleratorOption = "",
    memory_mb: MemoryOption = 512,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it now.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a hardened unit with watchdog, enable it and start it."""
    host = Host()
    plan = _plan(host, data, user=user, run_as=run_as, accelerator=accelerator, memory_mb=memory_mb)
    if dry_run:
        _print(host, plan, as_json=as_json)
        return
    path, left = install(host, plan, start=start)
    rows = [("unit", str(path)), ("data folder", str(plan.data)), *(("next", step) for step in left)]
    rows.append(("watch it", "kasmina-edge top" if plan.scope == "user" else f"kasmina-edge top --data {plan.data}"))
    if not as_json:
        console().print(plain(f"Installed {path.name}"))
    emit({"unit": str(path), "data": str(plan.data), "next": left}, as_json=as_json, table=rows_table(rows))


@app.command("remove")
def remove_command(user: UserOption = False, as_json: JsonOption = False) -> None:
    """Stop the service and delete its unit; the data folder stays."""
    host, scope = Host(), _scope(user)
    path = remove(host, scope)
    text = f"Removed {path}; the data folder stays." if path else f"{host.unit_path(scope)}: nothing to remove"
    emit({"removed": str(path) if path else None}, as_json=as_json, table=text)


@app.command("show")
def show_command(
    data: DataOption = None,
    user: UserOption = False,
    run_as: AsOption = "",
    accelerator: AcceleratorOption = "",
    memory_mb: MemoryOption = 512,
    as_json: JsonOption = False,
) -> None:
    """Print the unit that is installed, or that would be."""
    host = Host()
    path = host.unit_path(_scope(user))
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        _write(text, str(path), installed=True, as_json=as_json)
        return
    _print(
        host,
        _plan(host, data, user=user, run_as=run_as, accelerator=accelerator, memory_mb=memory_mb),
        as_json=as_json,
    )


def _plan(host: Host, data: Path | None, *, user: bool, run_as: str, accelerator: str, memory_mb: int) -> UnitPlan:
    if accelerator not in ("", "usb", "pci"):
        raise InputError(f"--accelerator {accelerator}: expected usb or pci")
    if user and run_as:
        raise InputError("--user and --as contradict each other", "Leave one of them out.")
    return plan_unit(
        host,
        data=data,
        scope=_scope(user),
        run_as=run_as,
        accelerator=accelerator,  # type: ignore[arg-type]
        memory_mb=memory_mb,
    )


def _scope(user: bool) -> Scope:
    return "user" if user else "system"


def _print(host: Host, plan: UnitPlan, *, as_json: bool) -> None:
    _write(unit_text(plan), str(host.unit_path(plan.scope)), installed=False, as_json=as_json)


def _write(text: str, path: str, *, installed: bool, as_json: bool) -> None:
    """The unit as it is: no colours, no folding, so that it can go into a file."""
    if as_json:
        emit({"unit": path, "installed": installed, "text": text}, as_json=True)
        return
    if sys.stdout.isatty():
        console(stderr=True).print(plain(f"{path} ({'installed' if installed else 'not installed'})"))
    sys.stdout.write(text)
