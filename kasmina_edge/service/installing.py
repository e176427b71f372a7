"""Putting the unit in its place and taking it away again; what is there decides, and is passed in."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kasmina_edge.errors import EngineError, InputError, KasminaError
from kasmina_edge.service.unit import CREDENTIAL, Accelerator, Credential, Scope, UnitPlan, unit_text
from kasmina_edge.settings import FILE_NAME, Settings
from kasmina_edge.storage import remove_file, write_durable

UNIT_NAME = "kasmina-edge.service"
SYSTEM_DATA = Path("/var/lib/kasmina")
_VERSION = re.compile(r"systemd (\d+)")
_RUN_WITHIN_S = 60.0


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    text: str


def run_command(command: Sequence[str]) -> Ran:
    """Run a program without a shell; one that is missing ends with 127."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_RUN_WITHIN_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Ran(127, str(exc))
    return Ran(done.returncode, (done.stdout + done.stderr).strip())


@dataclass(frozen=True)
class Host:
    """The machine as the installer sees it.

    Attributes:
        root: Where its file tree begins.
        user_id: Who installs.
        home: That user's home folder.
        run: Runs a program.
        program: The interpreter, and every folder it must be able to read.
        jit: Whether OpenVINO is installed: it compiles at run time.
    """

    root: Path = Path("/")
    user_id: int = field(default_factory=os.geteuid)
    home: Path = field(default_factory=Path.home)
    run: Callable[[Sequence[str]], Ran] = run_command
    program: tuple[Path, ...] = field(
        default_factory=lambda: (
            Path(sys.executable),
            Path(sys.executable).resolve(),
            Path(sys.prefix),
            Path(__file__).resolve().parents[1],
        )
    )
    jit: bool = field(default_factory=lambda: importlib.util.find_spec("openvino") is not None)

    def at(self, path: Path | str) -> Path:
        """An absolute path of this machine in ``root``."""
        return self.root / str(path).lstrip("/")

    def systemd_version(self) -> int:
        """0 where there is none."""
        found = _VERSION.search(self.run(["systemctl", "--version"]).text)
        return int(found[1]) if found else 0

    def systemd_runs(self) -> bool:
        """As sd_booted(3)."""
        return self.at("/run/systemd/system").is_dir()

    def unit_path(self, scope: Scope, name: str = UNIT_NAME) -> Path:
        """Where a unit of this scope lies."""
        return self.at("/etc/systemd/system") / name if scope == "system" else self.home / ".config/systemd/user" / name


def plan_unit(
    host: Host,
    *,
    data: Path | None = None,
    scope: Scope = "system",
    run_as: str = "",
    accelerator: Accelerator = "",
    memory_mb: int = 512,
) -> UnitPlan:
    """What the unit of this machine holds."""
    folder = (data or (SYSTEM_DATA if scope == "system" else host.home / "kasmina-data")).absolute()
    return UnitPlan(
        command=(str(host.program[0]), "-m", "kasmina_edge"),
        data=folder,
        scope=scope,
        run_as=run_as,
        accelerator=accelerator,
        memory_mb=memory_mb,
        systemd=host.systemd_version(),
        credential=find_credential(host) if scope == "system" else None,
        read_home=any(_in_home(path) for path in host.program),
        jit=host.jit,
    )


def find_credential(host: Host) -> Credential | None:
    """The key-encryption key in the system's credential store, sealed before plain."""
    for folder, encrypted in (("credstore.encrypted", True), ("credstore", False)):
        for parent in ("/etc", "/usr/lib"):
            path = Path(parent) / folder / CREDENTIAL
            if host.at(path).is_file():
                return Credential(path, encrypted)
    return None


