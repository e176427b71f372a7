"""The machine as the checks see it: a tree of files, a command runner, and what Python says of itself."""

from __future__ import annotations

import grp
import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_WITHIN_S = 5.0
MAX_READ_BYTES = 256 * 1024
MAX_LISTED = 4096
WATCHED_PACKAGES = (
    "ai-edge-litert",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "pycoral",
    "tensorflow",
    "tflite-runtime",
)


def run_command(command: Sequence[str]) -> str | None:
    """What a program prints; None when it is missing, fails or takes longer than 5 s."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_WITHIN_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout or done.stderr) if done.returncode == 0 else None


def installed_packages() -> dict[str, str]:
    """Versions of the distributions that checks ask about."""
    found = {}
    for name in WATCHED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Space:
    """Room on a file system for ordinary users; inodes are None where the file system counts none."""

    free_bytes: int
    free_inodes: int | None


def space_of(path: Path) -> Space | None:
    """As statvfs(3); None when the path cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Space(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


@dataclass(frozen=True)
class Machine:
    """Everything a check may ask; every field can be replaced by a test's.

    Attributes:
        root: Where the file tree begins.
        run: Runs a program, see `run_command`.
        which: Path of a program, or None.
        packages: Installed distributions, by name.
        arch: As ``uname -m``.
        bits: Of this Python.
        libc: Name and version, e.g. ``("glibc", "2.36")``.
        release: Of the kernel.
        page_bytes: Of its memory pages.
        user_id: Whose rights count.
        group_ids: His groups.
        clock: Seconds since 1970 UTC.
        space: Room on the file system of a path in the tree.
        python: Version of this interpreter.
    """

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str | None] = run_command
    which: Callable[[str], str | None] = shutil.which
    packages: Mapping[str, str] = field(default_factory=installed_packages)
    arch: str = field(default_factory=platform.machine)
    bits: int = 64 if sys.maxsize > 2**32 else 32
    libc: tuple[str, str] = field(default_factory=platform.libc_ver)
    release: str = field(default_factory=platform.release)
    page_bytes: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    user_id: int = field(default_factory=os.geteuid)
    group_ids: frozenset[int] = field(default_factory=lambda: frozenset((os.getegid(), *os.getgroups())))
    clock: Callable[[], float] = time.time
    space: Callable[[Path], Space | None] = space_of
    python: str = field(default_factory=platform.python_version)

    def at(self, path: Path | str) -> Path:
        """An absolute path of the machine, in the tree."""
        return self.root / str(path).lstrip("/")

    def exists(self, path: Path | str) -> bool:
        """Whether something is there; what may not be looked at is not."""
        try:
            return self.at(path).exists()
        except OSError:
            return False

    def read(self, path: Path | str) -> str | None:
        """Text of a small file without its line end, None when it cannot be read."""
        try:
            with self.at(path).open("rb") as file:
                return file.read(MAX_READ_BYTES).decode(errors="replace").strip("\0\n ")
        except OSError:
            return None

    def read_all(self, path: Path | str) -> str | None:
        """Text of a longer file, up to 16 MiB."""
        try:
            with self.at(path).open("rb") as file:
                return file.read(16 * 1024 * 1024).decode(errors="replace")
        except OSError:
            return None

    def names(self, folder: Path | str) -> list[str]:
        """Names in a folder, sorted; none when it cannot be read."""
        try:
            return sorted(os.listdir(self.at(folder)))[:MAX_LISTED]
        except OSError:
            return []

    def lines(self, folder: str, suffix: str) -> Iterator[tuple[str, str]]:
        """Path and line of every file with that ending in a folder of settings, comments left out."""
        for name in self.names(folder):
            if name.endswith(suffix):
                for line in (self.read(f"{folder}/{name}") or "").splitlines():
                    if line.strip() and not line.lstrip().startswith("#"):
                        yield f"{folder}/{name}", line.strip()

    def may_read_and_write(self, path: Path | str) -> bool:
        """Whether this user may, by owner, group and mode."""
        try:
            found = self.at(path).stat()
        except OSError:
            return False
        if self.user_id == 0:
            return True
        if found.st_uid == self.user_id:
            needed = stat.S_IRUSR | stat.S_IWUSR
        elif found.st_gid in self.group_ids:
            needed = stat.S_IRGRP | stat.S_IWGRP
        else:
            needed = stat.S_IROTH | stat.S_IWOTH
        return found.st_mode & needed == needed

    def group_of(self, path: Path | str) -> str:
        """Name of a file's group, its number where it has none."""
        number = self.at(path).stat().st_gid
        for line in (self.read("/etc/group") or "").splitlines():
            name, _, rest = line.partition(":")
            if rest.split(":")[1:2] == [str(number)]:
                return name
        try:
            return grp.getgrgid(number).gr_name
        except KeyError:
            return str(number)

    @property
    def container(self) -> str:
        """What kind of container this is, or nothing."""
        if self.exists("/.dockerenv"):
            return "Docker"
        if self.exists("/run/.containerenv"):
            return "Podman"
        named = self.read("/run/systemd/container")
        if named:
            return named
        groups = self.read("/proc/1/cgroup") or ""
        return next((kind for kind in ("kubepods", "docker", "lxc") if kind in groups), "")
