from __future__ import annotations

import shutil
import stat
import threading
from pathlib import Path

import pytest
from worlds.bundles import make_bundle, make_graft
from worlds.repositories import DAY_S, Clock, World, accepted, grown, plan_for, with_manifest

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.errors import BundleError, InputError, PlanError, StorageError, TrustError
from kasmina_edge.fleet.gate import acceptance_fault
from kasmina_edge.fleet.keys import role_keys
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.safety import audit


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    World(folder).publish(make_bundle())
    return folder


@pytest.fixture
def world(tmp_path: Path, template: Path) -> World:
    return World(tmp_path, template)


def test_key_files_are_private_and_offline_keys_lie_elsewhere(tmp_path: Path) -> None:
    world = World(tmp_path)
    online, offline = world.repository.folder / "keys" / "online", world.offline
    assert sorted(p.stem for p in online.iterdir()) == ["director", "grafts", "snapshot", "timestamp"]
    assert sorted(p.stem for p in offline.iterdir()) == ["root-1", "root-2", "root-3", "targets-1", "targets-2"]
    for path in (*online.iterdir(), *offline.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    for folder in (online, offline, world.repository.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (online / "grafts.pem").chmod(0o644)
    world.publish(make_bundle())
    with pytest.raises(TrustError, match=r"grafts\.pem"):
        world.publish(grown(make_bundle()))


def test_thresholds(world: World) -> None:
    keys = role_keys(desk=False)
    assert [(keys[r].threshold, len(keys[r].names)) for r in ("root", "targets", "grafts", "timestamp")] == [
        (2, 3), (2, 2), (1, 1), (1, 1)
    ]  # fmt: skip
    desk = Repository.desk(world.folder / "desk", clock=world.clock)
    assert [p.name for p in (desk.folder / "keys" / "online").iterdir()] == ["desk.pem"]
    assert not (desk.folder / "keys" / "offline").exists()


def test_init_and_open_refuse_what_is_not_theirs(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        Repository.init(world.repository.folder, clock=world.clock)
    with pytest.raises(InputError, match="not a signing repository"):
        Repository.open(tmp_path / "nowhere", clock=world.clock)
    with pytest.raises(InputError, match=r"keys are never overwritten|there already"):
        Repository.init(tmp_path / "second", offline_keys=world.offline, clock=world.clock)
    assert not (tmp_path / "second").exists()
    with pytest.raises(InputError, match="is a fleet's repository"):
        Repository.desk(world.repository.folder, clock=world.clock)
    (world.repository.folder / "repository.json").write_text("{}")
    with pytest.raises(StorageError):
        Repository.open(world.repository.folder, clock=world.clock)


def test_offline_keys_stay_in_the_repository_when_nobody_says_otherwise(tmp_path: Path) -> None:
    repository = Repository.init(tmp_path / "r", clock=Clock())
    assert len(list((tmp_path / "r" / "keys" / "offline").iterdir())) == 5
    assert repository.publish(make_bundle()).role == "targets"


def test_the_desk_key_is_made_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first = Repository.desk(clock=Clock())
    assert first.folder == tmp_path / "config" / "kasmina" / "desk"
    assert stat.S_IMODE(first.folder.stat().st_mode) == 0o700
    assert Repository.desk(clock=Clock()).root_bytes() == first.root_bytes()
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Repository.desk(clock=Clock()).folder == tmp_path / "home" / ".config" / "kasmina" / "desk"


def test_release_numbers_only_rise(world: World) -> None:
    assert world.repository.latest_release("digits") == 1
    assert world.publish(make_bundle(version="1.0.1")).release == 2
    assert world.publish(make_bundle(version="1.0.2", release=9)).release == 9
    assert world.publish(make_bundle(version="1.0.3", release=4)).release == 10
    assert [r.manifest.release for r in world.repository.releases("digits")] == [1, 2, 9, 10]
    assert world.repository.latest_release("letters") == 0 == len(world.repository.releases("letters"))


def test_new_hosts_need_the_offline_keys_and_grafts_do_not(world: World) -> None:
    shutil.move(world.offline, world.folder / "drawer")
    for act in (
        lambda: world.repository.publish(make_bundle(version="2.0.0"), to=["@all"]),
        lambda: world.publish(make_bundle(version="2.0.0")),
        lambda: world.repository.set_plan(plan_for(make_bundle().manifest)),
        lambda: world.repository.publish(grown(make_bundle()), plan=plan_for(make_bundle().manifest)),
    ):
        with pytest.raises(InputError, match=r"signed by 2 offline keys, and targets-1.pem is not there") as caught:
            act()
        assert "--offline-keys" in caught.value.next_step
    assert world.repository.publish(grown(make_bundle()), to=["@all"]).role == "grafts"


def disagreeing() -> tuple[ModelFile, ...]:
    """The models of the grown bundle, the first with 2 % of its answers flipped by quantization."""
    first, *others = grown(make_bundle()).manifest.models
    return (first.model_copy(update={"parity": first.parity.model_copy(update={"top1_agreement": 0.98})}), *others)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"acceptance": None}, "no acceptance measurement"),
        ({"acceptance": accepted(accepted=False, reasons=("clean loss 0.35", "worst class"))}, "clean loss 0.35; wo"),
        ({"acceptance": accepted(gain_low=-0.01)}, "lower bound of its gain is -0.0100"),
        ({"models": disagreeing()}, "model.tflite answers as its float network on 98.00% of"),
    ],
)
def test_bad_numbers_are_not_published_unless_somebody_insists_on_record(
    world: World, changes: dict[str, object], words: str
) -> None:
    bad = with_manifest(grown(make_bundle()), **changes)
    before = world.repository.marker()
    with pytest.raises(InputError, match=words) as caught:
        world.publish(bad)
    assert "--accept-anyway" in caught.value.next_step
    with pytest.raises(InputError, match="needs an audit log"):
        world.publish(bad, accept_anyway=True)
    assert world.repository.marker() == before
    log = audit.AuditLog(world.folder / "audit.log", world.clock)
    published = world.publish(bad, accept_anyway=True, audit=log.append)
    (entry,) = audit.tail(world.folder / "audit.log", 1)
    assert entry.event == "accept_anyway"
    assert words in str(entry.fields["fault"])
    assert entry.fields["content_digest"] == published.manifest.content_digest()


