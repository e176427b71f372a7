"""What the operating system shows of the hardware: memory, temperatures, throttling. Linux; nothing else is guessed.

Every file is read through a bound and without waiting; one that is missing, unreadable or odd leaves its value not
measured. Sources: the kernel's Documentation/ABI for ``thermal``, ``cpufreq`` and ``hwmon``; the gasket driver's
``/sys/class/apex/apex_N/temp`` (thousandths of a degree); Raspberry Pi's ``get_throttled`` word, which the firmware
driver shows in sysfs and ``/dev/vcio`` answers as property 0x00030046 of the mailbox (raspberrypi/firmware wiki).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from kasmina_edge.contracts.record import HardwareContext

MAX_BYTES = 4096
MAX_FOLDERS = 64
LEAST_C, MOST_C = -60.0, 200.0
"""Sensors that are not connected say -273 or 255."""
_UNDER_VOLTAGE, _HELD_DOWN = 0x1, 0x2 | 0x4 | 0x8  # of get_throttled: power; clock capped, throttled, soft limit
_MAILBOX_CALL = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8  # _IOWR(100, 0, char *)
_GET_THROTTLED = 0x0003_0046
_MOST_DIGITS = 15  # what every reader of a record holds exactly
_COOLING = ("processor", "cpufreq", "cpu")

Mailbox = Callable[[], int | None]


def ask_firmware(device: str = "/dev/vcio") -> int | None:
    """Raspberry Pi's throttling word by the firmware's mailbox; None where there is none, or it may not be asked."""
    try:
        import fcntl

        handle = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except (ImportError, OSError):
        return None
    try:
        message = bytearray(struct.pack("<8I", 32, 0, _GET_THROTTLED, 4, 4, 0, 0, 0))
        fcntl.ioctl(handle, _MAILBOX_CALL, message, True)
        size, answered, tag, _, _, word, *_ = struct.unpack("<8I", message)
        return word if size == 32 and answered == 0x8000_0000 and tag == _GET_THROTTLED else None
    except OSError:
        return None
    finally:
        os.close(handle)


class HardwareReader:
    """Reads the hardware context.

    Args:
        root: Where ``sys`` and ``proc`` lie.
        mailbox: Asks the firmware where sysfs has no ``get_throttled``.
    """

    def __init__(self, root: Path = Path("/"), *, mailbox: Mailbox | None = ask_firmware) -> None:
        self._sys, self._proc = root / "sys", root / "proc"
        self._mailbox = mailbox
        self._trips: int | None = None

    def read(self) -> HardwareContext:
        """What can be read now; latencies are the collector's to add."""
        word = self._throttled_word()
        rolled = _table(self._proc / "self" / "smaps_rollup")
        status = _table(self._proc / "self" / "status")
        memory = _table(self._proc / "meminfo")
        return HardwareContext(
            rss_bytes=rolled.get("Rss", status.get("VmRSS")),
            pss_bytes=rolled.get("Pss"),
            available_bytes=memory.get("MemAvailable"),
            temperature_c=_hottest(self._sys / "class" / "thermal", "thermal_zone*"),
            accelerator_temperature_c=_hottest(self._sys / "class" / "apex", "apex_*"),
            throttled=self._throttled(word),
            under_voltage=self._under_voltage(word),
            frequency_share=self._frequency_share(),
        )

    def _throttled_word(self) -> int | None:
        for path in _some(self._sys / "devices" / "platform", "soc*/*firmware/get_throttled"):
            text = small_text(path)
            try:
                return int(text, 16) if text else None
            except ValueError:
                return None
        return self._mailbox() if self._mailbox is not None else None

    def _throttled(self, word: int | None) -> bool | None:
        """Now: by the firmware's word, by a processor's cooling device, or by a count of trips that rose."""
        told = [] if word is None else [bool(word & _HELD_DOWN)]
        for device in _some(self._sys / "class" / "thermal", "cooling_device*"):
            if any(name in small_text(device / "type").lower() for name in _COOLING):
                state = _number(device / "cur_state")
                told += [] if state is None else [state > 0]
        counts = [
            count
            for path in _some(self._sys / "devices" / "system" / "cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count")
            if (count := _number(path)) is not None
        ]
        if counts:
            before, self._trips = self._trips, sum(counts)
            told.append(before is not None and self._trips > before)
        return any(told) if told else None

    def _under_voltage(self, word: int | None) -> bool | None:
        if word is not None:
            return bool(word & _UNDER_VOLTAGE)
        for monitor in _some(self._sys / "class" / "hwmon", "hwmon*"):
            if small_text(monitor / "name") == "rpi_volt":
                alarm = _number(monitor / "in0_lcrit_alarm")
                return None if alarm is None else alarm > 0
        return None

    def _frequency_share(self) -> float | None:
        shares = []
        for policy in _some(self._sys / "devices" / "system" / "cpu" / "cpufreq", "policy*"):
            now, most = _number(policy / "scaling_cur_freq"), _number(policy / "cpuinfo_max_freq")
            if now is not None and most is not None and most > 0 and now >= 0:
                shares.append(now / most)
        return min(shares) if shares else None


def _some(folder: Path, pattern: str) -> Iterator[Path]:
    """The first paths of a pattern, in order."""
    try:
        yield from sorted(folder.glob(pattern))[:MAX_FOLDERS]
    except OSError:
        return


def _hottest(folder: Path, pattern: str) -> float | None:
    found = [
        value / 1000.0
        for place in _some(folder, pattern)
        if (value := _number(place / "temp")) is not None and LEAST_C <= value / 1000.0 <= MOST_C
    ]
    return max(found) if found else None


def small_text(path: Path, most: int = MAX_BYTES) -> str:
    """The text of a small file of the system, ``most`` bytes of it; empty where it cannot be read at once."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(handle, most).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(handle)


def _number(path: Path) -> int | None:
    text = small_text(path)
    try:
        return int(text) if len(text) <= _MOST_DIGITS else None
    except ValueError:
        return None


def _table(path: Path) -> dict[str, int]:
    """``Name:  123 kB`` lines of procfs, in bytes."""
    found = {}
    for line in small_text(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit() and len(words[0]) < _MOST_DIGITS - 3:
            found[name] = int(words[0]) * 1024
    return found
