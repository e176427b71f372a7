from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile
from worlds.bundles import make_bundle
from worlds.repositories import DAY_S, Clock, Overlay, World, grown

from kasmina_edge.contracts.manifest import MANIFEST_PATH
from kasmina_edge.errors import TrustError
from kasmina_edge.fleet.signing import State
from kasmina_edge.updates.trust import MemoryFetcher


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


# ------------------------------------------------------------------------------------------------- attacks


def test_an_update_forged_with_other_keys_is_refused(world: World, tmp_path: Path) -> None:
    device = world.device()
    device.take()
    forger = World(tmp_path / "forger")
    forger.publish(grown(make_bundle()), to=("@all",))
    forger.clock.now_s += DAY_S
    forger.repository.refresh_expiry()
    with pytest.raises(TrustError, match="0 of 1 valid signatures of role timestamp"):
        device.look(forger.replay())


def test_stolen_snapshot_and_timestamp_keys_do_not_make_a_graft(world: World) -> None:
    device = world.device()
    device.take()
    world.publish(grown(make_bundle()))
    world.commit(lambda state: None, "grafts", wrong_key_for="grafts")
    with pytest.raises(TrustError, match="0 of 1 valid signatures of role grafts"):
        device.take()


def test_one_of_two_targets_keys_is_not_enough(world: World) -> None:
    world.commit(lambda state: None, "targets", wrong_key_for="targets")
    with pytest.raises(TrustError, match="0 of 2 valid signatures of role targets"):
        world.device().look()


def test_the_online_grafts_key_cannot_sign_a_host_or_a_plan(world: World) -> None:
    body = b"{}"

    def overreach(state: State) -> None:
        for path in ("bundles/digits/9/manifest.json", "plans/digits.json"):
            state.roles["grafts"].targets[path] = TargetFile.from_data(path, body, ["sha256"])

    world.commit(overreach, "grafts")
    session = world.device().look()
    assert session.refresh_plan("digits") is None

    def point(state: State) -> None:
        custom = {"custom": {"path": "bundles/digits/9/manifest.json"}}
        old = TargetFile.from_data("", body, ["sha256"])
        state.roles["director"].targets["desired/cam-1/digits.json"] = TargetFile(
            old.length, old.hashes, "desired/cam-1/digits.json", custom
        )

    world.commit(point, "director")
    with pytest.raises(TrustError, match="no role vouches for it"):
        world.device("cam-2").look().desired("cam-1", ())


def test_older_metadata_is_refused_even_after_the_cache_was_wiped(world: World) -> None:
    device = world.device()
    old = world.replay()
    world.publish(grown(make_bundle()))
    device.take()
    with pytest.raises(TrustError, match="rollback"):
        device.look(old)
    shutil.rmtree(device.store.folder / "tuf")
    with pytest.raises(TrustError, match=r"rollback: .* metadata version \d, this device has seen \d"):
        device.look(old)
    device.store.clear_cache()
    with pytest.raises(TrustError, match="rollback"):
        device.look(old)
    device.take()
    world.device("cam-2").take(old)  # a device that has seen nothing newer cannot know


def test_a_repository_that_is_frozen_runs_out(world: World) -> None:
    device = world.device()
    frozen = world.replay()
    device.take(frozen)
    world.clock.now_s += 7 * DAY_S - 1
    device.look(frozen)
    world.clock.now_s += 1
    with pytest.raises(TrustError, match=r"timestamp.json is expired: it ran out 2027-01-22 .*, and it is 2027-01-22"):
        device.look(frozen)
    world.repository.refresh_expiry()
    device.look()


def test_a_clock_set_back_does_not_thaw_it(world: World) -> None:
    clock = Clock(0.0)
    device = world.device(clock=clock)
    frozen = world.replay()
    device.take(frozen)
    assert device.store.now() == world.clock() and not device.store.clock_ok
    clock.now_s = world.clock() - 299
    assert device.store.clock_ok
    world.clock.now_s += 8 * DAY_S
    world.repository.refresh_expiry()
    device.look()
    clock.now_s = 0.0
    with pytest.raises(TrustError):
        device.look(frozen)
    assert device.store.now() == world.clock()


