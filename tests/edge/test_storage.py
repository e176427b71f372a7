"""Durable writes and locks: what reaches the disk, in which order, and what is said when it does not."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from worlds.disks import BrokenDisk, FullDisk, PowerCut, PowerDisk, TightDisk

from kasmina_edge import storage
from kasmina_edge.errors import LockedError, StorageError
from kasmina_edge.storage import (
    Disk,
    append_durable,
    as_storage_error,
    hold_lock,
    make_private_folder,
    open_lock,
    remove_file,
    remove_temporaries,
    remove_tree,
    rename_durable,
    require_free_space,
    sync_folder,
    use_disk,
    write_durable,
)


@pytest.fixture
def attic(tmp_path: Path) -> Path:
    folder = tmp_path / "attic"
    folder.mkdir()
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_a_write_is_flushed_before_it_gets_its_name_and_the_folder_after(data: Path, attic: Path) -> None:
    disk = PowerDisk(attic)
    with use_disk(disk):
        write_durable(data / "x", b"new")
    kinds = [name.split()[0] for name in disk.operations]
    assert kinds == ["open", "write", "write", "fsync", "rename", "fsync"]
    assert (data / "x").read_bytes() == b"new" and os.listdir(data) == ["x"]
    assert (data / "x").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lose", ["nothing", "everything", "contents", "some"])
def test_after_a_cut_the_file_is_the_old_one_or_the_new_one(tmp_path: Path, lose: str) -> None:
    for after in range(1, 7):
        folder, attic = tmp_path / f"{after}", tmp_path / f"attic{after}"
        folder.mkdir(), attic.mkdir()
        write_durable(folder / "x", b"old")
        with use_disk(PowerDisk(attic, after, lose)), pytest.raises(PowerCut):  # type: ignore[arg-type]
            write_durable(folder / "x", b"new content")
        assert (folder / "x").read_bytes() == (b"new content" if after == 6 else (folder / "x").read_bytes())
        assert (folder / "x").read_bytes() in (b"old", b"new content")


def test_an_empty_content_and_a_mode_are_kept(data: Path) -> None:
    write_durable(data / "x", b"", mode=0o640)
    assert (data / "x").read_bytes() == b"" and (data / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("code", "words"), [(errno.EIO, "error"), (errno.EROFS, "read-only"), (errno.ENOSPC, "space")])
def test_a_refused_write_leaves_the_old_file_and_nothing_else(data: Path, code: int, words: str) -> None:
    write_durable(data / "x", b"old")
    for at in range(1, 5):
        with use_disk(BrokenDisk(at, code)), pytest.raises(StorageError, match=words):
            write_durable(data / "x", b"new")
        assert (data / "x").read_bytes() == b"old" and os.listdir(data) == ["x"]


def test_the_reason_is_kept_when_even_cleaning_up_is_refused(data: Path) -> None:
    class ReadOnly(Disk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            raise OSError(errno.ENOSPC, "full")

        def unlink(self, path: Path) -> None:
            raise OSError(errno.EROFS, "read-only")

    with use_disk(ReadOnly()), pytest.raises(StorageError, match="no space left"):
        write_durable(data / "x", b"new")


def test_threads_that_write_one_file_do_not_mix(data: Path) -> None:
    contents = [bytes([65 + i]) * 5000 for i in range(4)]
    threads = [
        threading.Thread(target=lambda c=c: [write_durable(data / "x", c) for _ in range(10)])  # type: ignore[misc]
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (data / "x").read_bytes() in contents and os.listdir(data) == ["x"]


def test_a_missing_folder_is_told_by_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere/x: No such file"):
        write_durable(tmp_path / "nowhere" / "x", b"")
    with pytest.raises(StorageError, match="nowhere: No such file"):
        sync_folder(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="nowhere"):
        rename_durable(tmp_path / "x", tmp_path / "nowhere")
    with pytest.raises(StorageError, match="nowhere"):
        open_lock(tmp_path / "nowhere" / "lock")


def test_what_is_appended_is_flushed_and_a_refused_append_is_cut_off_again(data: Path, attic: Path) -> None:
    disk = PowerDisk(attic)
    with use_disk(disk):
        append_durable(data / "log", b"one\n")
        append_durable(data / "log", b"two\n")
    assert disk.unflushed() == [] and disk.operations.count("fsync") == 3  # the folder only for the new file
    with use_disk(FullDisk(2)), pytest.raises(StorageError, match="log: no space left"):
        append_durable(data / "log", b"three\n")
    assert (data / "log").read_bytes() == b"one\ntwo\n"


def test_a_tree_is_removed_and_links_are_not_followed(data: Path) -> None:
    (data / "keep").mkdir()
    (data / "keep/file").write_bytes(b"x")
    (data / "tree/deep").mkdir(parents=True)
    (data / "tree/deep/file").write_bytes(b"x")
    (data / "tree/link").symlink_to(data / "keep")
    remove_tree(data / "tree")
    remove_tree(data / "tree")
    assert os.listdir(data) == ["keep"] and (data / "keep/file").exists()
    with use_disk(BrokenDisk(1)), pytest.raises(StorageError, match="keep"):
        remove_tree(data / "keep")


def test_files_are_removed_once_or_were_never_there(data: Path) -> None:
    (data / "x").write_bytes(b"")
    remove_file(data / "x")
    remove_file(data / "x")
    with pytest.raises(StorageError):
        remove_file(data)


def test_only_temporaries_of_that_file_are_removed(data: Path) -> None:
    for name in (".x.1-2.tmp", ".x.9.tmp", ".y.1-2.tmp", "x", ".x.other"):
        (data / name).write_bytes(b"")
    remove_temporaries(data / "x")
    assert sorted(os.listdir(data)) == [".x.other", ".y.1-2.tmp", "x"]


def test_new_folders_are_private_and_durable_and_old_ones_keep_their_mode(tmp_path: Path, attic: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    disk = PowerDisk(attic)
    with use_disk(disk):
        made = make_private_folder(tmp_path / "open" / "one" / "two")
        assert make_private_folder(made) == made
    assert made.stat().st_mode & 0o777 == 0o700 and (tmp_path / "open").stat().st_mode & 0o777 == 0o755
    assert disk.unflushed() == [] and disk.operations.count("fsync") == 2
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        make_private_folder(tmp_path / "file")
    with pytest.raises(StorageError):
        make_private_folder(tmp_path / "file" / "below")


def test_free_space_is_asked_of_the_disk(data: Path) -> None:
    require_free_space(data, 1)
    with pytest.raises(StorageError, match=r"data: \d+ bytes are needed and \d+ are free"):
        require_free_space(data, 2**70)
    with use_disk(TightDisk(99)):
        require_free_space(data, 99)
        with pytest.raises(StorageError, match="100 bytes are needed and 99 are free"):
            require_free_space(data, 100)
    with pytest.raises(StorageError):
        require_free_space(data / "nowhere", 1)


def test_a_lock_is_held_by_one_or_shared_by_readers(data: Path) -> None:
    path = data / "lock"
    with hold_lock(path):
        for shared in (False, True):
            with pytest.raises(LockedError, match=r"(?m)lock: another process holds this lock$"):
                open_lock(path, shared=shared)
    with (
        hold_lock(path, shared=True),
        hold_lock(path, shared=True),
        pytest.raises(LockedError, match=r"waited 0\.02 s"),
    ):
        open_lock(path, wait_s=0.02)
    lock = open_lock(path)
    lock.close()
    lock.close()
    with open_lock(path, wait=True):
        pass


@pytest.mark.parametrize("wait", [{"wait": True}, {"wait_s": 60.0}])
def test_a_waiting_lock_is_taken_when_it_becomes_free(data: Path, wait: dict[str, float]) -> None:
    held = open_lock(data / "lock")
    freed: list[bool] = []
    timer = threading.Timer(0.05, lambda: (freed.append(True), held.close()))
    timer.start()
    with hold_lock(data / "lock", **wait):  # type: ignore[arg-type]
        assert freed
    timer.join()


def test_a_lock_that_cannot_be_made_is_no_locked_error(data: Path) -> None:
    (data / "folder").mkdir()
    with pytest.raises(StorageError) as told:
        open_lock(data / "folder")
    assert not isinstance(told.value, LockedError)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_the_system_says_becomes_a_sentence(code: int, words: str) -> None:
    assert as_storage_error(OSError(code, os.strerror(code)), Path("x")).message == f"x: {words}"


def test_a_disk_is_used_in_its_own_block_and_thread_only(data: Path) -> None:
    seen: list[type[Disk]] = []
    with use_disk(TightDisk(1)):
        thread = threading.Thread(target=lambda: seen.append(type(storage._disk.get())))
        thread.start()
        thread.join()
        seen.append(type(storage._disk.get()))
    seen.append(type(storage._disk.get()))
    assert seen == [Disk, TightDisk, Disk]
