"""From a device's sealed frames and an annotator's file to training data, with everything left out counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from worlds.telemetry import BUNDLE, Clock, make_frame, make_plan

from kasmina_edge.contracts.change_plan import CaptureBudget
from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.fleet.captures import batch_id, export_labelled, read_annotations
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.safety.encryption import public_hex
from kasmina_edge.telemetry.capture import CaptureStore, frame_digest

BOX = X25519PrivateKey.generate()
PENS = {"cam-1": Ed25519PrivateKey.generate(), "cam-2": Ed25519PrivateKey.generate()}
PUBLICS = {device: public_hex(pen) for device, pen in PENS.items()}


def capture(store: FleetStore, folder: Path, device: str, frames: list[np.ndarray], pen: Ed25519PrivateKey) -> None:
    plan = make_plan(public_hex(BOX), capture=CaptureBudget(max_frames=1000, max_bytes=10**7))
    kept = CaptureStore(folder / device, plan, device, Clock())
    for frame in frames:
        kept.keep(frame, bundle=BUNDLE)
    for item in kept.pending():
        store.add_capture(device, kept.upload(item, pen))
        kept.forget(item)


def test_labelled_frames_come_out_and_the_rest_is_counted(tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.db", clock=Clock())
    frames = [make_frame(i) for i in range(70)]
    capture(store, tmp_path, "cam-1", [*frames, frames[3]], PENS["cam-1"])
    labels = {frame_digest(f): i % 10 for i, f in enumerate(frames) if i not in (5, 6)}
    labels["f" * 64] = 1
    found = export_labelled(store, BOX, PUBLICS, labels)
    x, y, batches = found
    kept = [i for i in range(70) if i not in (5, 6)]
    assert x.dtype == np.float32 and x.shape == (68, 16, 16, 1) and y.dtype == np.int64
    assert np.array_equal(x, np.stack([frames[i] for i in kept])) and y.tolist() == [i % 10 for i in kept]
    assert batches == found.batches == ("cam-1/000000", "cam-1/000001") == (batch_id("cam-1", 0), batch_id("cam-1", 64))
    assert (found.unlabelled, found.unknown, found.repeated, found.refused) == (2, 1, 1, ())


def test_only_the_devices_asked_for(tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.db", clock=Clock())
    for i, device in enumerate(PENS):
        capture(store, tmp_path, device, [make_frame(i)], PENS[device])
    labels = {frame_digest(make_frame(i)): i for i in range(2)}
    assert export_labelled(store, BOX, PUBLICS, labels, devices=["cam-2"]).y.tolist() == [1]
    assert export_labelled(store, BOX, PUBLICS, labels).y.tolist() == [0, 1]


def test_what_cannot_be_trusted_is_left_out_with_its_reason(tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.db", clock=Clock())
    capture(store, tmp_path, "cam-1", [make_frame(0)], PENS["cam-1"])
    capture(store, tmp_path, "cam-2", [make_frame(1)], PENS["cam-1"])  # signed with another device's key
    capture(store, tmp_path, "cam-3", [make_frame(2)], PENS["cam-1"])  # not enrolled
    labels = {frame_digest(make_frame(i)): i for i in range(3)}
    found = export_labelled(store, BOX, PUBLICS, labels)
    assert found.y.tolist() == [0] and found.unknown == 2
    assert len(found.refused) == 2 and "signature" in found.refused[0] and "not enrolled" in found.refused[1]
    wrong = export_labelled(store, X25519PrivateKey.generate(), PUBLICS, labels)
    assert wrong.x.shape == (0, 16, 16, 1) and len(wrong.refused) == 3


def test_frames_of_one_shape_only(tmp_path: Path) -> None:
    store = FleetStore(tmp_path / "fleet.db", clock=Clock())
    flat, batched = make_frame(1)[..., 0], make_frame(2)[None]
    capture(store, tmp_path, "cam-1", [make_frame(0), flat, batched], PENS["cam-1"])
    labels = {frame_digest(f): 0 for f in (make_frame(0), flat, batched)}
    assert export_labelled(store, BOX, PUBLICS, labels).x.shape == (3, 16, 16, 1)
    odd = np.zeros((8, 8, 1), np.float32)
    capture(store, tmp_path, "cam-1", [odd], PENS["cam-1"])
    with pytest.raises(InputError, match="2 shapes"):
        export_labelled(store, BOX, PUBLICS, {**labels, frame_digest(odd): 0})


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_annotations_are_read_with_and_without_a_first_line(tmp_path: Path) -> None:
    a, b = "a" * 64, "b" * 64
    expected = {a: 3, b: 0}
    assert read_annotations(write(tmp_path, f"{a},3\n{b},0\n")) == expected
    assert read_annotations(write(tmp_path, f"\ufeffdigest,label\r\n{a}, 3\r\n\r\n{b},0\r\n{a},3")) == expected
    assert read_annotations(write(tmp_path, "")) == {}


@pytest.mark.parametrize(
    "text, message",
    [
        (f"{'a' * 64}\n", r":1: expected 2 columns"),
        (f"{'a' * 64},1\n{'a' * 63},1\n", r":2: expected 64 hex digits"),
        (f"{'A' * 64},1\n", r":1: expected 64 hex digits"),
        (f"{'a' * 64},seven\n", r":1: expected a class index from 0 up, got 'seven'"),
        (f"{'a' * 64},-1\n", r":1: expected a class index"),
        (f"{'a' * 64},1\n{'a' * 64},2\n", r":2: label 2 for aaaaaaaaaaaa, an earlier line says 1"),
        (f'{"a" * 64},"1\n', r"not CSV"),
        (b"\xff\xfe,1\n", r"not UTF-8"),
    ],
)
def test_malformed_annotations_name_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_annotations(write(tmp_path, text))


def test_missing_and_oversized_annotations_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no annotation file"):
        read_annotations(tmp_path / "missing.csv")
    with pytest.raises(StorageError):
        read_annotations(tmp_path)
    path = tmp_path / "big.csv"
    with path.open("wb") as stream:
        stream.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(InputError, match="more than 67108864 bytes"):
        read_annotations(path)