def test_good_numbers_need_no_insisting(world: World) -> None:
    heard: list[str] = []
    world.publish(grown(make_bundle()), accept_anyway=True, audit=lambda event, **_: heard.append(event))
    assert heard == []
    assert acceptance_fault(make_bundle().manifest) is None
    assert acceptance_fault(with_manifest(make_bundle(), acceptance=accepted(accepted=False)).manifest) is not None


def test_a_bundle_that_is_not_whole_is_not_published(world: World) -> None:
    whole = make_bundle(version="2.0.0")
    files = dict(whole.files)
    del files["model.onnx"]
    with pytest.raises(BundleError, match=r"model.onnx is missing"):
        world.publish(Bundle(whole.manifest, files))
    with pytest.raises(BundleError, match=r"model.onnx"):
        world.publish(Bundle(whole.manifest, {**whole.files, "model.onnx": b"other"}))
    assert world.repository.latest_release("digits") == 1


def test_recipients_and_plans_are_checked_before_anything_is_written(world: World) -> None:
    before = world.repository.marker()
    for name in ("", "cam-1\n", "Cam", "a/b", "@", "../x", "@all/x", "c*"):
        with pytest.raises(InputError, match="recipient"):
            world.publish(make_bundle(), to=(name,))
    with pytest.raises(InputError, match="the change plan is for letters"):
        world.publish(make_bundle(), plan=plan_for(make_bundle(name="letters").manifest))
    with pytest.raises(InputError, match="no role vouches"):
        world.repository.assign("bundles/digits/9/manifest.json", ["cam-1"])
    assert world.repository.marker() == before


def test_a_graft_is_published_with_deltas_against_what_devices_hold(world: World) -> None:
    host = make_bundle()
    world.publish(grown(host))
    second = world.publish(grown(host, version="1.2.0", seed=2))
    digests = {m.file.path: m.file.sha256 for r in world.repository.releases("digits")[:1] for m in r.manifest.models}
    assert set(second.deltas) == {
        "model.tflite", "model.onnx", "selftest-litert.npz", "selftest-onnxruntime.npz"
    }  # fmt: skip
    for path, digest in digests.items():
        assert len(second.deltas[path]) == 2
        assert 0 < second.deltas[path][digest[:12]] < second.bytes_by_file[path] / 10
    sizes = world.repository.target_sizes()
    assert sum(path.endswith(".delta") for path in sizes) == 8
    for path, size in sizes.items():
        assert len(world.repository.target_bytes(path)) == size


