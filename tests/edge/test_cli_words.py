"""What the program says where a new user tripped: each case was met in use."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli_fleet import Desk
from worlds.bundles import digits, make_bundle
from worlds.fleets import grafted, plan_limits

from kasmina_edge.bundle import pack
from kasmina_edge.cli import main
from kasmina_edge.cli.output import size_text
from kasmina_edge.contracts.arrays import unpack_arrays
from kasmina_edge.contracts.record import DeviceState
from kasmina_edge.fleet.monitor import DeviceView, device_alerts, fleet_table
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.safety.encryption import load_signing_key
from kasmina_edge.slots import SlotStore
from kasmina_edge.telemetry.capture import CaptureStore

Read = pytest.CaptureFixture[str]
PLAN = ["--blueprint", "depthwise", "--site", "s1"]


@pytest.fixture
def desk(tmp_path: Path, capsys: Read) -> Desk:
    return Desk(tmp_path, capsys)


@given(st.integers(0, 9 * 10**14))
def test_a_size_is_told_in_the_unit_that_fits(size: int) -> None:
    """``1073742 kB`` was 1 GiB of memory: never more than three digits, and never off by more than rounding."""
    number, unit = size_text(size).split()
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert float(number) <= 999 and abs(float(number) * scale - size) <= max(0.052 * size, 0)
    assert size < 1000 or float(number) >= 1


def test_a_plan_that_would_allow_nothing_is_not_signed(desk: Desk) -> None:
    host = ["fleet", "plan", str(desk.host_file), *desk.fleet, *desk.offline]
    assert "may keep none" in desk.call(*host, *PLAN, "--capture-random", "2", code=2)
    assert "to 1" in desk.call(*host, *PLAN, "--minimum-accuracy", "3", code=2)
    grown = desk.folder / "grown.kasmina"
    signed = Repository.desk(desk.folder / "desk", clock=time.time).sign_bundle(grafted(desk.host, "1.1.0"))
    grown.write_bytes(pack(signed))
    said = desk.call("fleet", "plan", str(grown), *PLAN, *desk.fleet, *desk.offline, code=2)
    assert "carries grafts" in said
    assert desk.office().repository.current_plan("digits") is None


def test_a_signed_plan_is_told(desk: Desk) -> None:
    rule = ["--capture-frames", "9", "--capture-random", "2", "--capture-days", "14"]
    said = desk.call("fleet", "plan", str(desk.host_file), *PLAN, *rule, *desk.fleet, *desk.offline)
    assert "depthwise v1 at s1" in said and "9 frames" in said and "14 days" in said and "picked by devices too" in said


def test_publishing_another_name_says_what_apps_will_do(desk: Desk) -> None:
    desk.call("fleet", "enroll", "cam-1", "--data", str(desk.folder / "cam-1"), *desk.fleet)
    desk.call("fleet", "publish", str(desk.host_file), *desk.fleet, *desk.offline)
    other = desk.folder / "other.kasmina"
    signed = Repository.desk(desk.folder / "desk", clock=time.time).sign_bundle(make_bundle("letters"))
    other.write_bytes(pack(signed))
    assert main(["fleet", "publish", str(other), *desk.fleet, *desk.offline]) == 0
    assert "digits is assigned there too" in " ".join(desk.capsys.readouterr().err.split())


def test_an_agent_that_holds_the_folder_and_says_nothing_hangs(tmp_path: Path, capsys: Read) -> None:
    store = SlotStore(tmp_path)
    call = ["status", "--health", "--data", str(tmp_path)]
    assert main(call) == 5 and "no agent answers" in capsys.readouterr().err
    with store.lock_agent():
        assert main(call) == 1 and "does not answer" in capsys.readouterr().err
    assert main(call) == 5


def test_a_bundle_that_was_taken_back_is_not_called_previous(tmp_path: Path, capsys: Read) -> None:
    store = SlotStore(tmp_path)
    store.begin_trial(store.install(make_bundle(), engine="litert"))
    store.confirm()
    store.begin_trial(store.install(make_bundle(version="1.1.0", release=2, seed=1), engine="litert"))
    store.roll_back("it does harm")
    assert main(["status", "--data", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(quarantined)" in said and "(previous)" not in said


def test_infer_shows_the_outputs(tmp_path: Path, capsys: Read) -> None:
    bundle = make_bundle(probes=0)
    manifest = bundle.manifest.model_copy(update={"head": "other"})
    path, frames = tmp_path / "raw.kasmina", tmp_path / "x.npy"
    signed = Repository.desk(tmp_path / "desk", clock=time.time)
    path.write_bytes(pack(signed.sign_bundle(type(bundle)(manifest, bundle.files))))
    np.save(frames, digits()[0][:2])
    assert main(["infer", str(frames), "--bundle", str(path)]) == 0
    assert "logits" in capsys.readouterr().out
    assert main(["infer", str(frames), "--bundle", str(path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == 2 and np.array(results[0]["outputs"]["logits"]).shape == (1, 10)


def test_an_agent_without_an_app_is_not_called_silent() -> None:
    view = DeviceView("cam-1", online=True, boot=3, last_heard_s=0.0)
    assert DeviceState(device="cam-1", online=True, boot=3)
    assert device_alerts(view, now=1000.0) == ()


@pytest.mark.parametrize("width", [80, 120])
def test_the_monitor_fits_its_terminal(width: int) -> None:
    from io import StringIO

    from rich.console import Console

    views = [DeviceView(f"cam-{i}", online=True, boot=1, last_heard_s=0.0) for i in range(3)]
    out = StringIO()
    Console(file=out, width=width).print(fleet_table(views, now=5.0, width=width))
    text = out.getvalue()
    assert "…" not in text and "drift" in text and all(len(line) <= width for line in text.splitlines())
    assert ("p50" in text) == (width >= 120)


def test_from_captured_frames_to_labels_and_back(desk: Desk) -> None:
    data = desk.folder / "cam-1"
    desk.call("fleet", "enroll", "cam-1", "--data", str(data), *desk.fleet)
    office = desk.office()
    plan = office.draft_plan(desk.host.manifest, plan_limits())
    kept = CaptureStore(data / "capture", plan, "cam-1", clock=lambda: 100.0)
    images = digits()[0][:3].reshape(3, 16, 16, 1)
    for frame in images:
        assert kept.keep(frame, bundle="0" * 64)
    for item in kept.pending():
        office.store().add_capture("cam-1", kept.upload(item, load_signing_key(data / "device.key")))
    out = desk.folder / "to-label"
    said = desk.call("fleet", "frames", "cam-1", "--out", str(out), *desk.fleet)
    assert "3 captured inputs" in said and "labels.csv" in said
    assert (out.stat().st_mode & 0o077) == 0
    lines = (out / "labels.csv").read_text().splitlines()
    assert lines[0] == "digest,label" and len(lines) == 4
    first = lines[1].rstrip(",")
    assert np.array_equal(np.load(out / f"{first}.npy"), images[0])
    (out / "labels.csv").write_text("\n".join([lines[0], f"{first},7", *lines[2:]]) + "\n")
    captured = desk.folder / "captured.npz"
    call = ["fleet", "captures", "cam-1", "--labels", str(out / "labels.csv"), "--out", str(captured), *desk.fleet]
    assert "1 labelled inputs" in desk.call(*call)
    assert unpack_arrays(captured.read_bytes(), where="captured")["y"].tolist() == [7]
    assert "not empty" in desk.call("fleet", "frames", "cam-1", "--out", str(out), *desk.fleet, code=2)


def test_who_has_erased_is_shown(desk: Desk) -> None:
    assert "None demanded" in desk.call("fleet", "erasures", *desk.fleet)
    for device in ("cam-1", "cam-2"):
        desk.call("fleet", "enroll", device, "--data", str(desk.folder / device), *desk.fleet)
    desk.call("fleet", "erase", "@all", "--to", "2026-01-02", "--id", "dpo-7", "--yes", *desk.fleet, *desk.offline)
    event = {"device": "cam-1", "event": "captures_erased", "fields": {"erasure": "dpo-7", "frames": 3}}
    desk.office().store().add_event("cam-1", json.dumps(event).encode())
    said = desk.call("fleet", "erasures", *desk.fleet)
    assert "cam-1 (3 frames)" in said and said.rstrip().endswith("cam-2")
    value = json.loads(desk.call("fleet", "erasures", "--json", *desk.fleet))["erasures"]["dpo-7"]
    assert value["proven"] == {"cam-1": 3} and value["waiting"] == ["cam-2"]
