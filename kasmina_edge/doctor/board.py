"""The machine itself: container, processor, power, heat, clock, hardware watchdog."""

from __future__ import annotations

import re
import time

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

EARLIEST_S = 1_767_225_600.0
"""2026-01-01: this program is not older, so that a clock before that is wrong."""
HOT_SHARE = 0.95
UNDERVOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SINCE_BOOT = 16


def check_board(machine: Machine) -> list[Finding]:
    """All of them."""
    return [
        *_container(machine),
        *_processor(machine),
        *_power(machine),
        *_heat(machine),
        *_clock(machine),
        *_watchdog(machine),
    ]


def _container(machine: Machine) -> list[Finding]:
    kind = machine.container
    if not kind:
        return []
    return [
        Finding(
            "machine.container", "machine", "ok", f"inside a container ({kind})",
            "devices and kernel modules are the host's; what is not passed in is not here",
        )
    ]  # fmt: skip


def _processor(machine: Machine) -> list[Finding]:
    """Instructions that fast int8 kernels use: AVX2 on x86, the dot product on 64-bit Arm."""
    text = machine.read("/proc/cpuinfo") or ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    if not flags:
        return [Finding("machine.cpu", "machine", "absent", f"{machine.arch}: the kernel lists no features")]
    wanted, name = ("avx2", "AVX2") if machine.arch in ("x86_64", "i686") else ("asimddp", "the int8 dot product")
    if wanted in flags:
        return [Finding("machine.cpu", "machine", "ok", f"{machine.arch} with {name}")]
    virtual = "; a virtual machine hides it unless its CPU type is `host`" if "hypervisor" in flags else ""
    return [
        Finding("machine.cpu", "machine", "warn", f"{machine.arch} without {name}", f"int8 models run slower{virtual}")
    ]


def _power(machine: Machine) -> list[Finding]:
    """Under-voltage of a Raspberry Pi, now and since it was started: the usual reason why USB accelerators vanish."""
    model = machine.read("/proc/device-tree/model") or ""
    if "Raspberry Pi" not in model:
        return []
    bits = _throttled(machine)
    if bits is None:
        return [
            Finding(
                "machine.power", "machine", "absent", f"{model}: its power supply cannot be asked",
                "vcgencmd is missing", "sudo apt-get install raspi-utils",
            )
        ]  # fmt: skip
    step = "use the power supply made for this board, and a powered hub for accelerators"
    if bits & UNDERVOLTAGE:
        return [
            Finding(
                "machine.power", "machine", "fail", f"{model}: under-voltage now (throttled={bits:#x})",
                "USB devices drop off and files are damaged", step,
            )
        ]  # fmt: skip
    if bits & (UNDERVOLTAGE << SINCE_BOOT):
        return [
            Finding(
                "machine.power", "machine", "warn", f"{model}: under-voltage since it was started ({bits:#x})",
                "USB devices drop off under load", step,
            )
        ]  # fmt: skip
    if bits & (CAPPED | THROTTLED | SOFT_LIMIT):
        return [
            Finding(
                "machine.power", "machine", "warn", f"{model}: throttled now (throttled={bits:#x})",
                "too hot: the clock is lowered", "give it a heat sink or a fan",
            )
        ]  # fmt: skip
    return [Finding("machine.power", "machine", "ok", f"{model}: power is enough (throttled={bits:#x})")]


def _throttled(machine: Machine) -> int | None:
    text = machine.read("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if text is None and (program := machine.which("vcgencmd")):
        text = machine.run([program, "get_throttled"])
    found = re.search(r"(?:0x)?([0-9a-fA-F]+)\s*$", text or "")
    return int(found[1], 16) if found else None


def _heat(machine: Machine) -> list[Finding]:
    """The processor's zones against their own passive or critical trip points."""
    hottest: tuple[float, float | None, str] | None = None
    for zone in machine.names("/sys/class/thermal"):
        here = f"/sys/class/thermal/{zone}"
        text = machine.read(f"{here}/temp") or ""
        if not zone.startswith("thermal_zone") or not text.lstrip("-").isdigit():
            continue
        value = int(text) / 1000
        trips = [
            machine.read(f"{here}/trip_point_{i}_temp") or ""
            for i in range(12)
            if machine.read(f"{here}/trip_point_{i}_type") in ("passive", "hot", "critical")
        ]
        limits = [int(trip) / 1000 for trip in trips if trip.isdigit() and int(trip) > 0]
        if hottest is None or value > hottest[0]:
            hottest = (value, min(limits) if limits else None, machine.read(f"{here}/type") or zone)
    if hottest is None:
        return []
    value, limit, name = hottest
    if limit is not None and value >= HOT_SHARE * limit:
        return [
            Finding(
                "machine.heat", "machine", "warn", f"{name}: {value:g} °C of {limit:g}",
                "the processor lowers its clock there", "give it a heat sink or a fan",
            )
        ]  # fmt: skip
    return [Finding("machine.heat", "machine", "ok", f"{name}: {value:g} °C{f' of {limit:g}' if limit else ''}")]


def _clock(machine: Machine) -> list[Finding]:
    """Signatures run out by the clock; a device without a battery starts in the past until the network tells it."""
    now = machine.clock()
    day = time.strftime("%Y-%m-%d", time.gmtime(max(0.0, now)))
    sync = "sudo timedatectl set-ntp true"
    if now < EARLIEST_S:
        return [
            Finding(
                "machine.clock", "machine", "fail", f"the clock says {day}",
                "updates look as if they were signed in the future", sync,
            )
        ]  # fmt: skip
    synced = machine.exists("/run/systemd/timesync/synchronized") or machine.exists("/run/chrony/chronyd.pid")
    if not synced and machine.which("timedatectl"):
        synced = "yes" in (machine.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"]) or "")
    battery = any(name.startswith("rtc") for name in machine.names("/dev"))
    if machine.container or synced:
        how = "the host keeps it" if machine.container else "kept by the network"
        return [Finding("machine.clock", "machine", "ok", f"the clock says {day}, {how}")]
    cause = "" if battery else "and there is no battery clock: after a power cut it starts in the past"
    return [Finding("machine.clock", "machine", "warn", f"the clock says {day}; nothing says it is kept", cause, sync)]


def _watchdog(machine: Machine) -> list[Finding]:
    """Hardware that starts the machine again when it hangs; systemd feeds it when told to."""
    dogs = machine.names("/sys/class/watchdog")
    if machine.container:
        return []
    if not dogs:
        return [Finding("machine.watchdog", "machine", "absent", "no hardware watchdog")]
    if any(machine.read(f"/sys/class/watchdog/{dog}/state") == "active" for dog in dogs):
        return [Finding("machine.watchdog", "machine", "ok", "hardware watchdog active")]
    return [
        Finding(
            "machine.watchdog", "machine", "warn", "a hardware watchdog is there, and nobody feeds it",
            "a machine that hangs stays so until somebody comes",
            "set RuntimeWatchdogSec=15 in /etc/systemd/system.conf, then: sudo systemctl daemon-reexec",
        )
    ]  # fmt: skip
