"""The controller's verbs: make a fleet, enrol devices, sign and publish, watch."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kasmina_edge.bundle import read_file
from kasmina_edge.cli.output import console, emit, grid, plain, rows_table, size_text
from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.contracts.change_plan import CaptureSampling, ChangePlan
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.errors import InputError, PlanError
from kasmina_edge.fleet.folder import FleetFolder, Limits, default_folder
from kasmina_edge.fleet.monitor import DeviceView
from kasmina_edge.fleet.repository import Published
from kasmina_edge.safety.alerts import Alert
from kasmina_edge.storage import write_durable

FleetOption = Annotated[
    Path | None, typer.Option("--fleet", help="The fleet folder.", show_default="~/.config/kasmina/fleet")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
OfflineOption = Annotated[Path | None, typer.Option("--offline-keys", help="Folder with the root and targets keys.")]
ToOption = Annotated[list[str] | None, typer.Option("--to", help="Device id or @group; again for more. Default @all.")]
app = typer.Typer(help="Sign, enrol, publish and watch a fleet.", no_args_is_help=True)


def register(program: typer.Typer) -> None:
    """Add the long-running verbs to the program."""
    from kasmina_edge.cli import captures, field, seeds

    captures.register(app)
    for verb in (field.frames, field.erasures, seeds.seeds):
        app.command()(verb)
    program.command()(controller)
    program.command()(monitor)


def open_fleet(folder: Path | None) -> FleetFolder:
    """The fleet in ``folder`` or in the default place."""
    return FleetFolder(folder or default_folder(), clock=time.time)


@app.command()
def init(
    fleet: FleetOption = None,
    offline_keys: OfflineOption = None,
    address: Annotated[str, typer.Option("--address", help="embedded, or mqtts://host:8883.")] = "embedded",
    site: Annotated[str, typer.Option("--site", help="Topic word of this site.")] = "main",
    as_json: JsonOption = False,
) -> None:
    """Make keys and metadata for a new fleet."""
    folder = fleet or default_folder()
    offline = offline_keys or folder.with_name(folder.name + "-offline-keys")
    made = FleetFolder.init(folder, offline_keys=offline, address=address, site=site, clock=time.time)
    rows = [
        ("fleet", str(folder)),
        (
            "broker",
            made.config.address
            + ("  (embedded, started by `kasmina-edge controller`)" if made.config.embedded else ""),
        ),
        ("offline keys", f"{offline}  root 2 of 3, targets 2 of 2: move them to a medium you can unplug"),
        ("next", "kasmina-edge fleet enroll DEVICE --data FOLDER"),
    ]
    value = {"fleet": str(folder), "address": made.config.address, "offline_keys": str(offline), "site": site}
    emit(value, as_json=as_json, table=rows_table(rows))


@app.command()
def enroll(
    device: Annotated[str, typer.Argument(help="a-z, 0-9 and -, at most 32.")],
    data: Annotated[Path, typer.Option("--data", help="The device's new data folder; copy it to the device.")],
    group: Annotated[list[str] | None, typer.Option("--group", help="Groups beside `all`.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="Hardware target.")] = "x86-cpu",
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a device its root, key, address and groups."""
    groups = tuple(dict.fromkeys(("all", *(group or ()))))
    entry = open_fleet(fleet).enroll(device, data, groups=groups, profile=profile)
    emit(
        {"device": device, "data": str(data), "public_key": entry.public_key, "groups": list(groups)},
        as_json=as_json,
        table=f"{device}: enrolled into {data} (key {entry.public_key[:12]}); start it with "
        f"`kasmina-edge run --data {data}`",
    )


