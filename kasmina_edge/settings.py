"""A device's settings and where each came from: defaults, ``kasmina.toml``, ``KASMINA_*``, flags - lowest first.

The file is looked for in the data folder, then in ``/etc/kasmina/``; the data folder's values are lower than the
system's, so that an operator's file wins over what enrolment wrote.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasmina_edge.errors import InputError

FILE_NAME = "kasmina.toml"
SYSTEM_FILE = Path("/etc/kasmina") / FILE_NAME
MAX_SETTINGS_BYTES = 64 * 1024

DEFAULTS: dict[str, Any] = {
    "device.id": "local",
    "device.root": "kasmina",
    "device.site": "main",
    "device.groups": ("all",),
    "device.profile": "x86-cpu",
    "device.engine": "",
    "device.accelerator": "",
    "device.experiment_id": "",
    "broker.address": "",
    "broker.username": "",
    "broker.password_file": "",
    "broker.ca_file": "",
    "broker.insecure": False,
    "agent.check_interval_s": 60.0,
    "agent.max_memory_mb": 256,
    "agent.max_open_files": 256,
    "agent.health_group": False,
    "alerts.clock_jump_s": 5.0,
    "alerts.cool_down_s": 600.0,
    "alerts.disk_free_mb": 64.0,
    "alerts.drift": 1.0,
    "alerts.memory_share": 0.9,
    "alerts.temperature_c": 80.0,
    "safety.key_file": "",
    "safety.keystore": "auto",
    "safety.require_external_key": False,
    "telemetry.outbox_mb": 16.0,
    "telemetry.window_frames": 60,
    "telemetry.window_s": 2.0,
    "telemetry.sample_every": 2,
    "telemetry.taps": True,
}


@dataclass(frozen=True)
class Setting:
    """One value and its source: ``default``, a path, a variable's name, or ``flag``."""

    value: Any
    source: str


class Settings:
    """Every setting by dotted name.

    >>> Settings.read(None, environ={}, flags={"device.id": "cam-1"})["device.id"]
    'cam-1'
    """

    def __init__(self, values: Mapping[str, Setting]) -> None:
        self._values = dict(values)

    @classmethod
    def read(
        cls,
        data_folder: Path | None,
        *,
        flags: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        system_file: Path = SYSTEM_FILE,
    ) -> Settings:
        """Merge all sources.

        Raises:
            InputError: A file is not TOML, a name is unknown, or a value has the wrong type or is out of range.
        """
        values = {name: Setting(value, "default") for name, value in DEFAULTS.items()}
        for path in (data_folder / FILE_NAME if data_folder else None, system_file):
            if path is not None and path.is_file():
                values.update(_from_file(path))
        for variable, text in (os.environ if environ is None else environ).items():
            name = _VARIABLES.get(variable)
            if name is not None:
                values[name] = Setting(_convert(name, _parse(name, text), variable), variable)
        for name, value in (flags or {}).items():
            if value is not None:
                values[name] = Setting(_convert(name, value, "flag"), "flag")
        return cls(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name].value

    def sources(self) -> dict[str, Setting]:
        """Each value with its source, for ``status --settings``."""
        return dict(sorted(self._values.items()))


def write_settings(path: Path, values: Mapping[str, Any]) -> bytes:
    """TOML text of ``values`` (dotted names), written for a person to edit later; returns the bytes written."""
    from kasmina_edge.storage import write_durable

    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, key = name.split(".")
        sections.setdefault(section, []).append(f"{key} = {_toml(_convert(name, value, 'settings'))}")
    text = "\n".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
    write_durable(path, text.encode())
    return text.encode()


_VARIABLES = {f"KASMINA_{name.replace('.', '_').upper()}": name for name in DEFAULTS}


def _from_file(path: Path) -> dict[str, Setting]:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(data) > MAX_SETTINGS_BYTES:
        raise InputError(f"{path}: {len(data)} bytes, at most {MAX_SETTINGS_BYTES} are read")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: not valid TOML ({exc})") from exc
    values: dict[str, Setting] = {}
    for section, entries in document.items():
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {section}: expected a [section], got a value")
        for key, value in entries.items():
            name = f"{section}.{key}"
            if name not in DEFAULTS:
                raise InputError(f"{path}: {name}: unknown setting")
            values[name] = Setting(_convert(name, value, str(path)), str(path))
    return values


def _parse(name: str, text: str) -> Any:
    default = DEFAULTS[name]
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


_WORD = re.compile(r"[a-z0-9-]{1,32}")
_ACCELERATOR = re.compile(r"(usb|pci)?(:\d{1,2})?")  # as contracts/profile.py's DEVICE_PATTERN
_WORDS = frozenset({"device.id", "device.site", "device.root"})
_ABOVE_ZERO = frozenset(
    {
        "agent.check_interval_s",
        "telemetry.outbox_mb",
        "telemetry.window_s",
        *(n for n in DEFAULTS if n[:7] == "alerts."),
    }
)
_AT_LEAST_ONE = frozenset(
    {"telemetry.window_frames", "telemetry.sample_every", "agent.max_memory_mb", "agent.max_open_files"}
)


def _convert(name: str, value: Any, source: str) -> Any:
    """The value in its setting's type and range."""
    value = _typed(name, value, source)
    expected = None
    if name == "device.accelerator" and not _ACCELERATOR.fullmatch(value):
        expected = 'usb, pci, :N, usb:N, pci:N, or "" for the first'
    elif name in _WORDS and not _WORD.fullmatch(value):
        expected = "1 to 32 of a-z, 0-9 and -"
    elif name in _ABOVE_ZERO and not value > 0:
        expected = "more than 0"
    elif name in _AT_LEAST_ONE and value < 1:
        expected = "at least 1"
    if expected is not None:
        raise InputError(f"{source}: {name}: expected {expected}, got {value!r}")
    return value


def _typed(name: str, value: Any, source: str) -> Any:
    default = DEFAULTS[name]
    if isinstance(default, tuple) and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, float) and number:
        return float(value)
    if isinstance(default, int) and not isinstance(default, bool) and isinstance(value, int) and number:
        return value
    if isinstance(default, str) and isinstance(value, str):
        return value
    raise InputError(f"{source}: {name}: expected {type(default).__name__}, got {value!r}")


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(json.dumps(v) for v in value) + "]"
    return json.dumps(value)
