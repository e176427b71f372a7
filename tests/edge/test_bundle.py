"""The container: same bundle, same bytes; everything that is not the bundle is refused with the path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.bundles import make_bundle, make_graft

from kasmina_edge.bundle import MAX_BUNDLE_BYTES, Bundle, pack, read, read_file, read_folder, write_folder
from kasmina_edge.contracts.arrays import pack_members, unpack_members
from kasmina_edge.errors import BundleError, InputError, StorageError

METADATA = {"1.root.json": b"{}", "timestamp.json": b'{"a":1}', "2.targets.json": b"[]"}


@pytest.fixture(scope="module")
def signed(host_bundle: Bundle) -> Bundle:
    return Bundle(host_bundle.manifest, host_bundle.files, METADATA)


@pytest.fixture(scope="module")
def host_bundle() -> Bundle:
    return make_bundle()


def members(bundle: Bundle) -> dict[str, bytes]:
    return unpack_members(pack(bundle), where="x", max_bytes=1 << 24)


def test_a_bundle_survives_its_file(signed: Bundle, tmp_path: Path) -> None:
    path = tmp_path / signed.file_name
    path.write_bytes(pack(signed))
    assert read_file(path) == signed
    assert pack(read_file(path)) == path.read_bytes()
    assert path.name == "digits-1.0.0.kasmina"


def test_every_truncation_and_every_flipped_bit_is_refused(signed: Bundle) -> None:
    data = pack(signed)
    step = len(data) // 97
    for cut in range(0, len(data), step):
        with pytest.raises(BundleError, match=r"^here"):
            read(data[:cut], where="here")
    for at in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            other = read(bytes(damaged), where="here")
        except BundleError:
            continue
        assert {n: b for n, b in METADATA.items() if other.metadata.get(n) == b} != METADATA, f"byte {at} is free"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        read(data, where="here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(extra=b"x"), "holds extra, which the manifest does not name"),
        (lambda m: m.pop("model.tflite"), "model.tflite is missing"),
        (lambda m: m.pop("manifest.json"), "no manifest.json"),
        (lambda m: m.update({"other/x": b""}), "other/x lies outside tuf/"),
        (lambda m: m.update({"tuf/deep/x": b""}), "tuf/deep/x lies outside tuf/"),
        (lambda m: m.update({"tuf/.hidden": b""}), r"tuf/\.hidden is not a name for metadata"),
        (lambda m: m.update({"model.tflite": m["model.tflite"] + b"x"}), r"model.tflite: .* says \d+ bytes, got \d+"),
        (
            lambda m: m.update({"manifest.json": m["manifest.json"].replace(b'"format"', b'"fromat"')}),
            r"manifest\..*: unknown field",
        ),
        (lambda m: m.update({"manifest.json": b"{" + b" " * (5 << 20)}), "at most 4194304 are read"),
    ],
)
def test_a_changed_container_is_refused(signed: Bundle, change: object, message: str) -> None:
    parts = members(signed)
    change(parts)  # type: ignore[operator]
    with pytest.raises(BundleError, match=f"^here: .*{message}|^here: {message}"):
        read(pack_members(parts), where="here")


def test_a_file_under_another_digest_is_refused(signed: Bundle) -> None:
    parts = members(signed)
    parts["model.tflite"] = bytes([parts["model.tflite"][0] ^ 1]) + parts["model.tflite"][1:]
    with pytest.raises(BundleError, match=r"model\.tflite: the manifest says sha256 \w{12}, got \w{12}"):
        read(pack_members(parts), where="here")


def test_a_container_of_one_engine_needs_the_engine_named(signed: Bundle) -> None:
    files = {p: d for p, d in signed.files.items() if "onnx" not in p}
    data = pack(Bundle(signed.manifest, files, METADATA))
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        read(data, where="here")
    part = read(data, where="here", engine="litert")
    assert part.engines() == ("litert",)
    with pytest.raises(BundleError, match=r"model\.onnx is not in this copy"):
        part.read(part.model_for("onnxruntime").file)


def test_pack_refuses_what_read_would(signed: Bundle) -> None:
    with pytest.raises(BundleError, match="holds stray"):
        pack(Bundle(signed.manifest, {**signed.files, "stray": b""}, {}))


def test_a_missing_or_huge_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.kasmina: no such file"):
        read_file(tmp_path / "gone.kasmina")
    with pytest.raises(BundleError, match="not a file"):
        read_file(tmp_path)
    huge = tmp_path / "huge.kasmina"
    with huge.open("wb") as stream:
        stream.truncate(MAX_BUNDLE_BYTES + 1)
    with pytest.raises(BundleError, match=f"{MAX_BUNDLE_BYTES + 1} bytes, at most {MAX_BUNDLE_BYTES}"):
        read_file(huge)


@pytest.mark.parametrize("engine", ["litert", "onnxruntime", None])
def test_a_folder_gives_the_bundle_back(signed: Bundle, tmp_path: Path, engine: str | None) -> None:
    folder = tmp_path / "slot"
    write_folder(signed, folder, engine=engine)
    found = read_folder(folder, engine=engine)
    assert found == read_folder(folder)
    assert (found.manifest, found.metadata) == (signed.manifest, METADATA)
    assert found.files.items() <= signed.files.items()
    assert len(found.files) == (3 if engine else 5)
    assert oct(folder.stat().st_mode)[-3:] == "700"
    assert oct((folder / "tuf" / "timestamp.json").stat().st_mode)[-3:] == "600"


def test_a_folder_is_checked_like_a_container(signed: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "slot"
    write_folder(signed, folder, engine="litert")
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        read_folder(folder, engine="onnxruntime")
    (folder / "stray").touch()
    with pytest.raises(BundleError, match="holds stray"):
        read_folder(folder)
    (folder / "stray").unlink()
    model = folder / "model.tflite"
    good = model.read_bytes()
    model.write_bytes(good + b"!")
    with pytest.raises(BundleError, match=f"{len(good) + 1} bytes, at most {len(good)}"):
        read_folder(folder)
    model.write_bytes(good[:-1])
    with pytest.raises(BundleError, match=f"says {len(good)} bytes, got {len(good) - 1}"):
        read_folder(folder)
    model.unlink()
    with pytest.raises(BundleError, match="no model with its self-test is whole"):
        read_folder(folder)
    model.write_bytes(good)
    (folder / "probes.npz").unlink()
    with pytest.raises(BundleError, match=r"probes\.npz is missing"):
        read_folder(folder)
    with pytest.raises(BundleError, match="no bundle is installed there"):
        read_folder(tmp_path / "nothing")


def test_a_folder_in_use_is_never_written_into(signed: Bundle, tmp_path: Path) -> None:
    write_folder(signed, tmp_path / "slot", engine="litert")
    before = {p: p.read_bytes() for p in (tmp_path / "slot").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="an empty folder"):
        write_folder(signed, tmp_path / "slot")
    assert before == {p: p.read_bytes() for p in (tmp_path / "slot").rglob("*") if p.is_file()}


def test_an_interrupted_write_leaves_no_manifest(signed: Bundle, tmp_path: Path) -> None:
    class Failing(dict[str, bytes]):
        """Metadata that disappears after the files were written, as a full disk would make it."""

        def __getitem__(self, key: str) -> bytes:
            raise StorageError("no space left")

    with pytest.raises(StorageError):
        write_folder(Bundle(signed.manifest, signed.files, Failing(METADATA)), tmp_path / "slot")
    assert (tmp_path / "slot" / "model.tflite").exists()
    with pytest.raises(BundleError, match="no bundle is installed there"):
        read_folder(tmp_path / "slot")


def test_every_file_and_folder_is_flushed(signed: Bundle, tmp_path: Path) -> None:
    """Listens to fsync in a process of its own: each file, its folder, ``tuf`` and, last, the parent."""
    import subprocess
    import sys

    script = (
        "import os, sys, pathlib\n"
        "from kasmina_edge.bundle import read_file, write_folder\n"
        "bundle = read_file(pathlib.Path(sys.argv[1]))\n"
        "flushed = []\n"
        "real = os.fsync\n"
        "def fsync(fd):\n"
        "    flushed.append(os.readlink(f'/proc/self/fd/{fd}')); real(fd)\n"
        "os.fsync = fsync\n"
        "write_folder(bundle, pathlib.Path(sys.argv[2]) / 'slot')\n"
        "print('\\n'.join(flushed))\n"
    )
    path = tmp_path / "b.kasmina"
    path.write_bytes(pack(signed))
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    names = [line.removeprefix(str(tmp_path)).split(".tmp")[0] for line in done.stdout.splitlines()]
    for name in (*signed.files, "manifest.json"):
        assert any(f"/slot/.{name}" in n for n in names), name
    for name in METADATA:
        assert any(f"/slot/tuf/.{name}" in n for n in names), name
    assert {"/slot", "/slot/tuf", ""} <= set(names)
    assert names[-1] == ""


def test_no_model_for_an_engine_is_said(host_bundle: Bundle, tmp_path: Path) -> None:
    lite = make_bundle(engines=("litert",))
    with pytest.raises(BundleError, match="no model for onnxruntime; the bundle has litert"):
        lite.model_for("onnxruntime")
    with pytest.raises(BundleError, match="no model for litert compiled for edgetpu"):
        lite.model_for("litert", compiled_for="edgetpu")
    with pytest.raises(BundleError, match="no model for onnxruntime"):
        write_folder(lite, tmp_path / "slot", engine="onnxruntime")


def test_the_builder_keeps_its_promises(host_bundle: Bundle) -> None:
    graft = make_bundle(version="1.1.0", release=2, seed=1, grafts=(make_graft(),), parent=host_bundle)
    assert graft.manifest.host == graft.manifest.parent == host_bundle.manifest.content_digest()
    assert graft.files["probes.npz"] == host_bundle.files["probes.npz"]
    assert graft.files["model.tflite"] != host_bundle.files["model.tflite"]
    assert graft.manifest.probes is not None and graft.manifest.probes.samples == 200
