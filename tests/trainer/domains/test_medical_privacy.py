"""From electrode to controller: what rests or travels is sealed, and telemetry tells of no patient."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from worlds.telemetry import BUNDLE, Clock, make_plan, make_record

from kasmina_edge.bundle import pack
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import TrustError
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.encryption import public_hex
from kasmina_edge.safety.vault import open_vault
from kasmina_edge.telemetry.capture import CaptureStore, open_capture
from kasmina_trainer.datasets.medical_simulator import windows
from kasmina_trainer.ecg_detector import beats
from kasmina_trainer.ecg_detector.nets import BeatNet
from kasmina_trainer.export import export_bundle

BOX, OTHER_BOX = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
PEN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def longest_shared(held: bytes, window: np.ndarray) -> int:
    """Bytes of the longest run of this window's samples in what is held, tried at 64 places."""
    raw = np.ascontiguousarray(window).tobytes()
    places = np.linspace(0, len(raw) - 16, 64).astype(int) // 4 * 4
    return max((16 for at in places if raw[at : at + 16] in held), default=0)


def test_a_captured_window_is_readable_by_the_controller_alone(tmp_path: Path) -> None:
    window = windows.windows(0, [1], names=("vt",)).x[0].transpose(1, 2, 0).copy()
    store = CaptureStore(tmp_path / "capture", make_plan(public_hex(BOX)), "monitor-1", Clock())
    assert store.keep(window, bundle=BUNDLE) is not None
    (item,) = store.pending()
    held = b"".join(path.read_bytes() for path in (tmp_path / "capture").rglob("*") if path.is_file())
    sent = store.upload(item, PEN)
    assert longest_shared(window.tobytes(), window) == 16  # the search finds what is there
    assert longest_shared(held, window) == 0 == longest_shared(sent, window)
    assert np.array_equal(open_capture(sent, BOX, public_hex(PEN)).array, window)
    with pytest.raises(TrustError):
        open_capture(sent, OTHER_BOX, public_hex(PEN))
    broken = bytearray(sent)
    broken[-70] ^= 1
    with pytest.raises(TrustError):
        open_capture(bytes(broken), BOX, public_hex(PEN))


def test_what_a_monitor_keeps_for_later_is_sealed_under_its_vault(tmp_path: Path) -> None:
    record = make_record(3, device="monitor-1").to_bytes()
    sealer = open_vault(tmp_path, clock=Clock()).sealer("telemetry")
    held = sealer.seal(record, b"place 3")
    assert record[:24] not in held and b"monitor-1" not in held
    assert sealer.open(held, b"place 3") == record
    with pytest.raises(TrustError):
        sealer.open(held, b"place 4")


@pytest.mark.slow
def test_telemetry_of_a_deployed_net_tells_numbers_of_windows_and_nothing_of_patients(tmp_path: Path) -> None:
    """Two patients on one device: the records have the contract's fields, and no sample and no patient in them."""
    torch.manual_seed(0)
    x, y = beats.samples(0, range(20))
    frames = x.transpose(0, 2, 3, 1).copy()
    bundle = export_bundle(
        BeatNet().eval(),
        "beats",
        version="1.0.0",
        profile="x86-cpu",
        labels=("none", "beat"),
        calibration=frames[:400],
        held_out=(frames[400:700], y[400:700]),
        minimum_agreement=0.0,
    )
    desk = Repository.desk(tmp_path / "desk", clock=time.time)
    (tmp_path / "beats.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
    kept: list[TelemetryRecord] = []
    with Runtime.open(tmp_path / "beats.kasmina", telemetry=kept.append) as runtime:
        for number in (7654321, 8765432):
            given, _ = beats.samples(0, [number])
            for frame in given.transpose(0, 2, 3, 1):
                runtime.infer(frame.copy())
        assert runtime.flush()
    assert kept and sum(record.frames for record in kept) > 20
    for record in kept:
        told = record.to_bytes()
        assert set(json.loads(told)) <= set(TelemetryRecord.model_fields)
        assert b"7654321" not in told and b"8765432" not in told
        assert record.device == "local"
        for value in json.loads(told).values():
            assert not isinstance(value, list) or len(value) < 8 or all(isinstance(v, int) for v in value)
