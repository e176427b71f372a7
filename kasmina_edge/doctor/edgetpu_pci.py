"""The PCIe and M.2 accelerator: on the bus, with its two kernel modules, a node that may be opened, and not too hot.

Where ``/dev/apex_0`` is missing the driver is; its package stopped building with newer kernels
(google-coral/edgetpu#808, #822, raspberrypi/linux#6799), secure boot refuses what was built, a second copy may come
with the kernel, and a kernel with pages of 16 KiB (Raspberry Pi 5) cannot drive it.
"""

from __future__ import annotations

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

PCI = "/sys/bus/pci/devices"
VENDOR, DEVICE = "0x1ac1", "0x089a"
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
BUILD = "build gasket-dkms from source: github.com/google/gasket-driver (its package does not build on new kernels)"
USUAL_PAGE_BYTES = 4096


def check_pci(machine: Machine) -> list[Finding]:
    """Every PCIe accelerator."""
    cards = [
        name
        for name in machine.names(PCI)
        if (machine.read(f"{PCI}/{name}/vendor"), machine.read(f"{PCI}/{name}/device")) == (VENDOR, DEVICE)
    ]
    nodes = [f"/dev/{name}" for name in machine.names("/dev") if name.startswith("apex_")]
    if not cards and not nodes:
        return [Finding("edgetpu.pci", "Edge TPU", "absent", "no PCIe or M.2 accelerator (1ac1:089a)")]
    findings = [Finding("edgetpu.pci", "Edge TPU", "ok", f"on the PCIe bus: {', '.join(cards) or 'seen by its node'}")]
    findings += [*_driver(machine, nodes), *_conflicts(machine)]
    for node in nodes:
        findings += [_rights(machine, node), *_state(machine, node.rsplit("/", 1)[1])]
    return findings


def _driver(machine: Machine, nodes: list[str]) -> list[Finding]:
    loaded = [name for name in ("gasket", "apex") if machine.exists(f"/sys/module/{name}")]
    if nodes:
        return [Finding("edgetpu.pci.driver", "Edge TPU", "ok", f"driver loaded, {', '.join(nodes)}")]
    if machine.container:
        return [
            Finding(
                "edgetpu.pci.driver", "Edge TPU", "fail", f"/dev/apex_0 is not in this {machine.container} container",
                "the device was not passed in", "docker run --device /dev/apex_0 ...",
            )
        ]  # fmt: skip
    banned = _blacklisted(machine)
    if banned:
        return [
            Finding(
                "edgetpu.pci.driver", "Edge TPU", "fail", f"module {banned[1]} is blacklisted in {banned[0]}",
                "the driver is never loaded", f"remove that line, then: sudo modprobe {banned[1]}",
            )
        ]  # fmt: skip
    if len(loaded) == 2:
        if machine.page_bytes != USUAL_PAGE_BYTES:
            return [
                Finding(
                    "edgetpu.pci.driver", "Edge TPU", "fail",
                    f"driver loaded, no /dev/apex_0, and memory pages of {machine.page_bytes} bytes",
                    "the driver needs pages of 4096 bytes; a Raspberry Pi 5 starts with 16384",
                    "add kernel=kernel8.img to /boot/firmware/config.txt and reboot",
                )
            ]  # fmt: skip
        return [
            Finding(
                "edgetpu.pci.driver", "Edge TPU", "fail", "driver loaded and no /dev/apex_0",
                "the card did not start; without MSI-X interrupts it says `Couldn't initialize interrupts`",
                "sudo dmesg | grep -E 'apex|gasket'   (a Raspberry Pi 5 needs pcie_aspm=off and "
                "dtoverlay=pcie-32bit-dma-pi5)",
            )
        ]  # fmt: skip
    if _built(machine):
        locked = (machine.at(SECURE_BOOT).read_bytes()[-1:] == b"\x01") if machine.exists(SECURE_BOOT) else False
        if locked:
            return [
                Finding(
                    "edgetpu.pci.driver", "Edge TPU", "fail", "driver built and not loaded, and secure boot is on",
                    "the kernel refuses a module that nobody signed",
                    "sign it (mokutil --import /var/lib/dkms/mok.pub), or turn secure boot off",
                )
            ]  # fmt: skip
        return [
            Finding(
                "edgetpu.pci.driver", "Edge TPU", "fail", "driver built and not loaded", "", "sudo modprobe apex"
            )
        ]  # fmt: skip
    package = machine.exists("/var/lib/dkms/gasket")
    why = f"gasket-dkms is installed and was not built for kernel {machine.release}" if package else ""
    return [Finding("edgetpu.pci.driver", "Edge TPU", "fail", "kernel modules gasket and apex are missing", why, BUILD)]


