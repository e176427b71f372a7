"""What a device keeps by itself, through the whole runtime: only under a plan that says so, and sealed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from worlds.bundles import digits, make_bundle, make_profile
from worlds.fleets import MemoryFleet, plan_limits, wait_for
from worlds.telemetry import make_plan

from kasmina_edge.contracts.change_plan import CaptureSampling, Erasure
from kasmina_edge.runtime import Runtime
from kasmina_edge.runtime.field_capture import FieldCapture
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.safety.encryption import load_signing_key, public_hex
from kasmina_edge.telemetry.capture import CaptureStore, open_capture

SAMPLING = CaptureSampling(window_s=1.0, frames=2, low_score=0.9, low_score_frames=1)


def device(fleet: MemoryFleet, sampling: CaptureSampling | None) -> Path:
    """A device that committed the host under a plan with this sampling; its agent stopped."""
    data = fleet.enroll("cam-1")
    fleet.publish_host(make_bundle(), limits=plan_limits(capture_sampling=sampling))
    fleet.start("cam-1")
    fleet.wait_reported("cam-1", "committed", version="1.0.0")
    fleet.stop("cam-1")
    return data


def test_a_device_keeps_what_the_plan_has_it_pick(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = device(fleet, SAMPLING)
        frames = digits()[0]
        store = CaptureStore(data / "capture", fleet.office.repository.current_plan("digits"), "cam-1")
        with Runtime.open(data) as runtime:
            answered = iter(range(10**9))
            wait_for(lambda: runtime.infer(frames[next(answered) % 200]) and len(store.pending()) >= 4, "four frames")
        key = load_signing_key(data / "device.key")
        opened = [
            open_capture(store.upload(i, key), fleet.office.sealing_key(), public_hex(key)) for i in store.pending()
        ]
        known = {frame.tobytes() for frame in frames}
        assert all(c.array.astype(np.float32).tobytes() in known for c in opened)
        assert {c.bundle for c in opened} == {runtime.manifest.digest()}
        assert store.spent() is not None and store.spent()[0] == len(opened)  # type: ignore[index]


def test_without_sampling_in_the_plan_nothing_is_kept(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = device(fleet, None)
        with Runtime.open(data) as runtime:
            for frame in digits()[0][:200]:
                runtime.infer(frame)
            assert runtime.flush()
        assert not (data / "capture").exists() or not list((data / "capture").glob("*.sealed"))


@pytest.fixture
def serving() -> Serving:
    return Serving(make_bundle(probes=0), make_profile())


def test_a_plan_that_ends_lets_go_of_what_waits_in_memory(tmp_path: Path, serving: Serving) -> None:
    key = public_hex(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    budget = {"max_frames": 9, "max_bytes": 10**6, "sampling": SAMPLING}
    plan = make_plan(key, capture=make_plan(key).capture.model_copy(update=budget))  # type: ignore[union-attr]
    stores: list[CaptureStore | None] = [CaptureStore(tmp_path / "capture", plan, "cam-1", lambda: 0.0)]
    picks = FieldCapture(lambda name: stores[0], random.Random(0))
    frame = digits()[0][0]
    picks.look(serving, frame, score=0.5, drifted=False, at_s=0.0)
    assert picks.due(0.5) == 0
    stores[0] = None
    picks.look(serving, frame, score=0.5, drifted=False, at_s=0.6)
    assert picks.due(99.0) == 0 and not (tmp_path / "capture").exists()
    stores[0] = CaptureStore(tmp_path / "capture", plan, "cam-1", lambda: 0.0)
    picks.look(serving, frame, score=0.5, drifted=False, at_s=100.0)
    picks.look(serving, frame, score=0.95, drifted=False, at_s=100.1)
    assert picks.due(102.0) == 2 and len(stores[0].pending()) == 2


def test_a_window_ends_under_the_plan_of_that_moment(tmp_path: Path, serving: Serving) -> None:
    """No frame needs to come between the new plan and the end of the window; and the other picks are kept."""
    key = public_hex(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    capture = make_plan(key).capture.model_copy(update={"sampling": SAMPLING})  # type: ignore[union-attr]

    def store(*erasures: Erasure, serial: int = 1) -> CaptureStore:
        plan = make_plan(key, serial=serial, capture=capture, erasures=erasures)
        return CaptureStore(tmp_path / "capture", plan, "cam-1", lambda: 0.0)

    stores = [store()]
    picks = FieldCapture(lambda name: stores[0], random.Random(0))
    for at_s in (10.0, 10.6):
        picks.look(serving, digits()[0][0], score=0.95, drifted=False, at_s=at_s)
    stores[0] = store(Erasure(id="r", to_s=10.5), serial=2)
    assert picks.due(12.0) == 1 and len(stores[0].pending()) == 1
    picks.look(serving, digits()[0][0], score=0.95, drifted=False, at_s=20.0)
    stores[0] = CaptureStore(tmp_path / "capture", make_plan(key, serial=3, capture=None), "cam-1", lambda: 0.0)
    assert picks.due(22.0) == 0 and len(stores[0].pending()) == 1
