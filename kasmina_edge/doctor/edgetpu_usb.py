"""The USB accelerator: plugged in, on a fast port, with rights on its node, and passed into a container as it must be.

It appears as 1a6e:089a (Global Unichip) until a program loads its firmware, and then comes back as 18d1:9302 (Google)
under another device number; a rule or a container that names one of the two loses it at the first use
(blakeblackshear/frigate#171, #2609, #9349).
"""

from __future__ import annotations

from dataclasses import dataclass

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

FRESH, USED = ("1a6e", "089a"), ("18d1", "9302")
DEVICES = "/sys/bus/usb/devices"
RULES = ("/etc/udev/rules.d", "/lib/udev/rules.d", "/usr/lib/udev/rules.d")
USB3_MBIT = 5000
WHOLE_BUS = "docker run -v /dev/bus/usb:/dev/bus/usb --device-cgroup-rule='c 189:* rmw' ..."
INSTALL_RULE = "sudo apt-get install libedgetpu1-std && sudo udevadm control --reload && sudo udevadm trigger"


@dataclass(frozen=True)
class _Stick:
    port: str
    fresh: bool
    mbit: float | None
    node: str


def check_usb(machine: Machine) -> list[Finding]:
    """Every USB accelerator that the kernel lists."""
    sticks = find_sticks(machine)
    if not sticks:
        return [_nothing(machine)]
    findings: list[Finding] = []
    for stick in sticks:
        findings += [_id(stick), _port(stick), _rights(machine, stick)]
        if machine.container:
            findings.append(_passed(machine, stick))
    if not any(_rule(machine, vendor) for vendor in (FRESH[0], USED[0])) and not machine.container:
        findings.append(
            Finding(
                "edgetpu.usb.rule", "Edge TPU", "warn" if machine.user_id == 0 else "fail",
                "no udev rule names the accelerator", "only root may open it", INSTALL_RULE,
            )
        )  # fmt: skip
    elif not machine.container and not (_rule(machine, FRESH[0]) and _rule(machine, USED[0])):
        findings.append(
            Finding(
                "edgetpu.usb.rule", "Edge TPU", "fail", "a udev rule names only one of 1a6e:089a and 18d1:9302",
                "the accelerator changes its id at the first use, and is closed from then on", INSTALL_RULE,
            )
        )  # fmt: skip
    return findings


def find_sticks(machine: Machine) -> list[_Stick]:
    """The accelerators below `DEVICES`."""
    found = []
    for name in machine.names(DEVICES):
        here = f"{DEVICES}/{name}"
        ids = (machine.read(f"{here}/idVendor"), machine.read(f"{here}/idProduct"))
        if ids not in (FRESH, USED):
            continue
        bus, number = machine.read(f"{here}/busnum") or "0", machine.read(f"{here}/devnum") or "0"
        speed = machine.read(f"{here}/speed") or ""
        mbit = float(speed) if speed.replace(".", "", 1).isdigit() else None
        node = f"/dev/bus/usb/{int(bus):03d}/{int(number):03d}" if bus.isdigit() and number.isdigit() else ""
        found.append(_Stick(name, ids == FRESH, mbit, node))
    return found


def _nothing(machine: Machine) -> Finding:
    if not machine.names(DEVICES):
        return Finding("edgetpu.usb", "Edge TPU", "absent", "this machine shows no USB bus")
    return Finding(
        "edgetpu.usb", "Edge TPU", "absent", "no USB accelerator (1a6e:089a or 18d1:9302)",
        "not plugged in, or too little power at the port or hub", "plug it into a blue port of the machine itself",
    )  # fmt: skip


def _id(stick: _Stick) -> Finding:
    if stick.fresh:
        return Finding(
            "edgetpu.usb.id", "Edge TPU", "ok", f"1a6e:089a at port {stick.port}: not used since it was plugged in",
            "it becomes 18d1:9302 at the first inference, under a new device number",
        )  # fmt: skip
    return Finding("edgetpu.usb.id", "Edge TPU", "ok", f"18d1:9302 at port {stick.port}: firmware loaded")


def _port(stick: _Stick) -> Finding:
    if stick.mbit is None:
        return Finding("edgetpu.usb.port", "Edge TPU", "warn", f"port {stick.port} does not say its speed")
    if stick.mbit < USB3_MBIT:
        return Finding(
            "edgetpu.usb.port", "Edge TPU", "warn", f"{stick.mbit:g} Mbit/s: a USB 2 port, cable or hub",
            "each inference waits for the bus: several times slower than at 5000 Mbit/s",
            "use a USB 3 port (blue) and the cable that came with it",
        )  # fmt: skip
    return Finding("edgetpu.usb.port", "Edge TPU", "ok", f"{stick.mbit:g} Mbit/s (USB 3)")


def _rights(machine: Machine, stick: _Stick) -> Finding:
    if not machine.exists(stick.node):
        if machine.container:
            return Finding(
                "edgetpu.usb.rights", "Edge TPU", "fail", f"{stick.node} is not in this {machine.container} container",
                "one device was passed in, and it came back under another number; or none was", WHOLE_BUS,
            )  # fmt: skip
        return Finding(
            "edgetpu.usb.rights", "Edge TPU", "fail", f"{stick.node} is missing",
            "udev made no node for it", "sudo udevadm trigger --subsystem-match=usb",
        )  # fmt: skip
    if machine.may_read_and_write(stick.node):
        return Finding("edgetpu.usb.rights", "Edge TPU", "ok", f"{stick.node} may be opened by this user")
    group = machine.group_of(stick.node)
    if group == "root":
        return Finding(
            "edgetpu.usb.rights", "Edge TPU", "fail", f"{stick.node} may be opened by root only",
            "no udev rule gives it to a group", INSTALL_RULE,
        )  # fmt: skip
    return Finding(
        "edgetpu.usb.rights", "Edge TPU", "fail", f"{stick.node} belongs to group {group}, and this user does not",
        "groups are read at login", f"sudo usermod -aG {group} $USER   (then log in again)",
    )  # fmt: skip


def _passed(machine: Machine, stick: _Stick) -> Finding:
    buses = machine.names("/dev/bus/usb")
    nodes = [n for bus in buses for n in machine.names(f"/dev/bus/usb/{bus}")]
    if not nodes:
        return Finding(
            "edgetpu.usb.container", "Edge TPU", "fail", f"/dev/bus/usb is not in this {machine.container} container",
            "the kernel lists the accelerator, the container may not see it", WHOLE_BUS,
        )  # fmt: skip
    if len(nodes) == 1:
        return Finding(
            "edgetpu.usb.container", "Edge TPU", "warn", "one single USB device was passed into the container",
            "the accelerator changes its id and number at the first use and is then gone", WHOLE_BUS,
        )  # fmt: skip
    return Finding("edgetpu.usb.container", "Edge TPU", "ok", f"{machine.container}: the whole USB bus was passed in")


def _rule(machine: Machine, vendor: str) -> bool:
    return any(vendor in line.lower() for folder in RULES for _, line in machine.lines(folder, ".rules"))
