"""The text of the agent's systemd unit: notify and watchdog, a brake on restarts, and as few rights as it works with.

Directives are those of systemd.service(5), systemd.exec(5) and systemd.resource-control(5). What a system lacks is not
written, because an unknown line is a warning at every boot: ``RestartSteps=`` came with systemd 254.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Scope = Literal["system", "user"]
Accelerator = Literal["", "usb", "pci"]

STATE_PARENT = Path("/var/lib")
CREDENTIAL = "kasmina-kek"
RESTART_STEPS_SINCE = 254
WATCHDOG_S = 60
STOP_S = 30  # the agent ends itself after 20

_SANDBOX = """\
ProtectSystem=strict
PrivateTmp=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
CapabilityBoundingSet=
AmbientCapabilities=
KeyringMode=private"""

_WITHOUT_ROOT = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077"""


@dataclass(frozen=True)
class Credential:
    """The key-encryption key as systemd hands it over; see systemd-creds(1).

    Attributes:
        path: Where it lies.
        encrypted: Whether systemd opens it (bound to this machine or its TPM 2).
    """

    path: Path
    encrypted: bool


@dataclass(frozen=True)
class UnitPlan:
    """Everything that the unit depends on.

    Attributes:
        command: What is run, without its options.
        data: The data folder.
        scope: A unit of the system, or of one user.
        run_as: A user of the system; empty: one that systemd makes (``DynamicUser=``).
        accelerator: Which devices are let in.
        memory_mb: The kernel ends the agent above this.
        systemd: Its version, 0 where it is not known.
        credential: The key-encryption key, where there is one.
        read_home: The program lies in a home folder.
        jit: An engine here writes machine code at run time, as OpenVINO does.
    """

    command: tuple[str, ...]
    data: Path
    scope: Scope = "system"
    run_as: str = ""
    accelerator: Accelerator = ""
    memory_mb: int = 512
    systemd: int = 0
    credential: Credential | None = None
    read_home: bool = False
    jit: bool = False
    environment: dict[str, str] = field(default_factory=lambda: {"MALLOC_ARENA_MAX": "2"})


def unit_text(plan: UnitPlan) -> str:
    """The unit file."""
    start = (*plan.command, "run", "--data", str(plan.data), "--wait-for-broker", "--json")
    restart = ["RestartSteps=8", "RestartMaxDelaySec=300"] if plan.systemd >= RESTART_STEPS_SINCE else []
    lines = [
        "# Written by `kasmina-edge service install`; `kasmina-edge service remove` takes it back.",
        "[Unit]",
        "Description=Kasmina edge agent: telemetry out, signed updates in",
        *(["Wants=network-online.target", "After=network-online.target"] if plan.scope == "system" else []),
        "# Never give up on a device that nobody can reach; restarts are braked below and by the agent itself.",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in start)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(plan.environment.items())),
        f"WatchdogSec={WATCHDOG_S}",
        "Restart=on-failure",
        "RestartSec=2",
        *restart,
        f"TimeoutStopSec={STOP_S}",
        f"MemoryMax={plan.memory_mb}M",
        "TasksMax=64",
        "LimitNOFILE=1024",
        "SyslogIdentifier=kasmina-edge",
        *_owner(plan),
        f"MemoryDenyWriteExecute={'no' if plan.jit else 'yes'}",
        *_WITHOUT_ROOT.splitlines(),
        *(_SANDBOX.splitlines() if plan.scope == "system" else []),
        *_devices(plan),
        f"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX{' AF_NETLINK' if plan.accelerator == 'usb' else ''}",
        *_credential(plan),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if plan.scope == 'system' else 'default.target'}",
        "",
    ]
    return "\n".join(lines)


def _owner(plan: UnitPlan) -> list[str]:
    """Whose process it is, and where it may write."""
    if plan.scope == "user":
        return []
    lines = [f"User={plan.run_as}"] if plan.run_as else ["DynamicUser=yes"]
    lines.append(f"ProtectHome={'read-only' if plan.read_home else 'yes'}")
    if plan.data.parent == STATE_PARENT:
        return [*lines, f"StateDirectory={_escaped(plan.data.name)}", "StateDirectoryMode=0700"]
    return [*lines, f"ReadWritePaths={_quoted(str(plan.data))}"]


def _devices(plan: UnitPlan) -> list[str]:
    """An accelerator that was asked for, and no other device."""
    if plan.scope == "user":
        return []
    if plan.accelerator == "usb":  # the whole bus: the device comes back under another id after its first use
        return ["DevicePolicy=closed", "DeviceAllow=char-usb_device rw", "SupplementaryGroups=plugdev"]
    if plan.accelerator == "pci":
        return ["DevicePolicy=closed", "DeviceAllow=char-apex rw", "SupplementaryGroups=apex"]
    return ["PrivateDevices=yes", "PrivateUsers=yes"]


def _credential(plan: UnitPlan) -> list[str]:
    if plan.credential is None:
        return []
    verb = "LoadCredentialEncrypted" if plan.credential.encrypted else "LoadCredential"
    return [f"{verb}={CREDENTIAL}:{_escaped(str(plan.credential.path))}"]


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word as systemd.syntax(7) reads it: no specifier and no separator in it."""
    text = _escaped(word)
    if all(c.isalnum() or c in "%$-_./=:+@," for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
