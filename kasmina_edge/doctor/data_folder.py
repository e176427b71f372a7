"""The data folder: is there room, can it be written, does it survive, and what could be read off a stolen disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

LEAST_BYTES = 64 * 1024 * 1024
"""Two slots of a small bundle, the outbox at its bound, and room to build a third."""
LEAST_INODES = 256
VOLATILE = ("tmpfs", "ramfs", "overlay")


def check_data_folder(
    machine: Machine, folder: Path, describe_key: Callable[[], tuple[bool | None, str]] | None = None
) -> list[Finding]:
    """Checks of one data folder.

    Args:
        machine: Whose.
        folder: The data folder; it may be missing.
        describe_key: Whether a stolen disk is readable (None: not known), and a sentence about it.
    """
    if not machine.exists(folder) and os.path.lexists(machine.at(folder)):
        return [_closed(folder)]
    if not machine.exists(folder):
        return [
            Finding(
                "data.folder", "data folder", "absent", f"{folder}: nothing is deployed here",
                "", "kasmina-edge deploy, or kasmina-edge fleet enroll at the controller",
            )
        ]  # fmt: skip
    room = _room(machine, folder)
    closed = room[0].id == "data.folder"
    return [*room, *_medium(machine, folder), *([] if closed else _key(describe_key))]


def _closed(folder: Path) -> Finding:
    return Finding(
        "data.folder", "data folder", "warn", f"{folder} may not be looked into by this user",
        "it belongs to the agent's user", f"sudo kasmina-edge doctor --data {folder}",
    )  # fmt: skip


def _room(machine: Machine, folder: Path) -> list[Finding]:
    if not machine.may_read_and_write(folder):
        return [_closed(folder)]
    space = machine.space(machine.at(folder))
    if space is None:
        return [Finding("data.folder", "data folder", "fail", f"{folder}: its file system does not answer")]
    free, inodes = space.free_bytes, space.free_inodes
    if free < LEAST_BYTES:
        return [
            Finding(
                "data.space", "data folder", "fail", f"{free:,} bytes are free, {LEAST_BYTES:,} should be",
                "updates are refused before anything is written", f"df -h {folder}",
            )
        ]  # fmt: skip
    if inodes is not None and inodes < LEAST_INODES:
        return [
            Finding(
                "data.inodes", "data folder", "fail", f"{inodes:,} inodes are free, {LEAST_INODES:,} should be",
                "no file can be made although there are bytes", f"df -i {folder}",
            )
        ]  # fmt: skip
    return [Finding("data.space", "data folder", "ok", f"{folder}: {free / 1e9:,.1f} GB free")]


def _medium(machine: Machine, folder: Path) -> list[Finding]:
    """What file system it lies on (proc_pid_mounts(5)), where that one loses its files or may not be written."""
    best: tuple[int, str, set[str]] | None = None
    for line in (machine.read("/proc/self/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        at = Path(fields[1].replace("\\040", " "))
        if (folder == at or at in folder.parents) and (best is None or len(at.parts) >= best[0]):
            best = (len(at.parts), fields[2], set(fields[3].split(",")))
    if best is None:
        return []
    _, kind, options = best
    if "ro" in options:
        return [
            Finding(
                "data.medium", "data folder", "fail", f"{folder} lies on a file system that is mounted read-only",
                "on purpose, or after an error on the disk", "sudo dmesg | grep -iE 'remount|I/O error'",
            )
        ]  # fmt: skip
    if kind in VOLATILE:
        return [
            Finding(
                "data.medium", "data folder", "warn", f"{folder} lies on {kind}",
                "it is gone when the container or the machine is started again",
                "pass a volume in (docker run -v kasmina:/var/lib/kasmina), or choose a disk",
            )
        ]  # fmt: skip
    return []


def _key(describe: Callable[[], tuple[bool | None, str]] | None) -> list[Finding]:
    if describe is None:
        return []
    readable, sentence = describe()
    step = "kasmina-edge service install uses a key from systemd-creds; or set safety.key_file to another medium"
    if readable:
        return [Finding("data.key", "data folder", "warn", "a stolen disk is readable", sentence, step)]
    return [Finding("data.key", "data folder", "ok", sentence)]
