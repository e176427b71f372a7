from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api import exceptions
from tuf.api.metadata import Metadata, MetaFile, Root, TargetFile
from worlds.bundles import make_bundle
from worlds.repositories import Overlay, World, grown, plan_for

from kasmina_edge.errors import InputError, KasminaError, LinkError, PlanError, StorageError, TrustError
from kasmina_edge.fleet.keys import KeyRing
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.fleet.signing import State
from kasmina_edge.updates.client import METADATA_URL, TARGETS_URL, Client
from kasmina_edge.updates.refusals import refusals
from kasmina_edge.updates.trust import MemoryFetcher, TrustStore, verify_bundle


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    World(folder).publish(make_bundle())
    return folder


@pytest.fixture
def world(tmp_path: Path, template: Path) -> World:
    return World(tmp_path, template)


def swap(name: str, data: bytes) -> Callable[[str, bytes], bytes]:
    return lambda url, old: data if url.endswith(name) else old


# ------------------------------------------------------------------------------------------------- the good way


def test_a_device_gets_only_its_engines_files_and_they_verify_alone(world: World) -> None:
    device = world.device()
    bundle = device.take()
    host = make_bundle()
    assert set(bundle.files) == {"model.tflite", "selftest-litert.npz", "probes.npz"}
    assert all(bundle.files[path] == host.files[path] for path in bundle.files)
    assert bundle.manifest.content_digest() == host.manifest.content_digest()
    found = verify_bundle(bundle, pinned_root=device.store.root(), clock=world.clock)
    assert (found.kind, found.role, found.key_id) == ("fleet", "targets", device.store.key_id())


def test_received_bytes_are_counted_by_part(world: World) -> None:
    device = world.device()
    device.take()
    assert device.session is not None
    first = device.session.received
    host = make_bundle()
    assert first["model full"] == len(host.files["model.tflite"])
    assert first["selftest"] == len(host.files["selftest-litert.npz"])
    assert first["probes"] == len(host.files["probes.npz"])
    assert first["model delta"] == 0
    assert first["total"] == sum(size for part, size in first.items() if part != "total")
    again = device.look()
    again.desired("cam-1", ("@all",))
    assert again.received["total"] == again.received["metadata"] == len(world.replay().files["timestamp.json"])


def test_a_graft_comes_as_a_delta_and_an_unknown_parent_gets_the_full_file(world: World) -> None:
    knowing, fresh = world.device("cam-1"), world.device("cam-2")
    knowing.take()
    graft = grown(make_bundle())
    world.publish(graft)
    by_delta, in_full = knowing.take(), fresh.take()
    assert by_delta.files == in_full.files
    assert by_delta.files["model.tflite"] == graft.files["model.tflite"]
    assert knowing.session is not None and fresh.session is not None
    assert 0 < knowing.session.received["model delta"] < 300
    assert knowing.session.received["model full"] == 0 == knowing.session.received["probes"]
    assert fresh.session.received["model delta"] == 0
    assert fresh.session.received["model full"] == len(graft.files["model.tflite"])
    found = verify_bundle(by_delta, pinned_root=knowing.store.root(), clock=world.clock)
    assert found.role == "grafts"


def test_files_that_are_here_already_are_not_fetched_and_false_ones_are(world: World) -> None:
    device = world.device()
    offer = device.look().desired("cam-1", ("all",))
    assert offer is not None and device.session is not None
    files = {entry.sha256: make_bundle().files[entry.path] for entry in offer.manifest.files()}
    device.session.fetch(offer, offer.manifest.models[0], files.get, {})
    assert device.session.received["model full"] == 0
    liar = device.look().fetch(offer, offer.manifest.models[0], lambda _: b"something else", {})
    assert liar.files["model.tflite"] == make_bundle().files["model.tflite"]


