"""``status`` and ``top``: what runs here, from the data folder and from the agent's own answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from kasmina_edge.cli.output import console, emit, grid, rows_table, size_text
from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines.registry import is_simulated
from kasmina_edge.errors import InputError, KasminaError, LinkError, LockedError
from kasmina_edge.service.health_socket import SOCKET_NAME, ask
from kasmina_edge.settings import Settings
from kasmina_edge.slots import SlotStore
from kasmina_edge.storage import hold_lock
from kasmina_edge.updates.trust import TrustStore

DataOption = Annotated[Path, typer.Option("--data", envvar="KASMINA_DATA", help="This device's data folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
DEFAULT_DATA = Path("kasmina-data")
HEALTHY = ("ok", "starting")


def status(
    data: DataOption = DEFAULT_DATA,
    settings: Annotated[bool, typer.Option("--settings", help="Every setting and where it came from.")] = False,
    health: Annotated[
        bool, typer.Option("--health", help="Only the agent's answer; exit 0 when it works, 1 when not, 5 when none.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What runs here, what ran before, why the last update ended as it did, and how the agent is."""
    require_access(data)
    if settings:
        values = Settings.read(data).sources()
        table = grid("", ("setting", "value", "from"), [(n, str(s.value), s.source) for n, s in values.items()])
        emit({n: {"value": s.value, "from": s.source} for n, s in values.items()}, as_json=as_json, table=table)
        return
    answer = _asked(data)
    if health:
        _health(data, answer, as_json=as_json)
        return
    if not (data / "slots").is_dir():
        raise InputError(f"{data}: nothing is deployed here", "Deploy a bundle with `kasmina-edge deploy`.")
    value, rows = _folder(data)
    value["engine"], row = _engine(Settings.read(data))
    rows.append(row)
    value["agent"] = answer
    told = agent_rows(answer) if answer is not None else [("agent", _why_silent(data))]
    rows += [each for each in told if each[0] != row[0]]
    emit(value, as_json=as_json, table=rows_table(rows))


def top(
    data: DataOption = DEFAULT_DATA,
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a look.")] = False,
    count: Annotated[int, typer.Option("--count", min=0, help="Stop after so many looks; 0: never.")] = 0,
) -> None:
    """Watch the running agent until Ctrl-C."""
    require_access(data)
    if ask(data / SOCKET_NAME) is None:
        raise _nobody(data)
    watch(lambda: _asked(data), every_s=every_s, count=count, as_json=as_json)


