from __future__ import annotations

from pathlib import Path

import pytest
from worlds.bundles import make_bundle
from worlds.repositories import DAY_S, World, grown, with_manifest

from kasmina_edge.bundle import Bundle, pack, read
from kasmina_edge.errors import BundleError, TrustError
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.updates.trust import TrustStore, verify_bundle


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def desk(tmp_path: Path, world: World) -> Repository:
    return Repository.desk(tmp_path / "desk", clock=world.clock)


def test_a_desk_bundle_verifies_alone_where_nothing_is_pinned(world: World, desk: Repository) -> None:
    signed = read(pack(desk.sign_bundle(make_bundle())), where="x.kasmina")
    found = verify_bundle(signed, pinned_root=None, clock=world.clock)
    assert (found.kind, found.role) == ("desk", "desk")
    assert found == verify_bundle(signed, pinned_root=desk.root_bytes(), clock=world.clock)
    store = TrustStore(world.folder / "d" / "trust", clock=world.clock)
    store.pin(desk.root_bytes())
    assert (store.kind, store.key_id()) == ("desk", found.key_id)


def test_an_earlier_desk_bundle_still_verifies_after_the_next(world: World, desk: Repository) -> None:
    first = desk.sign_bundle(make_bundle())
    second = desk.sign_bundle(make_bundle(version="1.1.0", seed=1))
    for signed in (first, second):
        assert verify_bundle(signed, pinned_root=desk.root_bytes(), clock=world.clock).kind == "desk"


def test_a_desk_bundle_is_refused_in_a_fleet(world: World, desk: Repository) -> None:
    signed = desk.sign_bundle(make_bundle())
    with pytest.raises(TrustError, match=r"signed with desk key .*, and this device belongs to fleet") as caught:
        verify_bundle(signed, pinned_root=world.repository.root_bytes(), clock=world.clock)
    assert "--to DEVICE" in caught.value.next_step
    disguised = Bundle(signed.manifest, signed.files, {n: d for n, d in signed.metadata.items() if "root" not in n})
    with pytest.raises(TrustError, match="0 of 1 valid signatures of role timestamp"):
        verify_bundle(disguised, pinned_root=world.repository.root_bytes(), clock=world.clock)


def test_a_fleets_bundle_verifies_in_that_fleet_alone(world: World, desk: Repository, tmp_path: Path) -> None:
    host = make_bundle()
    published = world.publish(grown(host))
    signed = world.repository.sign_bundle(with_manifest(grown(host), release=published.release))
    assert verify_bundle(signed, pinned_root=world.repository.root_bytes(), clock=world.clock).role == "grafts"
    assert not any("director" in name for name in signed.metadata)
    with pytest.raises(TrustError, match=r"signed for fleet .*, and this device belongs to none"):
        verify_bundle(signed, pinned_root=None, clock=world.clock)
    with pytest.raises(TrustError, match=r"signed by a fleet .*, this device trusts desk key"):
        verify_bundle(signed, pinned_root=desk.root_bytes(), clock=world.clock)
    other = World(tmp_path / "other")
    with pytest.raises(TrustError, match="0 of 1 valid signatures"):
        verify_bundle(signed, pinned_root=other.repository.root_bytes(), clock=world.clock)
    elsewhere = Repository.desk(tmp_path / "desk-2", clock=world.clock)
    with pytest.raises(TrustError, match="signed by another desk key"):
        verify_bundle(elsewhere.sign_bundle(host), pinned_root=desk.root_bytes(), clock=world.clock)


def test_it_runs_out_and_an_installed_one_does_not(world: World) -> None:
    host = make_bundle()
    world.publish(host)
    signed = world.repository.sign_bundle(host)
    root = world.repository.root_bytes()
    world.clock.now_s += 7 * DAY_S - 1
    verify_bundle(signed, pinned_root=root, clock=world.clock)
    world.clock.now_s += 1
    with pytest.raises(TrustError, match=r"timestamp.json is expired: it ran out"):
        verify_bundle(signed, pinned_root=root, clock=world.clock)
    world.clock.now_s += 20 * 365 * DAY_S
    assert verify_bundle(signed, pinned_root=root, clock=world.clock, dates=False).role == "targets"
    desk = Repository.desk(world.folder / "desk", clock=world.clock)
    signed = desk.sign_bundle(host)
    world.clock.now_s += 365 * DAY_S - 1
    verify_bundle(signed, pinned_root=None, clock=world.clock)
    world.clock.now_s += 1
    with pytest.raises(TrustError, match="expired"):
        verify_bundle(signed, pinned_root=None, clock=world.clock)


def test_nothing_may_be_exchanged_after_signing(world: World, desk: Repository) -> None:
    signed = desk.sign_bundle(make_bundle())
    tampered = dict(signed.files, **{"model.tflite": signed.files["model.tflite"][:-1] + b"\0"})
    with pytest.raises(BundleError, match=r"model.tflite"):
        verify_bundle(Bundle(signed.manifest, tampered, signed.metadata), pinned_root=None, clock=world.clock)
    other = with_manifest(make_bundle(), provenance={"changed": "later"})
    with pytest.raises(TrustError, match="not those that were signed"):
        verify_bundle(Bundle(other.manifest, other.files, signed.metadata), pinned_root=None, clock=world.clock)
    renumbered = with_manifest(make_bundle(), release=77)
    with pytest.raises(TrustError, match="nobody signed a manifest"):
        verify_bundle(Bundle(renumbered.manifest, renumbered.files, signed.metadata), pinned_root=None,
                      clock=world.clock)  # fmt: skip


def test_metadata_that_is_missing_or_damaged_is_refused(world: World, desk: Repository) -> None:
    signed = desk.sign_bundle(make_bundle())
    for name in signed.metadata:
        rest = {n: d for n, d in signed.metadata.items() if n != name}
        with pytest.raises(TrustError):
            verify_bundle(Bundle(signed.manifest, signed.files, rest), pinned_root=None, clock=world.clock)
        for damaged in (b"", b"{}", signed.metadata[name][:-9], signed.metadata[name].replace(b"1", b"2", 1)):
            with pytest.raises(TrustError):
                verify_bundle(
                    Bundle(signed.manifest, signed.files, {**rest, name: damaged}), pinned_root=None, clock=world.clock
                )
    with pytest.raises(TrustError, match="carries no signatures") as caught:
        verify_bundle(make_bundle(), pinned_root=None, clock=world.clock)
    assert "desk key" in caught.value.next_step


def test_the_floor_counts_for_files_too(world: World, desk: Repository) -> None:
    signed = desk.sign_bundle(make_bundle(release=3))
    verify_bundle(signed, pinned_root=None, clock=world.clock, floor=3)
    with pytest.raises(TrustError, match="release 3 is below this device's floor 5"):
        verify_bundle(signed, pinned_root=None, clock=world.clock, floor=5)
