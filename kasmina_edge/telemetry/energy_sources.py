"""Where Linux shows energy or power: RAPL counters, hwmon and IIO sensors (INA2xx and the like). Nothing is guessed.

Sources: Documentation/power/powercap/powercap.rst (``energy_uj`` counts microjoules up to ``max_energy_range_uj`` and
begins anew), Documentation/hwmon/sysfs-interface.rst (``power*_input`` in microwatts, ``energy*_input`` in microjoules,
``in*`` in millivolts, ``curr*`` in milliamperes), Documentation/ABI/testing/sysfs-bus-iio (``in_power*_raw`` times
``_scale`` in milliwatts). Since CVE-2020-8694 (Lipp et al., PLATYPUS, IEEE S&P 2021) RAPL's counters are for root only.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from kasmina_edge.telemetry.hardware import small_text

MAX_BYTES = 256
_text = partial(small_text, most=MAX_BYTES)
MAX_FOLDERS = 64
_MOST_DIGITS = 20  # of a 64-bit counter
_NOT_THE_BOARD = ("bat", "ac", "ucsi", "amdgpu", "i915", "xe", "nouveau", "radeon", "nvme", "hidpp", "corsair")
_WHOLE_RAILS = ("vdd_in", "pom_5v_in", "vin", "in", "total", "total power", "5v_in")
RIGHT = (
    "Let one group read it, and only where you trust its members with other programs' secrets: "
    "`sudo chgrp kasmina FILE && sudo chmod 440 FILE` after each start (tmpfiles.d: `z FILE 0440 root kasmina`)."
)


@dataclass(frozen=True)
class EnergySource:
    """One counter or sensor.

    Attributes:
        name: As people read it: ``rapl package-0``, ``ina219 VDD_IN``.
        scope: What it takes in: ``whole package``, ``rail VDD_IN``.
        unit: "uJ": counts up; "uW": shows what is drawn now.
        read: The value now; None where it cannot be read.
        range_uj: Where a counter begins anew; None: not known.
    """

    name: str
    scope: str
    unit: Literal["uJ", "uW"]
    read: Callable[[], float | None]
    range_uj: int | None = None


@dataclass(frozen=True)
class Refused:
    """A source that is there and may not be read.

    Attributes:
        name: As of `EnergySource`.
        path: The file.
        reason: In a few words.
        next_step: What helps.
    """

    name: str
    path: Path
    reason: str
    next_step: str


@dataclass(frozen=True)
class Found:
    """What this machine shows.

    Attributes:
        sources: To be added up: they do not overlap. All of one kind.
        refused: Those that may not be read.
    """

    sources: tuple[EnergySource, ...]
    refused: tuple[Refused, ...] = ()

    @property
    def scope(self) -> str:
        """What all of them take in."""
        return " + ".join(dict.fromkeys(source.scope for source in self.sources))

    @property
    def names(self) -> str:
        """Their names."""
        return ", ".join(source.name for source in self.sources)


def find_sources(root: Path = Path("/"), *, problem: Callable[[Path], int] | None = None) -> Found:
    """The best kind that can be read: a sensor on the board's supply, then RAPL, then any other power sensor.

    Args:
        root: Where ``sys`` lies.
        problem: Tries to read a file, and gives the error's number or 0.
    """
    refused: list[Refused] = []
    sensors = [*_hwmon(root / "sys/class/hwmon"), *_iio(root / "sys/bus/iio/devices")]
    whole = [sensor for sensor in sensors if sensor.scope.removeprefix("rail ").lower() in _WHOLE_RAILS]
    counters = _rapl(root / "sys/class/powercap", refused, problem or _problem)
    chosen = whole[:1] or counters or sensors
    return Found(tuple(chosen), tuple(refused))


def _rapl(folder: Path, refused: list[Refused], problem: Callable[[Path], int]) -> list[EnergySource]:
    """Packages and memory; cores and graphics lie within a package, and ``psys`` and the MMIO twin count twice."""
    found = []
    for zone in _some(folder, "intel-rapl:*"):
        kind, path = _text(zone / "name") or zone.name, zone / "energy_uj"
        if not (kind.startswith("package") or kind == "dram") or not path.exists():
            continue
        name = f"rapl {kind}" if kind != "dram" else f"rapl dram {zone.name.split(':')[1]}"
        error = problem(path)
        if error == errno.EACCES:
            why = "energy_uj is for root only since CVE-2020-8694"
            refused.append(Refused(name, path, why, RIGHT.replace("FILE", str(path))))
        elif error or _whole(path) is None:
            refused.append(Refused(name, path, "it shows no number", "The kernel's powercap driver tells why: dmesg."))
        else:
            limit = _whole(zone / "max_energy_range_uj")
            scope = "whole package" if kind != "dram" else "memory"
            found.append(EnergySource(name, scope, "uJ", _reader(path), limit or None))
    return found


def _hwmon(folder: Path) -> list[EnergySource]:
    found: list[EnergySource] = []
    for monitor in _some(folder, "hwmon*"):
        chip = _text(monitor / "name") or monitor.name
        if chip.lower().startswith(_NOT_THE_BOARD):
            continue
        counted = [*_channels(monitor, chip, "energy", "uJ"), *_channels(monitor, chip, "power", "uW")]
        found += counted or _products(monitor, chip)
    return found


def _channels(monitor: Path, chip: str, quantity: str, unit: Literal["uJ", "uW"]) -> list[EnergySource]:
    found = []
    for path in _some(monitor, f"{quantity}[0-9]*_input"):
        if _whole(path) is not None:
            label = _text(path.with_name(path.name.replace("_input", "_label"))) or path.name.split("_")[0]
            found.append(EnergySource(f"{chip} {label}", f"rail {label}", unit, _reader(path)))
    return found


def _products(monitor: Path, chip: str) -> list[EnergySource]:
    """Chips that show voltage and current and leave the product to the reader (INA3221)."""
    found = []
    for current in _some(monitor, "curr[0-9]*_input"):
        number = current.name.removeprefix("curr").removesuffix("_input")
        voltage = monitor / f"in{number}_input"
        if _whole(current) is not None and _whole(voltage) is not None:
            label = _text(monitor / f"in{number}_label") or f"channel {number}"
            found.append(EnergySource(f"{chip} {label}", f"rail {label}", "uW", _product(voltage, current)))
    return found


def _product(voltage: Path, current: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        mv, ma = _whole(voltage), _whole(current)
        return None if mv is None or ma is None else float(mv * ma)

    return read


def _iio(folder: Path) -> list[EnergySource]:
    found = []
    for device in _some(folder, "iio:device*"):
        chip = _text(device / "name") or device.name
        for path in _some(device, "in_power*_raw"):
            scale = _real(path.with_name(path.name.replace("_raw", "_scale")))
            if _whole(path) is not None and scale is not None and scale > 0:
                label = path.name.removeprefix("in_").removesuffix("_raw")
                found.append(EnergySource(f"{chip} {label}", f"rail {label}", "uW", _scaled(path, scale * 1000.0)))
    return found


def _scaled(path: Path, factor: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = _whole(path)
        return None if value is None else value * factor

    return read


def _reader(path: Path) -> Callable[[], float | None]:
    return lambda: _whole(path)


def _some(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(folder.glob(pattern))[:MAX_FOLDERS]
    except OSError:
        return


def _problem(path: Path) -> int:
    """The error that reading gives; 0 where it is read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        return errno.EACCES if exc.errno in (errno.EACCES, errno.EPERM) else exc.errno or errno.EIO
    try:
        os.read(handle, MAX_BYTES)
    except OSError as exc:
        return errno.EACCES if exc.errno in (errno.EACCES, errno.EPERM) else exc.errno or errno.EIO
    finally:
        os.close(handle)
    return 0


def _whole(path: Path) -> int | None:
    text = _text(path)
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        return None
    return int(text)


def _real(path: Path) -> float | None:
    try:
        value = float(_text(path))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
