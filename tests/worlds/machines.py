"""Machines that the doctor examines: a file tree, what its programs print, and what its Python says of itself."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasmina_edge.doctor import Machine
from kasmina_edge.doctor.machine import Space

USER = 4242
GROUP = 4343
RULE = 'SUBSYSTEM=="usb",ATTRS{idVendor}=="%s",GROUP="plugdev"\n'
BOTH_RULES = RULE % "1a6e" + RULE % "18d1"
GOOGLE_16 = "Package: libedgetpu1-std\nStatus: install ok installed\nVersion: 16.0\n\n"
FERANICK = "Package: libedgetpu1-std\nStatus: install ok installed\nVersion: 16.0tf2.17.1-1.bookworm\n\n"
USB = "sys/bus/usb/devices/2-1"
PCI = "sys/bus/pci/devices/0000:01:00.0"
NOW_S = 1_800_000_000.0


def elf(machine: int = 0x3E) -> bytes:
    """The head of a shared library built for an architecture."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine) + bytes(40)


def tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files; a name that ends in ``/`` is a folder."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def machine(root: Path, files: Mapping[str, str | bytes] | None = None, **changes: Any) -> Machine:
    """A plain 64-bit PC of Debian with LiteRT, whose user is neither root nor the owner of anything."""
    printed: Mapping[str, str] = changes.pop("prints", {})
    tree(root, {"etc/group": f"root:x:9999:\nplugdev:x:{os.getegid()}:\n", **(files or {})})

    def run(command: Sequence[str]) -> str | None:
        return printed.get(Path(command[0]).name)

    def which(name: str) -> str | None:
        return f"/usr/bin/{name}" if name in printed else None

    fields: dict[str, Any] = {
        "root": root,
        "run": run,
        "which": which,
        "packages": {"ai-edge-litert": "2.3.0", "numpy": "2.2.0"},
        "arch": "x86_64",
        "bits": 64,
        "libc": ("glibc", "2.36"),
        "release": "6.1.0-13",
        "page_bytes": 4096,
        "user_id": USER,
        "group_ids": frozenset({GROUP}),
        "clock": lambda: NOW_S,
        "space": lambda path: Space(10**10, 10**6),
        "python": "3.11.7",
    }
    return Machine(**{**fields, **changes})


def usb_stick(*, used: bool = False, speed: str = "5000", number: str = "4") -> dict[str, str | bytes]:
    """sysfs of one accelerator, and the nodes of its bus."""
    vendor, product = ("18d1", "9302") if used else ("1a6e", "089a")
    return {
        f"{USB}/idVendor": f"{vendor}\n",
        f"{USB}/idProduct": f"{product}\n",
        f"{USB}/busnum": "2\n",
        f"{USB}/devnum": f"{number}\n",
        f"{USB}/speed": f"{speed}\n",
    }


def node(root: Path, path: str, mode: int) -> None:
    """A device node as far as rights go."""
    tree(root, {path: ""})
    (root / path).chmod(mode)


def pci_card() -> dict[str, str | bytes]:
    """sysfs of one card."""
    return {f"{PCI}/vendor": "0x1ac1\n", f"{PCI}/device": "0x089a\n"}