@pytest.mark.parametrize("fault", ["tampered", "missing", "wrong result"])
def test_a_delta_that_fails_falls_back_to_the_full_file(world: World, fault: str) -> None:
    device = world.device()
    device.take()
    graft = grown(make_bundle())
    published = world.publish(graft)

    def change(url: str, data: bytes) -> bytes:
        if not (url.startswith(TARGETS_URL) and url.endswith(".delta") and "model.tflite" in url):
            return data
        if fault == "missing":
            raise exceptions.DownloadHTTPError("gone", 404)
        return data[:-1] + bytes([data[-1] ^ 1])

    if fault == "wrong result":  # correctly signed, and does not give the signed file

        def break_delta(state: State) -> None:
            targets = state.roles["grafts"].targets
            (path,) = [p for p in targets if p.endswith(".delta") and "model.tflite" in p]
            body = b"KDL1" + bytes(90)
            targets[path] = TargetFile.from_data(path, body, ["sha256"])
            world.repository._shelf.put(path, body)

        world.commit(break_delta, "grafts")
        bundle = device.take()
    else:
        bundle = device.take(Overlay(device.fetcher, change))
    assert bundle.files["model.tflite"] == graft.files["model.tflite"]
    assert device.session is not None
    assert device.session.received["model full"] == published.bytes_by_file["model.tflite"]


def test_the_highest_release_addressed_to_device_or_group_wins(world: World) -> None:
    device = world.device()
    host = make_bundle()
    graft = world.publish(grown(host), to=("cam-1",))
    offer = device.look().desired("cam-1", ("all",))
    assert offer is not None and offer.manifest.release == graft.release == 2
    other = device.look().desired("cam-2", ("all",))
    assert other is not None and other.manifest.release == 1
    world.publish(grown(host, version="1.2.0", seed=2))
    offer = device.look().desired("cam-1", ("all",), "digits")
    assert offer is not None and offer.manifest.release == 3
    assert offer.digest == offer.manifest.content_digest()
    assert device.look().desired("cam-1", ("all",), "letters") is None
    assert device.look().desired("cam-1", ("elsewhere",)) is not None
    assert device.look().desired("cam-9", ("elsewhere",)) is None


def test_the_devices_own_wish_decides_which_bundle_is_meant(world: World) -> None:
    world.publish(make_bundle(name="letters"), to=("cam-1",))
    offer = world.device().look().desired("cam-1", ("all",))
    assert offer is not None and offer.manifest.name == "letters"


# ------------------------------------------------------------------------------------------------- the link


@pytest.mark.parametrize("fault", [ConnectionResetError("reset"), TimeoutError("slow"), LinkError("broker gone")])
def test_a_lost_link_is_a_link_error_and_changes_nothing(world: World, fault: Exception) -> None:
    device = world.device()
    device.take()
    before = (device.store.folder / "floor").read_bytes()
    world.publish(grown(make_bundle()))
    for name in ("timestamp.json", "snapshot.json", "grafts.json", "manifest.json", ".delta"):

        def cut(url: str, data: bytes, name: str = name) -> bytes:
            if url.endswith(name):
                raise fault
            return data

        with pytest.raises(LinkError):
            device.take(Overlay(device.fetcher, cut))
        if name in ("timestamp.json", "snapshot.json"):
            assert (device.store.folder / "floor").read_bytes() == before
    device.take()


def test_a_file_that_the_repository_lacks_is_a_link_error(world: World) -> None:
    device = world.device()
    replay = world.replay()
    with pytest.raises(LinkError, match="404"):
        device.look(MemoryFetcher({n: d for n, d in replay.files.items() if "snapshot" not in n}))


