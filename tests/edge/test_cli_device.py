"""The verbs of one device: what people see, what machines read, and what every kind of bad input costs (nothing)."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_bundle, make_frames
from worlds.fleets import grafted

from kasmina_edge.bundle import Bundle, pack, read_file
from kasmina_edge.cli import main
from kasmina_edge.contracts.arrays import pack_members, unpack_members
from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.audit import tail, verify
from kasmina_edge.slots import SlotStore
from kasmina_edge.updates.floor import FloorFile

Read = pytest.CaptureFixture[str]


@pytest.fixture
def desk(tmp_path: Path) -> Repository:
    return Repository.desk(tmp_path / "desk", clock=time.time)


def write(desk: Repository, bundle: Bundle, folder: Path) -> Path:
    path = folder / f"{bundle.manifest.name}-{bundle.manifest.version}.kasmina"
    path.write_bytes(pack(desk.sign_bundle(bundle)))
    return path


@pytest.fixture
def deployed(tmp_path: Path, desk: Repository) -> Path:
    """A data folder with digits 1.0.0 in it."""
    data = tmp_path / "data"
    assert main(["deploy", str(write(desk, make_bundle(), tmp_path)), "--data", str(data), "--json"]) == 0
    return data


def still_runs(data: Path, version: str = "1.0.0") -> None:
    """The active slot answers, nothing is on trial, the audit chain holds."""
    with Runtime.open(data, telemetry=None) as runtime:
        assert runtime.manifest.version == version
        runtime.infer(make_frames(1)[0])
    assert SlotStore(data).record().trial is None
    assert verify(data / "audit.log").ok


def refused(capsys: Read, arguments: list[str], code: int, *words: str) -> str:
    """The call exits with ``code`` and one sentence that holds ``words``."""
    capsys.readouterr()
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    flat = " ".join(err.split())
    for word in words:
        assert word in flat, flat
    assert re.search(rf"\(exit {code}\)", flat)
    return flat


def test_deploy_says_what_runs_where_and_why(tmp_path: Path, desk: Repository, capsys: Read) -> None:
    path, data = write(desk, make_bundle(), tmp_path), tmp_path / "data"
    assert main(["deploy", str(path), "--profile", "coral", "--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert "Deployed digits 1.0.0" in out and "desk key" in out and "no fleet root pinned" in out
    assert "LiteRT CPU" in out and "Edge TPU: libedgetpu.so.1 not found" in out
    assert "64 of 64" in out or "within tolerance" in out
    assert "slot A" in out and "previous: none" in out
    still_runs(data)


def test_an_engine_that_only_predicts_says_so_everywhere(
    tmp_path: Path, desk: Repository, capsys: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deploy, status and infer, with the setting and - each time - without it."""
    path, data = write(desk, make_bundle(), tmp_path), tmp_path / "data"
    np.save(tmp_path / "one.npy", make_frames(1)[0])
    calls = (
        ["deploy", str(path), "--profile", "coral", "--data", str(data)],
        ["status", "--data", str(data)],
        ["infer", str(tmp_path / "one.npy"), "--data", str(data)],
        ["infer", str(tmp_path / "one.npy"), "--data", str(data), "--bundle", str(path)],
    )
    for name in ("simulated", ""):
        monkeypatch.setenv("KASMINA_DEVICE_ENGINE", name)
        for call in calls:
            assert main(call) == 0
            out = " ".join(capsys.readouterr().out.split())
            assert ("simulated" in out) == (name == "simulated"), out
            assert ("doctor explains" in out) == (name == "" and call[0] == "deploy"), out
            assert main([*call, "--json"]) == 0
            assert ("simulated coral-usb" in capsys.readouterr().out) == (name == "simulated" and call[0] != "status")
        assert main(["status", "--data", str(data), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["engine"]["simulated"] == (name == "simulated")


def test_json_is_one_object_with_stable_keys(tmp_path: Path, desk: Repository, capsys: Read) -> None:
    path, data = write(desk, make_bundle(), tmp_path), tmp_path / "data"
    assert main(["deploy", str(path), "--data", str(data), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {"name", "version", "digest", "slot", "engine", "trust", "self_test", "probes", "previous"} <= set(value)
    assert value["trust"] == "desk" and value["slot"] == "a" and value["probes"]["trial"] == 1.0
    assert main(["status", "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["active"]["digest"] == value["digest"]


def test_a_second_deploy_keeps_the_first_to_return_to(
    deployed: Path, tmp_path: Path, desk: Repository, capsys: Read
) -> None:
    path = write(desk, make_bundle(version="1.1.0", release=2, provenance={"note": "second"}), tmp_path)
    assert main(["deploy", str(path), "--data", str(deployed)]) == 0
    assert "previous: digits 1.0.0 in slot A" in " ".join(capsys.readouterr().out.split())
    still_runs(deployed, "1.1.0")
    assert main(["rollback", "--data", str(deployed)]) == 0
    assert "digits 1.0.0 in slot A" in capsys.readouterr().out
    still_runs(deployed)
    assert main(["status", "--data", str(deployed)]) == 0
    assert "digits 1.1.0" in capsys.readouterr().out


def test_deploy_says_that_the_gate_refused_what_grew(
    deployed: Path, tmp_path: Path, desk: Repository, capsys: Read
) -> None:
    host = make_bundle()
    good, bad = grafted(host, "1.1.0"), grafted(host, "1.2.0", seed=2, accepted=False)
    unmeasured = grafted(host, "1.3.0", seed=3)
    unmeasured = Bundle(unmeasured.manifest.model_copy(update={"acceptance": None}), unmeasured.files, {})
    said = {}
    for bundle in (good, bad, unmeasured):
        call = ["deploy", str(write(desk, bundle, tmp_path)), "--data", str(deployed)]
        capsys.readouterr()
        assert main(call) == 0
        said[bundle.manifest.version] = " ".join(capsys.readouterr().out.split())
        assert main([*call, "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert bool(value["doubt"]) == (bundle is not good)
        assert (value["acceptance"] or {}).get("accepted") == {"1.1.0": True, "1.2.0": False}.get(value["version"])
    assert "acceptance gate" not in said["1.1.0"]
    assert "REFUSED by the acceptance gate (clean accuracy lost)" in said["1.2.0"]
    assert "depthwise at s1" in said["1.2.0"] and "`kasmina-edge rollback` takes it back" in said["1.2.0"]
    assert "was never measured by the acceptance gate" in said["1.3.0"]


def test_a_refused_first_bundle_has_nothing_to_roll_back_to(tmp_path: Path, desk: Repository, capsys: Read) -> None:
    path = write(desk, grafted(make_bundle(), "1.2.0", accepted=False), tmp_path)
    assert main(["deploy", str(path), "--data", str(tmp_path / "data")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "deploy the host's bundle instead" in out and "rollback" not in out


def test_without_a_bundle_the_newest_acceptable_one_is_taken(
    tmp_path: Path, desk: Repository, capsys: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["deploy"], 2, "no bundle was built here", "make demo", "kasmina-trainer export")
    (tmp_path / "build" / "demo").mkdir(parents=True)
    host = make_bundle()
    paths = [write(desk, b, tmp_path / "build" / "demo") for b in (host, grafted(host, "1.1.0"))]
    paths.append(write(desk, grafted(host, "1.2.0", seed=2, accepted=False), tmp_path / "build"))
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (time.time() - age * 60,) * 2)
    assert main(["deploy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "1.1.0"


def test_the_same_bundle_again_changes_nothing_and_keeps_the_way_back(
    deployed: Path, tmp_path: Path, desk: Repository, capsys: Read
) -> None:
    path = write(desk, make_bundle(version="1.1.0", release=2, provenance={"note": "second"}), tmp_path)
    call = ["deploy", str(path), "--data", str(deployed), "--profile", "coral"]
    assert main(call) == 0
    before = SlotStore(deployed).record()
    capsys.readouterr()
    assert main([*call, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["already_active"] and value["previous"] == "digits 1.0.0"
    assert (SlotStore(deployed).record().active, SlotStore(deployed).record().previous) == (
        before.active,
        before.previous,
    )
    refused(capsys, [*call, "--require-accelerator"], 4, "libedgetpu.so.1")
    slot = SlotStore(deployed).folder(before.active or "a")
    (slot / "model.tflite").write_bytes(b"rotten")
    assert main([*call, "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["already_active"], "a damaged slot is installed again"
    still_runs(deployed, "1.1.0")


def test_the_profile_of_the_first_deploy_is_remembered(tmp_path: Path, desk: Repository, capsys: Read) -> None:
    path, data = write(desk, make_bundle(), tmp_path), tmp_path / "data"
    assert main(["deploy", str(path), "--data", str(data), "--profile", "coral"]) == 0
    capsys.readouterr()
    assert main(["status", "--data", str(data), "--settings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device.profile"]["value"] == "coral-usb"


def test_require_accelerator_is_exit_4_and_costs_nothing(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    call = ["deploy", str(tmp_path / "digits-1.0.0.kasmina"), "--data", str(deployed), "--profile", "coral"]
    said = refused(capsys, [*call, "--require-accelerator"], 4, "Not deployed: profile coral", "libedgetpu.so.1")
    assert "leave out --require-accelerator" in said
    still_runs(deployed)


def test_unknown_and_malformed_profiles(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    call = ["deploy", str(tmp_path / "digits-1.0.0.kasmina"), "--data", str(deployed), "--profile"]
    refused(capsys, [*call, "corral"], 2, "no profile is called 'corral'", "coral")
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "bad"\nclock_mhz = -1\n')
    refused(capsys, [*call, str(bad)], 2, str(bad))
    refused(capsys, [*call, str(tmp_path / "none.toml")], 2, "cannot be read")
    still_runs(deployed)


def test_a_truncated_bundle(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    path = tmp_path / "digits-1.0.0.kasmina"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 1, "Not deployed", str(path), "truncated")
    still_runs(deployed)


def test_a_tampered_bundle(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    path = tmp_path / "digits-1.0.0.kasmina"
    members = unpack_members(path.read_bytes(), where="x", max_bytes=10**8)
    name = read_file(path).manifest.models[0].file.path
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])
    path.write_bytes(pack_members(members))
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 1, name, "sha256")
    still_runs(deployed)


def test_an_unsigned_bundle(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    path = tmp_path / "unsigned.kasmina"
    path.write_bytes(pack(make_bundle(version="1.1.0")))
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 3, "Not deployed")
    still_runs(deployed)


def test_a_bundle_of_another_desk(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    other = Repository.desk(tmp_path / "other-desk", clock=time.time)
    path = write(other, make_bundle(version="1.1.0"), tmp_path)
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 3, "Not deployed")
    still_runs(deployed)


def test_a_manifest_that_was_changed_after_signing(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    path = tmp_path / "digits-1.0.0.kasmina"
    members = unpack_members(path.read_bytes(), where="x", max_bytes=10**8)
    members["manifest.json"] = members["manifest.json"].replace(b'"version":"1.0.0"', b'"version":"9.0.0"')
    path.write_bytes(pack_members(members))
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 3, "Not deployed")
    still_runs(deployed)


def test_a_manifest_with_an_unknown_field(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    path = tmp_path / "digits-1.0.0.kasmina"
    members = unpack_members(path.read_bytes(), where="x", max_bytes=10**8)
    value = json.loads(members["manifest.json"])
    value["telepathy"] = True
    members["manifest.json"] = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(pack_members(members))
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 1, "telepathy", "unknown field")
    still_runs(deployed)


def test_a_model_whose_tensors_differ_from_the_manifest(
    deployed: Path, tmp_path: Path, desk: Repository, capsys: Read
) -> None:
    made = make_bundle(version="1.1.0")
    manifest = made.manifest
    model = manifest.models[0]
    wrong = model.model_copy(update={"inputs": (model.inputs[0].model_copy(update={"scale": 0.5}),)})
    other = manifest.model_copy(update={"models": (wrong, *manifest.models[1:])})
    path = write(desk, Bundle(other, made.files, {}), tmp_path)
    refused(capsys, ["deploy", str(path), "--data", str(deployed)], 6, "scale", "0.5")
    still_runs(deployed)
    failure = SlotStore(deployed).record().last_failure
    assert failure is not None and "scale" in failure.reason


def test_a_harmful_bundle_is_rolled_back_and_quarantined(
    deployed: Path, tmp_path: Path, desk: Repository, capsys: Read
) -> None:
    path = write(desk, make_bundle(version="1.1.0", corrupt=True), tmp_path)
    call = ["deploy", str(path), "--data", str(deployed)]
    refused(capsys, call, 6, "Not deployed", "reference probes")
    refused(capsys, call, 3, "quarantined on this device")
    still_runs(deployed)
    digest = read_file(path).manifest.content_digest()
    assert main(["rollback", "--data", str(deployed), "--release-quarantine", digest[:12]]) == 0
    refused(capsys, call, 6, "reference probes")


def test_disk_full_while_installing(deployed: Path, tmp_path: Path, desk: Repository) -> None:
    path = write(desk, make_bundle(version="1.1.0", provenance={"note": "x"}), tmp_path)
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from kasmina_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limit, "deploy", str(path), "--data", str(deployed)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")},  # its data file is a file as well
    )
    assert done.returncode == 1, done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr and "Traceback" not in done.stderr
    still_runs(deployed)
    assert not list((deployed / "slots").glob(".incoming*"))


def test_a_second_agent_on_the_same_folder(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    with SlotStore(deployed).lock_agent():
        call = ["deploy", str(tmp_path / "digits-1.0.0.kasmina"), "--data", str(deployed)]
        refused(capsys, call, 1, "another agent holds this data folder")
        refused(capsys, ["rollback", "--data", str(deployed)], 1, "another agent")
    still_runs(deployed)


def test_rollback_with_nothing_to_return_to(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    refused(capsys, ["rollback", "--data", str(deployed)], 2)
    refused(capsys, ["rollback", "--data", str(tmp_path / "empty")], 2, "nothing is deployed here")
    refused(capsys, ["status", "--data", str(tmp_path / "empty")], 2, "nothing is deployed here")
    still_runs(deployed)


def test_run_without_an_address_says_how_to_enrol(deployed: Path, capsys: Read) -> None:
    refused(capsys, ["run", "--data", str(deployed)], 2, "no broker address", "fleet enroll")


def test_infer_reads_one_or_many(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    frames = make_frames(3)
    np.save(tmp_path / "many.npy", frames)
    np.save(tmp_path / "one.npy", frames[0])
    capsys.readouterr()
    for name, count in (("many", 3), ("one", 1)):
        assert main(["infer", str(tmp_path / f"{name}.npy"), "--data", str(deployed), "--json"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert len(results) == count and {"label", "score", "latency_us"} <= set(results[0])
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    refused(capsys, ["infer", str(tmp_path / "bad.npy"), "--data", str(deployed)], 2, "not an .npy file")


def test_looking_at_files(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    path = str(tmp_path / "digits-1.0.0.kasmina")
    capsys.readouterr()
    assert main(["bundle", "show", path]) == 0
    assert "none: this is a host" in capsys.readouterr().out
    assert main(["bundle", "verify", path, "--data", str(deployed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "desk"
    for call in (["profile", "list"], ["profile", "show", "coral"], ["doctor", "--profile", "coral"]):
        assert main(call) == 0
        assert "oral" in capsys.readouterr().out
    assert main(["profile", "check", "profiles/coral-usb.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    log = str(deployed / "audit.log")
    assert main(["audit", "verify", log]) == 0
    assert "the chain holds" in capsys.readouterr().out
    assert main(["audit", "tail", log, "-n", "1", "--json"]) == 0
    assert [e["event"] for e in json.loads(capsys.readouterr().out)["entries"]] == ["committed"]
    text = (deployed / "audit.log").read_text()
    (deployed / "audit.log").write_text(text.replace("1.0.0", "6.6.6", 1))
    refused(capsys, ["audit", "verify", log], 3, "line 1")


def test_settings_name_their_source(deployed: Path, capsys: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KASMINA_DEVICE_SITE", "lab")
    capsys.readouterr()
    assert main(["status", "--data", str(deployed), "--settings", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["device.site"] == {"value": "lab", "from": "KASMINA_DEVICE_SITE"}


def test_errors_are_json_for_machines_and_tracebacks_for_debug(tmp_path: Path, capsys: Read) -> None:
    call = ["deploy", str(tmp_path / "none.kasmina"), "--data", str(tmp_path / "data")]
    code = main([*call, "--json"])
    value = json.loads(capsys.readouterr().out)
    assert value["exit_code"] == code and value["next_step"] and "none.kasmina" in value["message"]
    with pytest.raises(Exception, match=r"none\.kasmina"):
        main([*call, "--debug"])


@pytest.mark.parametrize(
    "call", [["--help"], ["deploy", "--help"], ["fleet", "--help"], ["fleet", "publish", "--help"]]
)
def test_help_everywhere(call: list[str], capsys: Read) -> None:
    assert main(call) == 0
    assert "Usage" in capsys.readouterr().out


def test_a_wrong_call_is_exit_2(capsys: Read) -> None:
    assert main(["deploy", "--no-such-flag"]) == 2
    assert main(["no-such-verb"]) == 2


def test_tables_show_text_as_it_is_without_escapes(capsys: Read) -> None:
    from kasmina_edge.cli.output import emit, grid, rows_table

    said = "[red]x[/red] :smile: " + chr(27) + "]0;t" + chr(7) + chr(0x9B) + "2J" + chr(127)
    shown = "[red]x[/red] :smile: \ufffd]0;t\ufffd\ufffd2J\ufffd"
    titled = grid(said, ("what",), [("x" * 60,)])
    for table in (said, rows_table([("label", said)]), grid("", ("what",), [(said,)]), titled):
        emit({}, as_json=False, table=table)
        out = capsys.readouterr().out
        assert shown in out
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in out.replace("\n", ""))
    assert str(rows_table([("label", "x")]).columns[0].style) == "bold"
    emit({"said": said + "\u00fc"}, as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out) == {"said": said + "\u00fc"} and "\u00fc" in out
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in out.rstrip("\n"))


def test_a_clock_that_was_set_back_does_not_make_old_signatures_young(
    deployed: Path, tmp_path: Path, capsys: Read
) -> None:
    path = str(tmp_path / "digits-1.0.0.kasmina")
    floor = FloorFile(deployed / "trust" / "floor")
    floor.write(floor.read(must_exist=True).model_copy(update={"time_s": time.time() + 2 * 365 * 86_400.0}))
    refused(capsys, ["bundle", "verify", path, "--data", str(deployed)], 3, "expired")
    refused(capsys, ["deploy", path, "--data", str(deployed)], 3, "Not deployed", "expired")
    still_runs(deployed)


def test_in_a_fleet_the_operators_rollback_holds(tmp_path: Path, capsys: Read) -> None:
    office = FleetFolder.init(tmp_path / "fleet", offline_keys=tmp_path / "offline", clock=time.time)
    data = tmp_path / "cam-1"
    office.enroll("cam-1", data)
    for bundle in (make_bundle(), make_bundle(version="1.1.0", release=2, provenance={"note": "second"})):
        manifest = office.publish(bundle, to=["cam-1"], offline_keys=tmp_path / "offline").manifest
        path = write(office.repository, Bundle(manifest, bundle.files, {}), tmp_path)
        assert main(["deploy", str(path), "--data", str(data)]) == 0
    digest = manifest.content_digest()
    capsys.readouterr()
    assert main(["rollback", "--data", str(data)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Active: digits 1.0.0 in slot A" in said and "digits 1.1.0" in said
    assert f"--release-quarantine {digest[:12]}" in said
    assert SlotStore(data).quarantined(digest) == "rolled back by the operator"
    assert [e.fields["content_digest"] for e in tail(data / "audit.log", 1) if e.event == "quarantined"] == [digest]
    refused(capsys, ["deploy", str(path), "--data", str(data)], 3, "rolled back by the operator")
    refused(capsys, ["rollback", "--data", str(data)], 3, "digits 1.1.0, quarantined on this device")
    still_runs(data)
    assert main(["rollback", "--data", str(data), "--release-quarantine", digest[:12]]) == 0
    assert main(["deploy", str(path), "--data", str(data)]) == 0


def test_at_a_desk_a_rollback_quarantines_nothing(
    deployed: Path, tmp_path: Path, desk: Repository, capsys: Read
) -> None:
    path = write(desk, make_bundle(version="1.1.0", release=2, provenance={"note": "second"}), tmp_path)
    assert main(["deploy", str(path), "--data", str(deployed)]) == 0
    capsys.readouterr()
    assert main(["rollback", "--data", str(deployed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quarantined"] is None
    assert SlotStore(deployed).quarantine_entries() == {}


def test_wrong_paths_are_named(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    none, folder = str(tmp_path / "none.log"), str(tmp_path)
    for verb in ("verify", "tail"):
        refused(capsys, ["audit", verb, none], 2, none, "no such file")
        refused(capsys, ["audit", verb, folder], 2, "is a folder")
    assert main(["audit", "tail", str(deployed / "audit.log"), "-n", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["event"] == "committed"
    (deployed / "audit.log").unlink()
    refused(capsys, ["audit", "verify", str(deployed / "audit.log")], 3, "lacks entry")  # its head is there: removed
    refused(capsys, ["profile", "check", folder], 2, folder, "is a folder")
    refused(capsys, ["profile", "check", str(tmp_path / "none")], 2, "no such file")
    refused(capsys, ["profile", "check", "none.toml"], 2, "none.toml: no such file")
    odd = tmp_path / "profile.txt"
    odd.write_text("name = ")
    refused(capsys, ["profile", "check", str(odd)], 2, str(odd), "not valid TOML")
    assert main(["profile", "check", "coral"]) == 0


def test_infer_wants_an_array_with_a_shape(deployed: Path, tmp_path: Path, capsys: Read) -> None:
    np.save(tmp_path / "zero.npy", np.float32(1))
    np.savez(tmp_path / "some.npz", a=np.zeros(3))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "some.npz").read_bytes()[:40])
    for name, text in {
        "zero.npy": "without a shape", "some.npz": "expected an .npy file",
        "empty.npy": "not an .npy file", "broken.npz": "not an .npy file",
    }.items():  # fmt: skip
        refused(capsys, ["infer", str(tmp_path / name), "--data", str(deployed)], 2, name, text)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (["deploy", "--no-such-flag", "--json"], "--no-such-flag"),
        (["no-such-verb", "--json"], "no-such-verb"),
        (["audit", "tail", "-n", "x", "--json"], "valid integer"),
        (["bundle", "show", "--json"], "PATH"),
    ],
)
def test_a_wrong_call_is_one_json_object_for_machines(call: list[str], word: str, capsys: Read) -> None:
    assert main(call) == 2
    seen = capsys.readouterr()
    value = json.loads(seen.out)
    assert set(value) == {"error", "message", "next_step", "exit_code"} and seen.err == ""
    assert value["error"] == "UsageError" and value["exit_code"] == 2
    assert word.lower() in value["message"].lower() and "--help" in value["next_step"]


def test_help_stays_help_beside_json(capsys: Read) -> None:
    assert main(["deploy", "--json", "--help"]) == 0
    assert "Usage" in capsys.readouterr().out
