"""The controller's verbs without a broker: what they refuse, what they show, what they write."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_bundle, make_frames
from worlds.fleets import grafted, plan_limits

from kasmina_edge.bundle import pack
from kasmina_edge.cli import main
from kasmina_edge.contracts.arrays import unpack_arrays
from kasmina_edge.contracts.record import Reported
from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.safety.audit import tail
from kasmina_edge.safety.encryption import load_signing_key
from kasmina_edge.telemetry.capture import CaptureStore, frame_digest

Read = pytest.CaptureFixture[str]


class Desk:
    """A fleet folder, a device folder and a signed host, driven through the program."""

    def __init__(self, folder: Path, capsys: Read) -> None:
        self.folder, self.capsys = folder, capsys
        self.host = make_bundle()
        signed = Repository.desk(folder / "desk", clock=time.time).sign_bundle(self.host)
        self.host_file = folder / "host.kasmina"
        self.host_file.write_bytes(pack(signed))
        self.fleet = ["--fleet", str(folder / "fleet")]
        self.offline = ["--offline-keys", str(folder / "offline")]
        self.call("fleet", "init", *self.fleet, *self.offline)

    def call(self, *arguments: str, code: int = 0) -> str:
        self.capsys.readouterr()
        assert main(list(arguments)) == code
        seen = self.capsys.readouterr()
        assert "Traceback" not in seen.err
        return " ".join((seen.err if code else seen.out).split())

    def office(self) -> FleetFolder:
        return FleetFolder(self.folder / "fleet", clock=time.time)


@pytest.fixture
def desk(tmp_path: Path, capsys: Read) -> Desk:
    return Desk(tmp_path, capsys)


def test_a_fleet_is_made_once_and_keeps_its_keys_private(desk: Desk) -> None:
    assert "a fleet is there already" in desk.call("fleet", "init", *desk.fleet, *desk.offline, code=2)
    for wrong in ("there", "http://there:1883", "mqtts://user:secret@there:8883"):
        other = ["--fleet", str(desk.folder / "other"), "--offline-keys", str(desk.folder / "other-keys")]
        said = desk.call("fleet", "init", *other, "--address", wrong, code=2)
        assert "address" in said and "secret" not in said and not (desk.folder / "other").exists()
    assert "not a fleet folder" in desk.call("fleet", "status", "--fleet", str(desk.folder / "none"), code=2)
    keys = [p for p in desk.folder.rglob("*") if p.suffix in (".pem", ".key")]
    assert len(keys) > 8
    assert all(p.stat().st_mode & 0o077 == 0 for p in keys)


def test_a_device_is_enrolled_once_into_a_folder_of_its_own(desk: Desk) -> None:
    data = ["--data", str(desk.folder / "cam-1")]
    assert "kasmina-edge run" in desk.call("fleet", "enroll", "cam-1", *data, "--group", "line-2", *desk.fleet)
    assert "enrolled already" in desk.call("fleet", "enroll", "cam-1", "--data", "/x", *desk.fleet, code=2)
    assert "belongs to a device already" in desk.call("fleet", "enroll", "cam-2", *data, *desk.fleet, code=2)
    assert "device id 'Cam 3'" in desk.call("fleet", "enroll", "Cam 3", "--data", "/x", *desk.fleet, code=2)
    assert "no profile" in desk.call(
        "fleet", "enroll", "cam-4", "--data", "/x", "--profile", "nothing", *desk.fleet, code=2
    )
    assert desk.office().config.devices[0].groups == ("all", "line-2")
    assert "never seen" in desk.call("fleet", "status", *desk.fleet)
    assert json.loads(desk.call("fleet", "status", "--json", *desk.fleet)) == {"devices": {"cam-1": None}}


def test_publishing_needs_recipients_keys_and_good_numbers(desk: Desk) -> None:
    host = str(desk.host_file)
    assert "no such device or group" in desk.call(
        "fleet", "publish", host, "--to", "cam-9", *desk.fleet, *desk.offline, code=2
    )
    desk.call("fleet", "enroll", "cam-1", "--data", str(desk.folder / "cam-1"), *desk.fleet)
    nowhere = ["--offline-keys", str(desk.folder / "nowhere")]
    assert "offline keys" in desk.call("fleet", "publish", host, *desk.fleet, *nowhere, code=2)
    assert "release 1 to @all" in desk.call("fleet", "publish", host, *desk.fleet, *desk.offline)
    good = desk.folder / "good.kasmina"
    good.write_bytes(
        pack(Repository.desk(desk.folder / "desk", clock=time.time).sign_bundle(grafted(desk.host, "1.1.0")))
    )
    refusal = desk.call("fleet", "publish", str(good), *desk.fleet, code=3)
    assert "devices would refuse it" in refusal and "no change plan" in refusal
    plan = ["--blueprint", "depthwise", "--site", "s1"]
    desk.call("fleet", "plan", host, *plan, *desk.fleet, *desk.offline)
    bad = desk.folder / "bad.kasmina"
    signed = Repository.desk(desk.folder / "desk", clock=time.time).sign_bundle(
        grafted(desk.host, "1.1.0", accepted=False)
    )
    bad.write_bytes(pack(signed))
    assert "--accept-anyway" in desk.call("fleet", "publish", str(bad), *desk.fleet, code=2)
    assert "accept_anyway" not in (desk.folder / "fleet" / "audit.log").read_text()
    said = desk.call("fleet", "publish", str(bad), "--accept-anyway", *desk.fleet)
    assert "model.tflite" in said and "deltas" in said
    log = (desk.folder / "fleet" / "audit.log").read_text()
    assert "accept_anyway" in log and "plan_ignored" not in log
    assert "release 3" in desk.call("fleet", "withdraw", "digits", *desk.fleet)


def test_plans_are_drafted_signed_and_counted(desk: Desk) -> None:
    call = ["fleet", "plan", str(desk.host_file), "--site", "s1", *desk.fleet, *desk.offline]
    assert "NAME@VERSION" in desk.call(*call, "--blueprint", "depthwise@one", code=2)
    for serial in (1, 2):
        value = json.loads(desk.call(*call, "--blueprint", "depthwise@1", "--blueprint", "depthwise@2", "--json"))
        assert value["serial"] == serial and value["blueprints"] == {"depthwise": [1, 2]}
        assert value["capture"] is None and value["controller_key"] is None


def test_captured_inputs_come_out_labelled_and_only_here(desk: Desk) -> None:
    data = desk.folder / "cam-1"
    desk.call("fleet", "enroll", "cam-1", "--data", str(data), *desk.fleet)
    office = desk.office()
    plan = office.draft_plan(desk.host.manifest, plan_limits())
    kept = CaptureStore(data / "capture", plan, "cam-1", clock=time.time)
    frames = make_frames(3).reshape(3, 16, 16, 1)
    lines = []
    for i, frame in enumerate(frames):
        assert kept.keep(frame, bundle="0" * 64)
        if i < 2:
            lines.append(f"{frame_digest(frame)},{i}\n")
    sealed = b"".join(p.read_bytes() for p in (data / "capture").iterdir())
    assert frames[0].tobytes() not in sealed
    store = office.store()
    for item in kept.pending():
        store.add_capture("cam-1", kept.upload(item, load_signing_key(data / "device.key")))
    labels, out = desk.folder / "labels.csv", desk.folder / "captured.npz"
    labels.write_text("".join(lines))
    call = ["fleet", "captures", "cam-1", "--labels", str(labels), "--out", str(out), *desk.fleet]
    assert "2 labelled inputs of cam-1" in desk.call(*call)
    arrays = unpack_arrays(out.read_bytes(), where="captured")
    assert np.array_equal(arrays["x"], frames[:2]) and arrays["y"].tolist() == [0, 1]
    assert json.loads(out.with_suffix(".batches.json").read_text()) == ["cam-1/000000"]
    call[2] = "cam-9"
    assert "not enrolled here" in desk.call(*call, code=2)
    assert "no annotation file" in desk.call(
        "fleet", "captures", "cam-1", "--labels", "/none.csv", "--out", "x", *desk.fleet, code=2
    )


def test_the_monitor_shows_an_empty_fleet_and_json(desk: Desk) -> None:
    assert "No device was heard of yet" in desk.call("monitor", *desk.fleet)
    assert json.loads(desk.call("monitor", "--json", *desk.fleet)) == {"alerts": [], "devices": [], "raised": []}


def test_a_security_alert_stands_in_every_view_until_it_is_acknowledged(desk: Desk) -> None:
    desk.call("fleet", "enroll", "cam-1", "--data", str(desk.folder / "cam-1"), *desk.fleet)
    store = desk.office().store()
    for sequence, (seq, entry) in enumerate(((9, "a" * 64), (4, "b" * 64))):
        store.set_reported(
            Reported(device="cam-1", boot=1, sequence=sequence, at_s=1.0, audit_seq=seq, audit_hash=entry)
        )
    store.close()
    words = "the log ends at entry 4, entry 9 aaaaaaaaaaaa was told before"
    for view in (["fleet", "status"], ["monitor"]):
        assert words in desk.call(*view, *desk.fleet)
    shown = json.loads(desk.call("fleet", "status", "--json", *desk.fleet))["devices"]["cam-1"]["alerts"]
    assert [(a["kind"], a["severity"]) for a in shown] == [("audit_regress", "critical")]
    assert json.loads(desk.call("monitor", "--json", *desk.fleet))["raised"] == shown
    assert "audit_regress acknowledged" in desk.call("fleet", "acknowledge", "cam-1", *desk.fleet)
    assert "no security alert stands" in desk.call("fleet", "acknowledge", "cam-1", *desk.fleet, code=2)
    assert words not in desk.call("monitor", *desk.fleet)
    (noted,) = tail(desk.folder / "fleet" / "audit.log", 1)
    assert (noted.event, noted.fields["kinds"]) == ("alerts_acknowledged", ["audit_regress"])


def test_a_new_plan_keeps_the_hosts_of_what_is_assigned(desk: Desk) -> None:
    for device in ("cam-1", "cam-2"):
        desk.call("fleet", "enroll", device, "--data", str(desk.folder / device), *desk.fleet)
    office, offline = desk.office(), desk.folder / "offline"
    second, third = (make_bundle(version=f"{i}.0.0", seed=i) for i in (2, 3))
    office.publish(desk.host, to=["cam-1"], offline_keys=offline)
    office.publish(grafted(desk.host, "1.1.0"), to=["cam-1"], accept_anyway=True)
    assert "plan_ignored" in (desk.folder / "fleet" / "audit.log").read_text()
    office.publish(second, to=["cam-2"], offline_keys=offline)
    plan = office.draft_plan(third.manifest, plan_limits())
    assert plan.hosts == tuple(b.manifest.content_digest() for b in (third, second, desk.host))
    office.publish(third, to=["cam-2"], offline_keys=offline, plan=plan)
    assert office.withdraw("digits", to=["cam-1"]).manifest.content_digest() == plan.hosts[2]
    again = office.draft_plan(third.manifest, plan_limits())
    assert again.hosts == (plan.hosts[0], plan.hosts[2])  # nobody is assigned the second any more


def test_withdrawing_what_the_plan_does_not_list_is_exit_3(desk: Desk) -> None:
    desk.call("fleet", "enroll", "cam-1", "--data", str(desk.folder / "cam-1"), *desk.fleet)
    office, offline = desk.office(), desk.folder / "offline"
    office.publish(desk.host, to=["@all"], offline_keys=offline)
    office.publish(grafted(desk.host, "1.1.0"), to=["@all"], accept_anyway=True)
    plan = office.draft_plan(make_bundle(version="2.0.0", seed=2).manifest, plan_limits())
    office.repository.set_plan(plan.model_copy(update={"hosts": plan.hosts[:1]}), offline)
    assert "does not list this host" in desk.call("fleet", "withdraw", "digits", *desk.fleet, code=3)