def _built(machine: Machine) -> bool:
    folder = f"/lib/modules/{machine.release}"
    return any(
        name.startswith("apex.ko")
        for place in ("updates/dkms", "updates", "extra", "kernel/drivers/staging/gasket")
        for name in machine.names(f"{folder}/{place}")
    )


def _conflicts(machine: Machine) -> list[Finding]:
    """Kernels 4.19 to 5.x brought an older copy, which may be loaded in place of the one from gasket-dkms."""
    folder = f"/lib/modules/{machine.release}"
    own = machine.names(f"{folder}/kernel/drivers/staging/gasket")
    dkms = [n for p in ("updates/dkms", "updates") for n in machine.names(f"{folder}/{p}") if n.startswith("apex.ko")]
    if own and dkms:
        return [
            Finding(
                "edgetpu.pci.conflict", "Edge TPU", "warn", "two copies of the driver: the kernel's own, gasket-dkms",
                "the kernel's older one may be loaded first",
                f"sudo rm -r {folder}/kernel/drivers/staging/gasket && sudo depmod -a",
            )
        ]  # fmt: skip
    return []


def _blacklisted(machine: Machine) -> tuple[str, str] | None:
    for folder in ("/etc/modprobe.d", "/lib/modprobe.d", "/usr/lib/modprobe.d"):
        for path, line in machine.lines(folder, ".conf"):
            words = line.split()
            if words[0] == "blacklist" and words[1:2] and words[1] in ("apex", "gasket"):
                return path, words[1]
            if words[0] == "install" and len(words) > 2 and words[1] in ("apex", "gasket"):
                return path, words[1]
    return None


def _rights(machine: Machine, node: str) -> Finding:
    if machine.may_read_and_write(node):
        return Finding("edgetpu.pci.rights", "Edge TPU", "ok", f"{node} may be opened by this user")
    group = machine.group_of(node)
    if group == "root":
        step = 'echo \'SUBSYSTEM=="apex", MODE="0660", GROUP="apex"\' | sudo tee /etc/udev/rules.d/65-apex.rules'
        return Finding("edgetpu.pci.rights", "Edge TPU", "fail", f"{node} may be opened by root only", "no rule", step)
    return Finding(
        "edgetpu.pci.rights", "Edge TPU", "fail", f"{node} belongs to group {group}, and this user does not",
        "groups are read at login", f"sudo usermod -aG {group} $USER   (then log in again)",
    )  # fmt: skip


def _state(machine: Machine, name: str) -> list[Finding]:
    """What the driver tells of a card: alive or dead, and how hot against its trip points (millidegrees)."""
    here = f"/sys/class/apex/{name}"
    findings = []
    status = machine.read(f"{here}/status")
    if status is not None and status != "ALIVE":
        findings.append(
            Finding(
                "edgetpu.pci.status", "Edge TPU", "fail", f"{name}: the driver says {status}",
                "it hung, or its power was cut", "reboot, or remove and rescan the card on the PCIe bus",
            )
        )  # fmt: skip
    temperature, trips = _millidegrees(machine, f"{here}/temp"), []
    for i in range(3):
        trip = _millidegrees(machine, f"{here}/trip_point{i}_temp")
        if trip is not None:
            trips.append(trip)
    if temperature is None:
        return findings
    if trips and temperature >= min(trips):
        findings.append(
            Finding(
                "edgetpu.pci.temperature", "Edge TPU", "warn",
                f"{name}: {temperature:g} °C, throttled from {min(trips):g}",
                "its clock is lowered: each inference takes longer", "give it a heat sink or air",
            )
        )  # fmt: skip
    else:
        limit = f", throttled from {min(trips):g}" if trips else ""
        findings.append(Finding("edgetpu.pci.temperature", "Edge TPU", "ok", f"{name}: {temperature:g} °C{limit}"))
    return findings


def _millidegrees(machine: Machine, path: str) -> float | None:
    text = machine.read(path) or ""
    return int(text) / 1000 if text.lstrip("-").isdigit() else None