def test_publications_at_the_same_time_get_different_numbers(world: World) -> None:
    found: list[int] = []

    def publish(seed: int) -> None:
        bundle = grown(make_bundle(), version=f"1.{seed}.0", seed=seed)
        found.append(Repository.open(world.repository.folder, clock=world.clock).publish(bundle, to=["@all"]).release)

    make_bundle(seed=1), make_bundle(seed=2)
    threads = [threading.Thread(target=publish, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [2, 3]
    assert world.device().take().manifest.release == 3


def test_withdrawing_ships_the_hosts_bytes_again(world: World) -> None:
    host = make_bundle()
    world.publish(grown(host))
    graft = world.publish(grown(host, version="1.2.0", seed=2), to=("cam-1",))
    removal = world.repository.withdraw("digits", to=["cam-1"])
    assert removal.release == graft.release + 1
    assert removal.role == "grafts" and removal.manifest_path.startswith("grafts/")
    assert removal.manifest.content_digest() == host.manifest.content_digest()
    assert removal.manifest.digest() != host.manifest.digest()
    device = world.device("cam-1")
    device.files = dict(grown(host, version="1.2.0", seed=2).files)
    bundle = device.take()
    assert all(bundle.files[path] == host.files[path] for path in bundle.files)
    assert device.session is not None and device.session.received["model full"] == 0
    offer = world.device("cam-2").look().desired("cam-2", ("all",))
    assert offer is not None and offer.manifest.grafts


def test_withdrawing_needs_something_to_withdraw(world: World) -> None:
    with pytest.raises(InputError, match="nothing was published"):
        world.repository.withdraw("letters", to=["@all"])
    with pytest.raises(InputError, match="no release with grafts"):
        world.repository.withdraw("digits", to=["@all"])
    strange = make_bundle(version="3.0.0", seed=5)
    world.publish(grown(strange))
    with pytest.raises(InputError, match="was never published here"):
        world.repository.withdraw("digits", to=["@all"])


def test_a_host_that_was_published_before_may_be_sent_by_the_online_role(world: World) -> None:
    assert world.repository.publish(make_bundle(), to=["cam-1"]).role == "grafts"
    assert world.publish(make_bundle(), role="targets").role == "targets"


def test_assignment_replaces_what_a_recipient_had(world: World) -> None:
    letters = world.publish(make_bundle(name="letters"), to=())
    assert world.repository.assigned("@all") == {"digits": "bundles/digits/1/manifest.json"}
    world.repository.assign(letters.manifest_path, ["@all", "cam-1"])
    assert world.repository.assigned("@all") == {"letters": letters.manifest_path} == world.repository.assigned("cam-1")
    assert world.repository.assigned("cam-2") == {}


def test_plans_rise_by_serial(world: World) -> None:
    host = make_bundle().manifest
    world.publish(make_bundle(version="1.0.1"), plan=plan_for(host, 3))
    with pytest.raises(PlanError, match="serial 3, the published plan has 3"):
        world.repository.set_plan(plan_for(host, 3), world.offline)
    world.repository.set_plan(plan_for(host, 4), world.offline)
    assert world.device().look().refresh_plan("digits") == plan_for(host, 4)


def test_metadata_stays_short_and_what_is_assigned_stays_signed(world: World) -> None:
    host = make_bundle()
    kept = world.publish(grown(host), to=("cam-1",))
    for seed in range(2, 8):
        world.publish(grown(host, version=f"1.{seed}.0", seed=seed), to=("cam-2",))
    folders = {p.rpartition("/")[0] for p in world.repository.target_sizes() if p.startswith("grafts/")}
    assert folders == {f"grafts/digits/{n}" for n in (kept.release, 8)}
    assert world.device("cam-1").take().manifest.release == kept.release
    stale = [p for p in (world.repository.folder / "metadata").iterdir() if p.name.endswith("snapshot.json")]
    assert len(stale) <= 6


def test_an_interrupted_publication_leaves_the_old_state_and_the_next_one_works(world: World) -> None:
    timestamp = world.repository.folder / "metadata" / "timestamp.json"
    old = timestamp.read_bytes()
    world.publish(grown(make_bundle()))
    timestamp.write_bytes(old)  # the power went before the last file was written
    offer = world.device().look().desired("cam-1", ("all",))
    assert offer is not None and offer.manifest.release == 1
    again = world.publish(grown(make_bundle()))
    assert again.release == 3
    assert world.device("cam-2").take().manifest.release == 3


def test_expiry_is_renewed_at_half_and_only_where_online_keys_reach(world: World) -> None:
    assert world.repository.refresh_expiry() == ()
    before = world.repository.marker()
    world.clock.now_s += 3.6 * DAY_S
    assert world.repository.refresh_expiry() == ("timestamp",)
    assert world.repository.marker() != before
    world.clock.now_s += 200 * DAY_S
    assert set(world.repository.refresh_expiry()) == {"timestamp", "snapshot", "grafts", "director"}
    assert world.repository.refresh_expiry() == ()
    world.device().take()
    world.clock.now_s += 160 * DAY_S
    world.repository.refresh_expiry()
    world.clock.now_s += 10 * DAY_S
    world.repository.refresh_expiry()
    with pytest.raises(TrustError, match="targets is expired"):
        world.device("cam-2").look()


def test_a_snapshot_alone_can_be_renewed(world: World) -> None:
    world.clock.now_s += 100 * DAY_S
    world.publish(grown(make_bundle()))
    world.commit(lambda state: None, "director")
    world.clock.now_s += 100 * DAY_S
    metadata = world.repository._metadata
    signers = {r: world.repository._keys.signers(r) for r in ("snapshot", "timestamp")}
    metadata.renew_snapshot(metadata.read(), signers, world.clock())
    world.device().take()


@pytest.mark.parametrize(
    "path",
    ["", "../repository.json", "bundles/../../keys/online/grafts.pem", "/etc/passwd", "keys/online/grafts.pem",
     "bundles/digits/1/" + "0" * 64 + ".manifest.json", "bundles/digits/1", "bundles/digits/1/" + "0" * 64 + ".a/../x"],
)  # fmt: skip
def test_only_targets_are_served(world: World, path: str) -> None:
    with pytest.raises(InputError):
        world.repository.target_bytes(path)


def test_a_damaged_repository_says_so(world: World) -> None:
    folder = world.repository.folder / "metadata"
    whole = (folder / "timestamp.json").read_bytes()
    for damaged in (b"", b"{}", (folder / "1.root.json").read_bytes()):
        (folder / "timestamp.json").write_bytes(damaged)
        with pytest.raises(StorageError):
            world.repository.metadata_files()
    (folder / "timestamp.json").unlink()
    for act in (world.repository.marker, world.repository.metadata_files):
        with pytest.raises(StorageError):
            act()
    (folder / "timestamp.json").write_bytes(whole)
    (folder / "1.root.json").unlink()
    with pytest.raises(StorageError, match=r"no root.json"):
        world.repository.root_bytes()


def test_only_what_was_published_gets_a_fleets_signatures(world: World) -> None:
    with pytest.raises(InputError, match="release 1 is not published here"):
        world.repository.sign_bundle(make_bundle(version="5.0.0"))
    assert "timestamp.json" in world.repository.sign_bundle(make_bundle()).metadata
    assert list(world.repository.metadata_files())[-1] == "timestamp.json"


def test_a_graft_names_nothing_that_a_delta_could_be_taken_for(world: World) -> None:
    """A bundle file may not stand where a delta's name would: the file wins, the delta is left out."""
    host = make_bundle()
    digest = host.manifest.models[0].file.sha256
    odd = f"model.tflite.{digest[:12]}.delta"
    graft = make_bundle(version="1.1.0", seed=1, grafts=(make_graft(),), parent=host)
    probes = graft.manifest.probes
    assert probes is not None
    files = {**graft.files, odd: graft.files["probes.npz"]}
    del files["probes.npz"]
    renamed = probes.model_copy(update={"file": probes.file.model_copy(update={"path": odd})})
    bundle = Bundle(graft.manifest.model_copy(update={"probes": renamed, "acceptance": accepted()}), files)
    published = world.publish(bundle)
    assert published.bytes_by_file[odd] == len(files[odd])
    assert "model.tflite" not in published.deltas


def test_a_withdrawal_that_devices_would_refuse_is_refused_here(world: World) -> None:
    host, newer = make_bundle(), make_bundle(version="2.0.0", seed=1)
    world.publish(grown(host))
    assert world.repository.current_plan("letters") is None
    plan = plan_for(newer.manifest, 7)
    world.repository.set_plan(plan, world.offline)
    assert world.repository.current_plan("digits") == plan
    before = world.repository.latest_release("digits")
    with pytest.raises(PlanError, match="change plan 7 for digits does not list this host") as caught:
        world.repository.withdraw("digits", to=["@all"])
    assert caught.value.exit_code == 3 and "fleet plan" in caught.value.next_step
    assert world.repository.latest_release("digits") == before
    both = (*plan.hosts, host.manifest.content_digest())
    world.repository.set_plan(plan.model_copy(update={"serial": 8, "hosts": both}), world.offline)
    assert world.repository.withdraw("digits", to=["@all"]).release == before + 1