@app.command()
def plan(
    host: Annotated[Path, typer.Argument(help="The host bundle that grafts may sit on.")],
    blueprint: Annotated[list[str], typer.Option("--blueprint", help="NAME or NAME@VERSION; again for more.")],
    site: Annotated[list[str], typer.Option("--site", help="Seed site; again for more.")],
    minimum_accuracy: Annotated[float, typer.Option(min=0.0, max=1.0, help="On the reference probes, 0 to 1.")] = 0.9,
    maximum_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Most the probes' accuracy may fall, 0 to 1.")
    ] = 0.02,
    maximum_parameters: Annotated[int, typer.Option(min=0, help="All grafts together.")] = 4096,
    live_frames: Annotated[
        int, typer.Option(help="Live frames compared before a commit; a trial waits up to 30 s for them. 0: none.")
    ] = 40,
    capture_frames: Annotated[int, typer.Option(help="Inputs a device may keep; 0: none.")] = 0,
    capture_bytes: Annotated[int, typer.Option(help="Bytes they may take.")] = 4_000_000,
    capture_days: Annotated[
        float | None, typer.Option(help="Days after which nothing more is kept, and what still waits is erased.")
    ] = None,
    capture_random: Annotated[
        int, typer.Option(help="Inputs a window that devices pick at random, without the app; 0: none.")
    ] = 0,
    capture_unsure: Annotated[int, typer.Option(help="More a window, from those below --capture-score.")] = 0,
    capture_score: Annotated[float, typer.Option(help="Top score below which the network is unsure, 0 to 1.")] = 0.6,
    capture_drifted: Annotated[int, typer.Option(help="More a window, while drift stands.")] = 0,
    capture_window: Annotated[float, typer.Option(help="Seconds of a window.")] = 60.0,
    fleet: FleetOption = None,
    offline_keys: OfflineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign what devices will accept on a host: kinds, sites, ceilings, probes, capture."""
    office = open_fleet(fleet)
    opened = read_file(host).manifest
    _require_plannable(opened, site, capture_frames, capture_random + capture_unsure + capture_drifted)
    limits = Limits(
        blueprints=_blueprints(blueprint),
        sites=tuple(site),
        minimum_accuracy=minimum_accuracy,
        maximum_loss=maximum_loss,
        maximum_parameters=maximum_parameters,
        live_frames=live_frames,
        capture_frames=capture_frames,
        capture_bytes=capture_bytes,
        capture_days=capture_days,
        capture_sampling=_sampling(capture_window, capture_random, capture_unsure, capture_score, capture_drifted),
    )
    drafted: ChangePlan = office.draft_plan(opened, limits)
    office.repository.set_plan(drafted, offline_folder(office, offline_keys))
    office.audit.append("plan_signed", bundle=drafted.bundle, serial=drafted.serial)
    value = drafted.model_dump(mode="json")
    emit(
        value,
        as_json=as_json,
        table=rows_table(_plan_rows(drafted)),
    )


def _require_plannable(host: BundleManifest, sites: list[str], frames: int, sampled: int) -> None:
    """Refuse what would sign, and then allow nothing.

    Raises:
        InputError: A bundle with grafts, a site that the host does not have, or sampling without a budget.
    """
    if host.grafts:
        raise InputError(f"{host.id}: carries grafts; a plan is for a host", "Name the host bundle that they sit on.")
    known = {site for model in host.models for site in model.sites}
    missing = [site for site in sites if known and site not in known]
    if missing:
        raise InputError(f"--site {missing[0]}: {host.id} has the sites {', '.join(sorted(known))}")
    if sampled and not frames:
        raise InputError("devices are to pick inputs, and may keep none", "Add --capture-frames N.")


def _plan_rows(plan: ChangePlan) -> list[tuple[str, str]]:
    """What a plan allows, for people."""
    health, capture = plan.health, plan.capture
    kept = "none"
    if capture is not None:
        days = f", {capture.max_days:g} days" if capture.max_days else ""
        kept = f"{capture.max_frames} frames, {size_text(capture.max_bytes)}{days}"
        kept += ", picked by devices too" if capture.sampling else ", only what apps offer"
    kinds = ", ".join(f"{name} v{'/'.join(map(str, versions))}" for name, versions in sorted(plan.blueprints.items()))
    return [
        ("plan", f"{plan.serial} for {plan.bundle}, signed; devices fetch it with their next check"),
        ("grafts", f"{kinds} at {', '.join(plan.sites)}; {plan.maximum_parameters} parameters in all"),
        ("probes", f"at least {health.minimum_accuracy:.1%}, at most {100 * health.maximum_loss:.1f} points lost"),
        ("capture", kept),
        ("erasures", str(len(plan.erasures)) if plan.erasures else "none"),
    ]


@app.command("publish")
def publish_command(
    bundle: Annotated[Path, typer.Argument(help="NAME-VERSION.kasmina")],
    to: ToOption = None,
    accept_anyway: Annotated[
        bool, typer.Option("--accept-anyway", help="Publish although its acceptance failed; goes to the audit log.")
    ] = False,
    fleet: FleetOption = None,
    offline_keys: OfflineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle for devices; a running controller sends it out."""
    publish(bundle, to=to, accept_anyway=accept_anyway, fleet=fleet, offline_keys=offline_keys, as_json=as_json)