def test_metadata_cannot_be_mixed_and_matched(world: World) -> None:
    old = world.replay()
    world.publish(grown(make_bundle()))
    new = world.replay()
    names = sorted(n for n in new.files if n.endswith(("grafts.json", "targets.json", "director.json")))
    for name in names:
        role = name.split(".")[1]
        (other,) = [data for n, data in old.files.items() if n.split(".")[1] == role]
        device = world.device(f"cam-{role}")
        if other == new.files[name]:
            continue
        with pytest.raises(TrustError, match=r"were signed|version"):
            device.take(MemoryFetcher({**new.files, name: other}, new.targets))
    assert sum(old.files.get(n) != new.files[n] for n in names) == 2


def test_a_target_of_another_release_is_refused(world: World) -> None:
    graft = grown(make_bundle())
    world.publish(graft)
    device = world.device()
    host_model = make_bundle().files["model.tflite"]
    with pytest.raises(TrustError, match="not those that were signed"):
        device.take(Overlay(device.fetcher, swap("model.tflite", host_model)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "not those that were signed"),
        (lambda data: data + b"x", "more bytes came than were signed"),
        (lambda data: b"", "not those that were signed"),
        (lambda data: data * 1000, "more bytes came than were signed"),
    ],
)
@pytest.mark.parametrize("name", ["manifest.json", "model.tflite", "probes.npz"])
def test_cut_and_endless_targets_are_refused(
    world: World, name: str, change: Callable[[bytes], bytes], words: str
) -> None:
    device = world.device()
    with pytest.raises(TrustError, match=words):
        device.take(Overlay(device.fetcher, lambda url, data: change(data) if url.endswith(name) else data))


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"signed":{"_type":"timestamp"}}', b"x" * 9000]
)
def test_malformed_metadata_is_a_trust_error(world: World, body: bytes) -> None:
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        device = world.device(f"cam-{name[:4]}")
        with pytest.raises(TrustError):
            device.look(Overlay(device.fetcher, swap(name, body)))


def point_director(world: World, manifest_path: str, body: bytes, custom: object) -> None:
    def point(state: State) -> None:
        path = "desired/cam-1/digits.json"
        found = TargetFile.from_data(path, body, ["sha256"])
        state.roles["director"].targets[path] = TargetFile(found.length, found.hashes, path, {"custom": custom})

    world.commit(point, "director")


def test_director_and_image_role_must_name_the_same_manifest(world: World) -> None:
    path = world.repository.assigned("@all")["digits"]
    point_director(world, path, b"another manifest", {"path": path})
    with pytest.raises(TrustError, match=r"the director wants sha256 .*, the image role signed"):
        world.device().look().desired("cam-1", ())


@pytest.mark.parametrize(
    "custom", [None, {}, {"path": 3}, {"path": "plans/digits.json"}, {"path": "bundles/letters/1/manifest.json"}]
)
def test_a_directors_entry_that_names_no_manifest_is_refused(world: World, custom: object) -> None:
    point_director(world, "", b"x", custom)
    with pytest.raises(TrustError, match="expected a manifest of digits"):
        world.device().look().desired("cam-1", ())


def test_a_manifest_must_be_what_its_path_says(world: World) -> None:
    body = make_bundle(name="letters").manifest.to_bytes()
    path = f"grafts/digits/9/{MANIFEST_PATH}"
    world.repository._shelf.put(path, body)
    world.commit(
        lambda s: s.roles["grafts"].targets.update({path: TargetFile.from_data(path, body, ["sha256"])}), "grafts"
    )
    point_director(world, path, body, {"path": path})
    with pytest.raises(TrustError, match="holds release 1 of letters"):
        world.device().look().desired("cam-1", ())


def test_files_must_be_the_manifests_in_every_role(world: World) -> None:
    published = world.publish(grown(make_bundle()))
    path = published.manifest_path.replace(MANIFEST_PATH, "model.tflite")

    def other_file(state: State) -> None:
        state.roles["grafts"].targets[path] = TargetFile.from_data(path, b"other", ["sha256"])

    world.commit(other_file, "grafts")
    with pytest.raises(TrustError, match=r"the manifest names 6880 bytes .* signed are 5"):
        world.device().take()
    world.commit(lambda s: s.roles["grafts"].targets.pop(path) and None, "grafts")
    with pytest.raises(TrustError, match="no role vouches for it"):
        world.device("cam-2").take()
