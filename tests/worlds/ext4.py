"""Real cuts: ext4 on an image behind a loop device, where the image is copied while the file system is in use.

Pages that ext4 has not written yet are not in the image, so that the copy is what a disk holds when the power goes at
that moment; mounting the copy replays the journal as the next start would. With ``cached`` the image lies inside a
second ext4 whose image is copied: what the inner file system wrote, and did not tell the disk to flush, is then lost as
well, as it is from a disk's own cache.

Needs root, loop devices and mkfs.ext4. Everything is unmounted when the block ends, whatever happened in it; a loop
device is set to vanish with its mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 12 * 1024 * 1024
_OUTER_BYTES = 28 * 1024 * 1024
_OPTIONS = "loop,noatime,commit=600"  # no commit of its own accord: what nobody flushed is not there by luck


class NoMountError(RuntimeError):
    """This machine does not let us mount."""


class Ext4:
    """One image; mounted within a block, as often as wanted.

    Args:
        folder: Where image and mount points lie; its file system should be in memory.
        name: The image's name.
        cached: Put a disk with a cache of its own below.
    """

    def __init__(self, folder: Path, name: str, *, cached: bool = False) -> None:
        self.folder, self.name, self.cached = folder, name, cached
        self.image = folder / f"{name}.img"

    def make(self) -> None:
        """A new, empty file system.

        Raises:
            NoMountError: Not root, or no loop devices here.
        """
        if os.geteuid() != 0:
            raise NoMountError("mounting a file system needs root")
        if shutil.which("mkfs.ext4") is None:
            raise NoMountError("mkfs.ext4 is not installed")
        if not self.cached:
            _make(self.image, SIZE_BYTES)
            return
        _make(self.image, _OUTER_BYTES)
        with _mounted(self.image, self.folder / f"{self.name}.outer", "") as outer:
            inner = outer / "disk.img"
            inner.write_bytes(bytes(SIZE_BYTES))  # every block has its place: a write later changes bytes only
            _make(inner, SIZE_BYTES)
            os.sync()

    def copy(self, name: str) -> Ext4:
        """The image as it is now, also while it is in use."""
        other = Ext4(self.folder, name, cached=self.cached)
        _copy_sparse(self.image, other.image)
        return other

    @contextmanager
    def mounted(self, options: str = "") -> Iterator[Path]:
        """Mount for the length of the block; gives the folder."""
        if not self.cached:
            with _mounted(self.image, self.folder / f"{self.name}.mnt", options) as folder:
                yield folder
            return
        with (
            _mounted(self.image, self.folder / f"{self.name}.outer", "") as outer,
            _mounted(outer / "disk.img", self.folder / f"{self.name}.mnt", options) as folder,
        ):
            yield folder

    def remove(self) -> None:
        """Forget the image."""
        self.image.unlink(missing_ok=True)


def _make(image: Path, size_bytes: int) -> None:
    if not image.exists():
        with image.open("wb") as stream:
            stream.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "512", "-m", "0", "-E", "nodiscard", str(image))


@contextmanager
def _mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    _run("mount", "-t", "ext4", "-o", f"{_OPTIONS},{options}".rstrip(","), str(image), str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)
        folder.rmdir()


def _unmount(folder: Path) -> None:
    """A mount that is still in use is taken out of sight; its loop device goes with the last user."""
    done = subprocess.run(["umount", str(folder)], capture_output=True)
    if done.returncode != 0:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NoMountError(f"{' '.join(command)}: {done.stderr.strip()}")


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy a file's data, leaving its holes."""
    with source.open("rb") as read, target.open("wb") as write:
        size = os.fstat(read.fileno()).st_size
        write.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError:
                return  # only a hole is left
            end = os.lseek(read.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += os.copy_file_range(read.fileno(), write.fileno(), end - at, at, at)
