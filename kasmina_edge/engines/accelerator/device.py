"""Reset of an Edge TPU whose worker was killed, so that the next one finds it fresh.

A USB accelerator shows 1a6e:089a (Global Unichip) until its firmware is loaded by the first use, and 18d1:9302 (Google)
from then on. ``USBDEVFS_RESET`` (linux/usbdevice_fs.h) resets its port without anybody pulling the plug; it needs
write access to the device node, which libedgetpu's udev rule gives to the group ``plugdev``. A PCIe module has no such
call that leaves the rest of the machine alone: loading the model again is all that is done.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

USB_IDS = frozenset({("1a6e", "089a"), ("18d1", "9302")})
USBDEVFS_RESET = (ord("U") << 8) | 20  # _IO('U', 20)
Reset = Callable[[], str]
Ioctl = Callable[[int, int], object]


def _ioctl(fd: int, request: int) -> object:
    return fcntl.ioctl(fd, request, 0)


def no_reset() -> str:
    """For accelerators that know no reset."""
    return "nothing to reset"


def find_usb(sysfs: Path = Path("/sys/bus/usb/devices")) -> list[tuple[str, Path]]:
    """Every Edge TPU on USB: its ids as ``vendor:product``, and its node below ``/dev/bus/usb``."""
    found = []
    try:
        folders = sorted(sysfs.iterdir())
    except OSError:
        return []
    for folder in folders:
        try:
            ids = ((folder / "idVendor").read_text().strip(), (folder / "idProduct").read_text().strip())
            if ids in USB_IDS:
                bus, number = (int((folder / name).read_text()) for name in ("busnum", "devnum"))
                found.append((":".join(ids), Path(f"{bus:03d}") / f"{number:03d}"))
        except (OSError, ValueError):
            continue
    return found


def reset_edgetpu(
    *,
    sysfs: Path = Path("/sys/bus/usb/devices"),
    nodes: Path = Path("/dev/bus/usb"),
    devices: Path = Path("/dev"),
    ioctl: Ioctl = _ioctl,
) -> str:
    """Reset the Edge TPU on USB if there is exactly one and this user may; what was done, for the event.

    With several, which of them failed is not known, and a reset would stop a healthy neighbour: none is reset.

    Args:
        sysfs: Where the kernel lists USB devices.
        nodes: Where their nodes are.
        devices: Where the nodes of PCIe modules (``apex_0``) are.
        ioctl: Used in place of ``fcntl.ioctl``.
    """
    found = find_usb(sysfs)
    if not found:
        pcie = sorted(p.name for p in devices.glob("apex_*"))
        return f"PCIe {', '.join(pcie)}: loaded again, no reset" if pcie else "no Edge TPU on USB or PCIe"
    if len(found) > 1:
        return f"{len(found)} Edge TPUs on USB, none was reset: which one failed is not known"
    ids, name = found[0]
    node = nodes / name
    try:
        fd = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as exc:
        return f"USB {ids} was not reset ({node}: {exc.strerror})"
    try:
        ioctl(fd, USBDEVFS_RESET)
    except OSError as exc:
        return f"USB {ids} was not reset ({node}: {exc.strerror})"
    finally:
        os.close(fd)
    return f"USB {ids} was reset"