def install(host: Host, plan: UnitPlan, *, start: bool = True) -> tuple[Path, list[str]]:
    """Write the unit, and enable and start it where systemd runs.

    Returns:
        The unit's path, and what is left to do by hand.

    Raises:
        InputError: No rights, the folder is not enrolled, or the service's user could not read the program.
        EngineError: There is no systemd.
        KasminaError: systemd refused.
    """
    _refuse_without_rights(host, plan.scope)
    _refuse_what_cannot_run(host, plan)
    if not plan.systemd and not host.systemd_runs():
        raise EngineError(
            "there is no systemd on this machine",
            "Start `kasmina-edge run` from its own supervisor; `kasmina-edge status --health` is the health check.",
        )
    path = host.unit_path(plan.scope)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durable(path, unit_text(plan).encode(), 0o644)
    if not host.systemd_runs():
        return path, [
            f"systemd does not run here; where it does: {' '.join(_systemctl(plan.scope, 'enable', '--now'))}"
        ]
    _do(host, _systemctl(plan.scope, "daemon-reload", name=None))
    _do(host, _systemctl(plan.scope, "enable", *(["--now"] if start else [])))
    left = [] if start else [" ".join(_systemctl(plan.scope, "start"))]
    if plan.scope == "user":
        left.append("loginctl enable-linger    (so that it runs while nobody is logged in)")
    return path, left


def remove(host: Host, scope: Scope) -> Path | None:
    """Stop and disable the unit and delete its file; the data folder stays. None when there was none.

    Raises:
        InputError: No rights.
        KasminaError: systemd refused.
    """
    path = host.unit_path(scope)
    if not path.exists():
        return None
    _refuse_without_rights(host, scope)
    if host.systemd_runs():
        _do(host, _systemctl(scope, "disable", "--now"))
    remove_file(path)
    if host.systemd_runs():
        _do(host, _systemctl(scope, "daemon-reload", name=None))
    return path


def _refuse_without_rights(host: Host, scope: Scope) -> None:
    if scope == "system" and host.user_id != 0:
        raise InputError(
            f"{host.unit_path(scope)}: a service of the system is installed by root, this is user {host.user_id}",
            "Run it with sudo, or make it a service of your own with --user.",
        )


def _refuse_what_cannot_run(host: Host, plan: UnitPlan) -> None:
    """A unit that could only fail is not written."""
    folder = host.at(plan.data)
    if not (folder / FILE_NAME).is_file() or not Settings.read(folder, environ={})["broker.address"]:
        raise InputError(
            f"{plan.data}: this device is not enrolled here",
            f"Run `kasmina-edge fleet enroll` at the controller and copy its folder to {plan.data}.",
        )
    if plan.scope == "user":
        return
    if plan.run_as and shutil.which("id") and host.run(["id", "-u", plan.run_as]).code != 0:
        raise InputError(
            f"user {plan.run_as} is unknown here", f"Make it: useradd --system --no-create-home {plan.run_as}"
        )
    closed = next((p for p in map(_closed_folder, host.program) if p is not None), None)
    if closed is not None and plan.run_as != "root":
        raise InputError(
            f"{closed} is closed to other users, so that the service could not read the program inside it",
            "Install the program where every user can read it (python3 -m venv /opt/kasmina), or use --user.",
        )


def _closed_folder(path: Path) -> Path | None:
    """The first folder above ``path`` that users in general may not pass."""
    for folder in reversed(path.parents):
        try:
            if not folder.stat().st_mode & stat.S_IXOTH:
                return folder
        except OSError:
            return folder
    return None


def _in_home(path: Path) -> bool:
    return path.is_relative_to("/home") or path.is_relative_to("/root") or path.is_relative_to("/run/user")


def _systemctl(scope: Scope, *words: str, name: str | None = UNIT_NAME) -> list[str]:
    return ["systemctl", *(["--user"] if scope == "user" else []), *words, *([name] if name else [])]


def _do(host: Host, command: list[str]) -> None:
    ran = host.run(command)
    if ran.code != 0:
        said = ran.text.splitlines()[0] if ran.text else f"exit {ran.code}"
        raise KasminaError(f"`{' '.join(command)}` failed: {said}", "See `journalctl -xe`, then try again.")