def watch(
    look: Callable[[], Mapping[str, Any] | None],
    *,
    every_s: float,
    count: int,
    as_json: bool,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show what ``look`` gives, ``count`` times (0: until Ctrl-C), ``every_s`` apart; None: the agent is gone."""
    from rich.live import Live

    def picture() -> RenderableType:
        seen = look()
        return rows_table(agent_rows(seen) if seen is not None else [("agent", "not running")])

    shown = 0
    try:
        if as_json:
            while True:
                emit(dict(look() or {"status": "not running"}), as_json=True)
                shown += 1
                if shown == count:
                    return
                pause(every_s)
        with Live(picture(), console=console(), auto_refresh=False) as live:
            while True:
                shown += 1
                if shown == count:
                    return
                pause(every_s)
                live.update(picture(), refresh=True)
    except KeyboardInterrupt:
        return


def agent_rows(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The agent's answer in rows; whatever it leaves out is a dash."""
    active, trial, box = answer.get("active") or {}, answer.get("trial") or {}, answer.get("outbox") or {}
    link, own, update = answer.get("broker") or {}, answer.get("process") or {}, answer.get("update") or {}
    checked, engine = answer.get("last_check_age_s"), answer.get("engine") or {}
    rows = [
        ("agent", f"{answer.get('status', '-')}, process {answer.get('pid', '-')}, up {_span(answer.get('uptime_s'))}"),
        ("device", f"{answer.get('device', '-')}, start {_dash(answer.get('boot'))} of this folder"),
        ("active", _named(active, "nothing")),
        ("trial", _named(trial, "none")),
        ("update", f"{update.get('status', '-')}: {update.get('reason', '')}".rstrip(": ")),
        ("checked", f"{_span(checked)} ago" if checked is not None else "not yet"),
        ("broker", f"{link.get('address', '-')}, {'connected' if link.get('connected') else 'not connected'}"),
        (
            "outbox",
            f"{_dash(box.get('entries'))} waiting, {_bytes(box.get('bytes'))}, {_dash(box.get('dropped'))} dropped",
        ),
        (
            "process",
            f"{_bytes(own.get('rss_bytes'))} memory, {_dash(own.get('open_files'))} files, "
            f"{_dash(own.get('threads'))} threads",
        ),
    ]
    if engine:
        rows.append(_engine_row(engine))
    rows += [("problem", str(text)) for text in answer.get("problems") or ()]
    rows += [("alert", f"{a.get('severity', '')}: {a.get('text', '')}") for a in answer.get("alerts") or ()]
    return rows


def require_access(data: Path, *, access: Callable[[Path, int], bool] = os.access) -> None:
    """A service's folder is closed to other users.

    Raises:
        InputError: It is there, or may be, and this user may not look into it.
    """
    if os.path.lexists(data) and not access(data, os.R_OK | os.X_OK):
        raise InputError(f"{data} may not be read by this user", "Run it again with sudo: the service's user owns it.")


def _folder(data: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What the data folder says without an agent."""
    store = SlotStore(data, clock=time.time)
    record = store.record()
    trust = TrustStore(data / "trust", clock=time.time)
    found = {slot: store.manifest(slot) for slot in ("a", "b")}
    rows = []
    for slot, manifest in found.items():
        mark = "active" if record.active == slot else "trial" if record.trial == slot else "previous"
        if manifest and mark == "previous" and record.previous != slot:
            mark = "quarantined" if store.quarantined(manifest.content_digest()) else "taken back"
        rows.append((f"slot {slot.upper()}", f"{_manifest_line(manifest)}  ({mark})" if manifest else "empty"))
    rows.append(("trust", f"{trust.kind or 'nothing pinned'} {trust.key_id()[:12] if trust.kind else ''}".rstrip()))
    active = found.get(record.active) if record.active else None
    if active is not None:
        rows.append(("floor", f"release {trust.floor(active.name)}"))
    failure = record.last_failure
    if failure is not None:
        rows.append(("last failure", f"{failure.bundle}: {failure.reason}"))
    value = {
        "active": None
        if active is None
        else {"slot": record.active, "id": active.id, "release": active.release, "digest": active.digest()},
        "trial": record.trial,
        "slots": {slot: m.id if m else None for slot, m in found.items()},
        "trust": trust.kind,
        "boot": record.boot,
        "last_failure": None if failure is None else {"bundle": failure.bundle, "reason": failure.reason},
    }
    return value, rows


def _engine(settings: Settings) -> tuple[dict[str, Any], tuple[str, str]]:
    """Which engines are tried, in order, and whether the one that is taken only predicts its time."""
    try:
        target = load_profile(settings["device.profile"]).chosen(engine=settings["device.engine"])
    except KasminaError as exc:
        return {"names": [], "simulated": False}, ("engine", f"unknown: {exc.message}")
    found = {"names": list(target.engines), "simulated": is_simulated(target.engines[0])}
    return found, _engine_row({**found, "profile": target.name})


def _asked(data: Path) -> dict[str, Any] | None:
    """The agent's answer, and whether the engine it names only predicts its time: agents import no engine to tell."""
    answer = ask(data / SOCKET_NAME)
    engine = answer.get("engine") if answer is not None else None
    if answer is None or not isinstance(engine, dict):
        return answer
    names = engine.get("names") or [""]
    return {**answer, "engine": {**engine, "simulated": is_simulated(str(names[0]))}}


def _engine_row(engine: Mapping[str, Any]) -> tuple[str, str]:
    target = engine.get("profile", "-")
    said = " then ".join(map(str, engine.get("names") or ("-",)))
    said += f", simulated: times are predicted for {target}, not measured" if engine.get("simulated") else ""
    return "engine", f"{said} (profile {target})"


def _health(data: Path, answer: dict[str, Any] | None, *, as_json: bool) -> None:
    """For a container's or a supervisor's health check."""
    if answer is None:
        if _is_held(data):
            raise KasminaError(
                f"{data}: an agent holds this folder and does not answer: it hangs, or is just starting",
                "Its log says where it is; a service's watchdog starts it again by itself.",
            )
        raise _nobody(data)
    emit(answer, as_json=as_json, table=rows_table(agent_rows(answer)))
    if answer.get("status") not in HEALTHY:
        problems = "; ".join(map(str, answer.get("problems") or ())) or "see the lines above"
        if as_json:
            raise typer.Exit(1)
        raise KasminaError(f"the agent is {answer.get('status')}: {problems}", "Its log says more.")


def _why_silent(data: Path) -> str:
    return "holds this folder and does not answer: it hangs, or is just starting" if _is_held(data) else "not running"


def _is_held(data: Path) -> bool:
    """Whether a process holds the agent's lock."""
    if not (data / "agent.lock").exists():
        return False
    try:
        with hold_lock(data / "agent.lock", shared=True):
            return False
    except LockedError:
        return True


def _nobody(data: Path) -> LinkError:
    return LinkError(
        f"{data / SOCKET_NAME}: no agent answers",
        f"Start it: `kasmina-edge run --data {data}`, or `kasmina-edge service install`.",
    )


def _manifest_line(manifest: BundleManifest) -> str:
    grafts = ", ".join(f"{g.blueprint}@{g.site}" for g in manifest.grafts) or "no grafts"
    return f"{manifest.id}  release {manifest.release}  {short_digest(manifest.digest())}  {grafts}"


def _named(found: Mapping[str, Any], nothing: str) -> str:
    if not found:
        return nothing
    grafts = ", ".join(found.get("grafts") or ())
    return f"{found.get('id', '-')}, release {_dash(found.get('release'))}{f', {grafts}' if grafts else ''}"


def _dash(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _bytes(value: object) -> str:
    return size_text(value) if isinstance(value, int) else "-"


def _span(seconds: object) -> str:
    """``42 s``, ``7 min``, ``3 h 5 min`` or ``12 d 3 h``."""
    if not isinstance(seconds, int | float):
        return "-"
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