def test_a_session_is_refreshed_first_and_needs_a_root(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not refreshed"):
        world.device().store.session(world.replay()).desired("cam-1", ())
    with pytest.raises(TrustError, match="no root is pinned"):
        TrustStore(tmp_path / "empty", clock=world.clock).session(world.replay()).refresh()


def test_a_model_of_another_bundle_is_an_input_error(world: World) -> None:
    session = world.device().look()
    offer = session.desired("cam-1", ("all",))
    assert offer is not None
    other = make_bundle(seed=3).manifest.models[0]
    with pytest.raises(InputError, match="has no such model file"):
        session.fetch(offer, other, lambda _: None, {})


# ------------------------------------------------------------------------------------------------- floors, roots


def test_a_release_below_the_floor_is_refused(world: World) -> None:
    store = world.device().store
    store.raise_floor("digits", 5)
    store.raise_floor("digits", 4)
    assert store.floor("digits") == 5 and store.floor("letters") == 0
    with pytest.raises(TrustError, match="release 3 is below this device's floor 5"):
        store.check_release(make_bundle(release=3).manifest)
    store.check_release(make_bundle(release=5).manifest)
    again = TrustStore(store.folder, clock=world.clock)
    assert again.floor("digits") == 5


def test_a_pinned_device_without_its_floor_fails_closed(world: World) -> None:
    device = world.device()
    device.take()
    path = device.store.folder / "floor"
    whole = path.read_bytes()
    for damage in (lambda: path.write_bytes(whole[:-3]), lambda: path.write_bytes(b'{"format":2}'), path.unlink):
        damage()
        for act in (device.look, lambda: device.store.floor("digits"), lambda: device.store.raise_floor("digits", 1)):
            with pytest.raises(StorageError):
                act()
    path.write_bytes(whole)
    device.look()


def test_a_damaged_cache_costs_a_download_and_nothing_else(world: World) -> None:
    device = world.device()
    device.take()
    for path in sorted((device.store.folder / "tuf").rglob("*.json")) + sorted(
        (device.store.folder / "manifests").iterdir()
    ):
        if not path.is_symlink():
            path.write_bytes(path.read_bytes()[:50])
    device.files = {}
    assert device.take().files == {p: make_bundle().files[p] for p in device.files}


def test_pinning(world: World, tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "new" / "trust", clock=world.clock)
    assert store.kind is None and store.key_id() == "" and store.plan() is None and store.clock_ok
    desk = Repository.desk(tmp_path / "desk", clock=world.clock)
    store.pin(desk.root_bytes())
    store.raise_floor("digits", 9)
    assert store.kind == "desk"
    store.pin(world.repository.root_bytes())
    assert store.kind == "fleet" and store.floor("digits") == 0
    store.raise_floor("digits", 2)
    store.pin(world.repository.root_bytes())
    assert store.floor("digits") == 2
    other = World(tmp_path / "other")
    for stranger in (desk.root_bytes(), other.repository.root_bytes()):
        with pytest.raises(TrustError, match=f"root {store.key_id()} is pinned"):
            store.pin(stranger)
    store.pin(other.repository.root_bytes(), force=True)
    assert store.floor("digits") == 0
    with pytest.raises(TrustError):
        store.pin(b"not a root")
    with pytest.raises(TrustError):
        store.pin(world.repository.metadata_files()["timestamp.json"])


def rotate_timestamp(world: World) -> bytes:
    """Root 2: the timestamp role has a new key, whose file replaces the old one."""
    files = world.repository.metadata_files()
    metadata = Metadata[Root].from_bytes(files["1.root.json"])
    new = CryptoSigner.generate_ed25519()
    metadata.signed.version = 2
    metadata.signed.revoke_key(metadata.signed.roles["timestamp"].keyids[0], "timestamp")
    metadata.signed.add_key(new.public_key, "timestamp")
    for signer in KeyRing(world.repository.folder, desk=False).signers("root", world.offline)[:2]:
        metadata.sign(signer, append=len(metadata.signatures) == 1)
    (world.repository.folder / "metadata" / "2.root.json").write_bytes(metadata.to_bytes())
    key = world.repository.folder / "keys" / "online" / "timestamp.pem"
    key.write_bytes(new.private_bytes)
    world.commit(lambda state: None)
    return files["1.root.json"]


def test_a_new_root_is_followed_and_kept_and_the_old_key_is_dead(world: World) -> None:
    device = world.device()
    device.take()
    before = world.replay()
    world.publish(grown(make_bundle()))
    stolen = world.replay()
    rotate_timestamp(world)
    device.take()
    assert device.store.root() == world.repository.root_bytes() != before.files["1.root.json"]
    device.store.clear_cache()
    with pytest.raises(TrustError, match="0 of 1 valid signatures of role timestamp"):
        device.look(stolen)
    bundle = device.take()
    assert verify_bundle(bundle, pinned_root=device.store.root(), clock=world.clock).kind == "fleet"
    whole = world.device("cam-3", root=before.files["1.root.json"]).take()
    assert {"1.root.json", "2.root.json"} <= set(whole.metadata)
    assert verify_bundle(whole, pinned_root=before.files["1.root.json"], clock=world.clock).kind == "fleet"


def test_new_online_keys_start_their_versions_anew(world: World) -> None:
    device = world.device()
    for _ in range(5):
        world.commit(lambda state: None)
    device.look()
    rotate_timestamp(world)

    def fall(state: State) -> None:
        state.timestamp.version = 1

    world.commit(fall)
    device.store.clear_cache()
    device.look()

    world.commit(lambda state: setattr(state.timestamp, "version", 0))
    device.store.clear_cache()
    with pytest.raises(TrustError, match="rollback: timestamp"):
        device.look()


def test_a_root_signed_by_one_of_three_keys_is_refused(world: World) -> None:
    metadata = Metadata[Root].from_bytes(world.repository.root_bytes())
    metadata.signed.version = 2
    metadata.sign(KeyRing(world.repository.folder, desk=False).signers("root", world.offline)[0])
    (world.repository.folder / "metadata" / "2.root.json").write_bytes(metadata.to_bytes())
    with pytest.raises(TrustError, match="1 of 2 valid signatures of role root"):
        world.device("cam-2").store.pin(metadata.to_bytes())
    device = world.device("cam-3", root=(world.repository.folder / "metadata" / "1.root.json").read_bytes())
    with pytest.raises(TrustError, match="1 of 2 valid signatures of role root"):
        device.look()


# ------------------------------------------------------------------------------------------------- plans


def test_plans_are_fetched_once_and_kept(world: World) -> None:
    device = world.device()
    assert device.look().refresh_plan("digits") is None
    plan = plan_for(make_bundle().manifest)
    world.repository.set_plan(plan, world.offline)
    session = device.look()
    assert session.refresh_plan("digits") == plan == device.store.plan()
    assert session.received["plan"] == len(plan.to_bytes())
    session = device.look()
    assert session.refresh_plan("digits") == plan and session.received["plan"] == 0
    assert TrustStore(device.store.folder, clock=world.clock).plan() == plan


def test_a_changed_plan_file_is_no_plan_until_it_is_fetched_again(world: World) -> None:
    device = world.device()
    plan = plan_for(make_bundle().manifest)
    world.repository.set_plan(plan, world.offline)
    device.look().refresh_plan("digits")
    path = device.store.folder / "plan.json"
    path.write_bytes(plan_for(make_bundle().manifest, maximum_parameters=10**9).to_bytes())
    assert device.store.plan() is None
    path.write_bytes(b"{")
    assert device.store.plan() is None
    assert device.look().refresh_plan("digits") == plan == device.store.plan()


def test_a_plan_is_asked_for_by_the_name_of_its_bundle(world: World) -> None:
    store = world.device().store
    plan = plan_for(make_bundle().manifest)
    store.accept_plan(plan)
    assert store.plan("digits") == plan == store.plan()
    assert store.plan("letters") is None
    store.drop_plan("letters")
    assert store.plan("digits") == plan
    (store.folder / "plan.json").write_bytes(plan_for(make_bundle().manifest, maximum_parameters=10**9).to_bytes())
    assert store.plan("digits") is None


def test_nobody_else_can_read_what_the_trust_folder_keeps(world: World) -> None:
    device = world.device()
    made = os.umask(0o022)
    try:
        device.take()
    finally:
        os.umask(made)
    history = device.store.folder / "tuf" / "root_history"
    manifests = list((device.store.folder / "manifests").iterdir())
    assert [stat.S_IMODE(p.stat().st_mode) for p in (history, *manifests)] == [0o700, 0o600]
    history.chmod(0o755)  # as an earlier version left it
    device.look()
    assert stat.S_IMODE(history.stat().st_mode) == 0o700


def test_an_older_plan_is_refused_and_a_withdrawn_one_is_dropped(world: World) -> None:
    device = world.device()
    host = make_bundle().manifest
    world.repository.set_plan(plan_for(host, 2), world.offline)
    device.look().refresh_plan("digits")
    with pytest.raises(PlanError, match="serial 1, this device has seen 2"):
        device.store.accept_plan(plan_for(host, 1))
    with pytest.raises(PlanError, match="serial 2"):
        device.store.accept_plan(plan_for(host, 2, maximum_parameters=5))
    world.commit(lambda s: s.roles["targets"].targets.pop("plans/digits.json") and None, "targets")
    assert device.look().refresh_plan("digits") is None
    assert device.store.plan() is None


def test_a_plan_for_another_bundle_is_refused(world: World) -> None:
    body = plan_for(make_bundle(name="letters").manifest).to_bytes()
    path = "plans/digits.json"
    world.repository._shelf.put(path, body)
    world.commit(
        lambda s: s.roles["targets"].targets.update({path: TargetFile.from_data(path, body, ["sha256"])}), "targets"
    )
    with pytest.raises(TrustError, match="is a plan for letters"):
        world.device().look().refresh_plan("digits")


def test_an_oversized_manifest_is_not_downloaded(world: World) -> None:
    path = world.repository.assigned("@all")["digits"]

    def claim(state: State) -> None:
        big = TargetFile(5_000_000, {"sha256": "0" * 64}, path)
        state.roles["targets"].targets[path] = big
        desired = "desired/@all/digits.json"
        state.roles["director"].targets[desired] = TargetFile(
            big.length, dict(big.hashes), desired, {"custom": {"path": path}}
        )

    world.commit(claim, "targets", "director")
    with pytest.raises(TrustError, match="5000000 bytes are signed, at most 4194304"):
        world.device().look().desired("cam-1", ("all",))


# ------------------------------------------------------------------------------------------------- the library


def test_the_library_still_lets_us_choose_the_time(world: World, tmp_path: Path) -> None:
    """Our only way in; `Client` would judge expiry by the system clock if the attribute moved."""
    client = Client(tmp_path / "c", world.replay(), root=world.repository.root_bytes(), now_s=1_000_000.0)
    assert client._updater._trusted_set.reference_time.timestamp() == 1_000_000.0
    client.refresh()
    late = Client(tmp_path / "d", world.replay(), root=world.repository.root_bytes(), now_s=4_000_000_000.0)
    with pytest.raises(exceptions.ExpiredMetadataError):
        late.refresh()


def test_metadata_is_capped_whatever_was_signed(world: World) -> None:
    def claim(state: State) -> None:
        state.snapshot.meta["grafts.json"] = MetaFile(1, 100_000_000)

    world.commit(claim)
    huge = MemoryFetcher({**world.replay().files, "timestamp.json": b" " * 20_000})
    with pytest.raises(TrustError, match="more bytes came"):
        world.device().look(huge)


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (exceptions.ExpiredMetadataError("New grafts is expired"), TrustError, "New grafts is expired"),
        (exceptions.UnsignedMetadataError("grafts was signed by 0/1 keys"), TrustError, "0 of 1 valid signatures"),
        (exceptions.UnsignedMetadataError("odd"), TrustError, "odd"),
        (exceptions.EqualVersionNumberError(), TrustError, "rollback"),
        (exceptions.LengthOrHashMismatchError("x"), TrustError, "not those that were signed"),
        (exceptions.DownloadLengthMismatchError("x"), TrustError, "more bytes"),
        (exceptions.SlowRetrievalError("x"), LinkError, "not reached"),
        (exceptions.DownloadHTTPError("x", 503), LinkError, "answered 503"),
        (OSError(28, "No space left on device"), StorageError, "No space left"),
        (ValueError("x"), TrustError, "malformed"),
        (KeyError("x"), TrustError, "malformed"),
        (PlanError("mine"), PlanError, "mine"),
    ],
)
def test_every_exception_has_one_meaning(raised: Exception, expected: type[KasminaError], words: str) -> None:
    with pytest.raises(expected, match=words) as caught, refusals("here"):
        raise raised
    assert type(caught.value) is expected
    assert caught.value.next_step


def test_offline_a_missing_file_is_a_matter_of_trust() -> None:
    with pytest.raises(TrustError, match="incomplete"), refusals("here", offline=True):
        raise exceptions.DownloadHTTPError("3.snapshot.json is not there", 404)


def test_urls_have_the_two_places_that_fetchers_know() -> None:
    assert METADATA_URL.endswith("/metadata/") and TARGETS_URL.endswith("/targets/")