def publish(
    bundle: Path,
    *,
    to: list[str] | None,
    fleet: Path | None,
    offline_keys: Path | None,
    accept_anyway: bool = False,
    as_json: bool = False,
) -> None:
    """What ``fleet publish`` and ``deploy --to`` do."""
    office = open_fleet(fleet)
    opened = read_file(bundle)
    offline = None if opened.manifest.grafts else offline_folder(office, offline_keys)
    others = {name for who in to or ["@all"] for name in office.repository.assigned(who)} - {opened.manifest.name}
    published = office.publish(opened, to=to or ["@all"], offline_keys=offline, accept_anyway=accept_anyway)
    _show_published(published, to or ["@all"], as_json=as_json)
    if others and not as_json:
        console(stderr=True).print(
            plain(
                f"Note: {', '.join(sorted(others))} is assigned there too. Apps that run it do not follow to "
                f"{opened.manifest.name} before they open the data folder again."
            )
        )


@app.command()
def withdraw(
    name: Annotated[str, typer.Argument(help="Bundle name, e.g. digits.")],
    to: ToOption = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the grafts back: ship the host's bytes under a new release number."""
    published = open_fleet(fleet).withdraw(name, to=to or ["@all"])
    _show_published(published, to or ["@all"], as_json=as_json)


def _show_published(published: Published, to: list[str], *, as_json: bool) -> None:
    manifest = published.manifest
    deltas = (
        "; ".join(
            f"{path} {size_text(size)} (from {parent})"
            for path, sizes in sorted(published.deltas.items())
            for parent, size in sizes.items()
        )
        or "none"
    )
    rows = [
        ("published", f"{manifest.id} as release {published.release} to {', '.join(to)}"),
        ("digest", short_digest(manifest.digest())),
        ("deltas", deltas),
    ]
    value = {
        "name": manifest.name,
        "version": manifest.version,
        "release": published.release,
        "digest": manifest.digest(),
        "to": to,
        "deltas": {k: dict(v) for k, v in published.deltas.items()},
        "files": dict(published.bytes_by_file),
    }
    emit(value, as_json=as_json, table=rows_table(rows))


@app.command("status")
def fleet_status(fleet: FleetOption = None, as_json: JsonOption = False) -> None:
    """What each device reported last."""
    office = open_fleet(fleet)
    views = {v.device: v for v in office.store().devices()}
    rows: list[tuple[str, ...]] = []
    value: dict[str, Any] = {}
    for device in office.config.devices:
        view = views.get(device.id)
        reported = view.reported if view else None
        if view is None or reported is None:
            rows.append((device.id, "never seen", "-", "-", "-", "-", "-", _alerts_told(view)))
            value[device.id] = None
            continue
        running = f"{reported.name} {reported.version}" if reported.name else "nothing"
        rows.append(
            (
                device.id,
                "online" if view.online else "offline",
                "-" if view.last_heard_s is None else f"{max(0.0, time.time() - view.last_heard_s):.0f} s ago",
                running,
                str(reported.release or "-"),
                short_digest(reported.digest or "-"),
                f"{reported.status}: {reported.reason}".rstrip(": "),
                _alerts_told(view),
            )
        )
        value[device.id] = {**json.loads(reported.to_bytes()), "online": view.online, "drift": view.drift}
        value[device.id]["alerts"] = [_alert_value(alert) for alert in view.alerts]
    emit(
        {"devices": value},
        as_json=as_json,
        table=grid("", ("device", "state", "heard", "runs", "release", "digest", "last update", "alerts"), rows),
    )


def _alerts_told(view: DeviceView | None) -> str:
    """The alerts of one device in a cell, critical ones first and with what they say."""
    alerts = sorted(view.alerts, key=lambda a: (a.severity != "critical", a.kind)) if view else []
    told = [f"{a.kind}: {a.message}" if a.severity == "critical" else a.kind for a in alerts]
    return "; ".join(told).replace("_", " ") or "-"


def _alert_value(alert: Alert) -> dict[str, Any]:
    """One alert for machines."""
    return {
        "device": alert.device,
        "kind": alert.kind,
        "severity": alert.severity,
        "message": alert.message,
        "value": alert.value,
        "limit": alert.limit,
    }


@app.command()
def acknowledge(
    device: Annotated[str, typer.Argument(help="Whose security alerts you have looked into.")],
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; again for more.")] = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let go the security alerts of a device; until then they stand, whatever the device says."""
    office = open_fleet(fleet)
    with contextlib.closing(office.store()) as store:
        stood = store.acknowledge(device, kind)
    if not stood:
        raise InputError(f"{device}: no security alert stands", "See `kasmina-edge fleet status`.")
    office.audit.append("alerts_acknowledged", device=device, kinds=list(stood))
    emit(
        {"device": device, "acknowledged": list(stood)},
        as_json=as_json,
        table=f"{device}: {', '.join(stood)} acknowledged; the audit log has it",
    )


def controller(
    fleet: FleetOption = None,
    ready_file: Annotated[Path | None, typer.Option("--ready-file", help="Written when the controller serves.")] = None,
    username: Annotated[str | None, typer.Option("--username", help="At the broker.")] = None,
    password_file: Annotated[Path | None, typer.Option("--password-file", help="Its password, one line.")] = None,
    ca_file: Annotated[Path | None, typer.Option("--ca-file", help="Who signed the broker's certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plain mqtt:// off loopback.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON log lines on a terminal too.")] = False,
) -> None:
    """Serve the fleet until stopped: publish metadata, answer requests, remember what devices say."""
    from kasmina_edge.cli.loglines import configure_lines
    from kasmina_edge.fleet.controller import Controller
    from kasmina_edge.fleet.presence import Presence, controller_will
    from kasmina_edge.service.signals import stop_on_signals
    from kasmina_edge.transport.broker import start_embedded
    from kasmina_edge.transport.mqtt import MqttTransport

    office = open_fleet(fleet)
    configure_lines("controller", as_json=as_json)
    stop, ready = stop_on_signals(), threading.Event()
    with contextlib.ExitStack() as stack:
        if office.config.embedded:
            port = int(office.config.address.rsplit(":", 1)[1])
            stack.enter_context(start_embedded(port, office.folder / "broker"))
        transport = MqttTransport(
            office.config.address,
            "controller",
            username=username,
            password=password_file.read_text().strip() if password_file else None,
            ca_file=ca_file,
            insecure=insecure,
            clean_start=False,
            will=controller_will(office.topics),
        )
        stack.callback(transport.close)
        presence = Presence(transport, office.topics, time.time)
        stack.callback(presence.leave)
        store = stack.enter_context(contextlib.closing(office.store()))
        served = Controller(office.folder / "repository", transport, office.topics, store, clock=time.time)
        transport.connect(10.0)
        if ready_file is not None:
            threading.Thread(target=_say_ready, args=(ready, ready_file, office.config.address), daemon=True).start()
        served.run(stop, ready=ready)


def _say_ready(ready: threading.Event, path: Path, address: str) -> None:
    """Write the ready file after the first whole publication."""
    ready.wait()
    write_durable(path, json.dumps({"address": address}).encode())


def monitor(
    fleet: FleetOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Redraw every second until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A picture of the fleet: drift, accuracy on check frames, alerts."""
    from rich.live import Live

    from kasmina_edge.fleet.monitor import fleet_alerts, fleet_table

    store = open_fleet(fleet).store()
    if as_json or not watch:
        views = store.devices()
        alerts = fleet_alerts(views, now=time.time())
        emit(
            {
                "devices": [_seen(v) for v in views],
                "alerts": [a.text for a in alerts],
                "raised": [_alert_value(a) for a in alerts],
            },
            as_json=as_json,
            table=fleet_table(views, now=time.time(), width=console().width),
        )
        return
    with Live(console=console(), refresh_per_second=2) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            live.update(fleet_table(store.devices(), now=time.time(), width=console().width))
            time.sleep(1.0)


def _seen(view: DeviceView) -> dict[str, Any]:
    """One device as the monitor sees it, for machines; None: not measured."""
    checked, right = view.checks
    return {
        "device": view.device,
        "online": view.online,
        "release": view.reported.release if view.reported else None,
        "drift": view.drift,
        "check_frames": checked,
        "check_accuracy": right / checked if checked else None,
        "last_heard_s": view.last_heard_s,
    }


def _sampling(window_s: float, share: int, unsure: int, score: float, drifted: int) -> CaptureSampling | None:
    """The rule that devices pick inputs by; None when they pick none."""
    if not (share or unsure or drifted):
        return None
    value = {"window_s": window_s, "frames": share, "low_score_frames": unsure, "drift_frames": drifted}
    try:
        return CaptureSampling.parse({**value, "low_score": score if unsure else None}, where="sampling")
    except PlanError as exc:
        raise InputError(exc.message, "Correct the --capture options.") from exc


def _blueprints(names: list[str]) -> dict[str, tuple[int, ...]]:
    allowed: dict[str, tuple[int, ...]] = {}
    for name in names:
        kind, _, version = name.partition("@")
        if version and not version.isdigit():
            raise InputError(f"--blueprint {name}: expected NAME or NAME@VERSION")
        allowed[kind] = (*allowed.get(kind, ()), int(version or 1))
    return allowed


def offline_folder(office: FleetFolder, given: Path | None) -> Path:
    """Where the root and targets keys are: as given, or beside the fleet folder."""
    return given or office.folder.with_name(office.folder.name + "-offline-keys")
