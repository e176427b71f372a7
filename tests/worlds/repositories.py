"""A signing repository with devices that read it directly, and the means to attack what they read.

    world = World(tmp_path)
    world.publish(make_bundle(), to=["@all"])
    device = world.device("cam-1")
    bundle = device.take()

``world.replay()`` freezes what the repository serves now; ``Overlay`` changes single files on the way.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api import exceptions
from tuf.ngclient import FetcherInterface
from worlds.bundles import make_bundle, make_graft

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.change_plan import ChangePlan, HealthLimits
from kasmina_edge.contracts.manifest import Acceptance, BundleManifest
from kasmina_edge.fleet.keys import KeyRing
from kasmina_edge.fleet.repository import Published, Repository
from kasmina_edge.fleet.signing import MetadataFolder, State
from kasmina_edge.updates.client import METADATA_URL, TARGETS_URL
from kasmina_edge.updates.trust import MemoryFetcher, TrustStore, UpdateSession

START_S = 1_800_000_000.0
DAY_S = 86_400.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now_s: float = START_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class RepositoryFetcher(FetcherInterface):
    """Reads a repository's folder, as a controller would serve it."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.asked: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.asked.append(url)
        if url.startswith(METADATA_URL):
            files = self.repository.metadata_files()
            name = url.removeprefix(METADATA_URL)
            if name not in files:
                raise exceptions.DownloadHTTPError(f"{name} is not there", 404)
            yield files[name]
        else:
            yield self.repository.target_bytes(url.removeprefix(TARGETS_URL))


class Overlay(FetcherInterface):
    """Another fetcher with some answers changed: a function of (url, bytes), which may raise."""

    def __init__(self, inner: FetcherInterface, change: Callable[[str, bytes], bytes]) -> None:
        self.inner = inner
        self.change = change

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.change(url, b"".join(self.inner.fetch(url)))


@dataclasses.dataclass
class Device:
    """One device: its trust store, its fetcher, and the files it holds."""

    name: str
    store: TrustStore
    fetcher: FetcherInterface
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    session: UpdateSession | None = None

    def look(self, fetcher: FetcherInterface | None = None) -> UpdateSession:
        """A refreshed session."""
        self.session = self.store.session(fetcher or self.fetcher)
        self.session.refresh()
        return self.session

    def take(self, fetcher: FetcherInterface | None = None) -> Bundle:
        """Refresh, fetch what is wanted with the files held as parents, and hold it."""
        session = self.look(fetcher)
        offer = session.desired(self.name, ("all",))
        assert offer is not None
        bundle = session.fetch(offer, offer.manifest.models[0], lambda _: None, self.files)
        self.files = dict(bundle.files)
        return bundle


class World:
    """A fleet's repository below ``folder``, new or a copy of another world's; its offline keys are in ``offline``."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder = folder
        self.clock = Clock()
        self.offline = folder / "offline"
        if template is None:
            self.repository = Repository.init(folder / "repository", offline_keys=self.offline, clock=self.clock)
        else:
            shutil.copytree(template, folder, dirs_exist_ok=True)
            self.repository = Repository.open(folder / "repository", clock=self.clock)

    def device(self, name: str = "cam-1", clock: Clock | None = None, root: bytes | None = None) -> Device:
        """A device that was given ``root`` (the newest)."""
        store = TrustStore(self.folder / name / "trust", clock=clock or self.clock)
        store.pin(root or self.repository.root_bytes())
        return Device(name, store, RepositoryFetcher(self.repository))

    def publish(self, bundle: Bundle, to: tuple[str, ...] = ("@all",), **more: object) -> Published:
        """Publish with the offline keys at hand."""
        return self.repository.publish(bundle, to=to, offline_keys=self.offline, **more)  # type: ignore[arg-type]

    def replay(self) -> MemoryFetcher:
        """Everything that is served now, for ever."""
        targets = {path: self.repository.target_bytes(path) for path in self.repository.target_sizes()}
        return MemoryFetcher(self.repository.metadata_files(), targets)

    def commit(self, change: Callable[[State], None], *roles: str, wrong_key_for: str | None = None) -> None:
        """Sign a change that no honest controller makes; one role may be signed by a stranger's key."""
        ring = KeyRing(self.repository.folder, desk=False)
        metadata = MetadataFolder(self.repository.folder / "metadata", desk=False)
        state = metadata.read()
        change(state)
        signers = {r: ring.signers(r, self.offline) for r in (*roles, "snapshot", "timestamp")}
        if wrong_key_for is not None:
            signers[wrong_key_for] = [CryptoSigner.generate_ed25519()]
        metadata.commit(state, signers, self.clock(), changed=roles)


def accepted(**changes: object) -> Acceptance:
    """Numbers that let a graft through."""
    fields: dict[str, object] = {
        "samples": 200, "clean_before": 0.97, "clean_after": 0.96, "target_before": 0.22, "target_after": 0.9,
        "gain_low": 0.6, "gain_high": 0.75, "clean_loss_high": 0.015, "accepted": True,
    }  # fmt: skip
    return Acceptance.parse({**fields, **changes})


def with_manifest(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with fields of its manifest replaced."""
    return Bundle(bundle.manifest.model_copy(update=changes), bundle.files, {})


def grown(host: Bundle, *, version: str = "1.1.0", seed: int = 1, **acceptance: object) -> Bundle:
    """An accepted graft on ``host``."""
    graft = make_bundle(version=version, seed=seed, grafts=(make_graft(),), parent=host)
    return with_manifest(graft, acceptance=accepted(**acceptance))


def plan_for(host: BundleManifest, serial: int = 1, **changes: object) -> ChangePlan:
    """A change plan that allows `grown` grafts."""
    assert host.probes is not None
    fields: Mapping[str, object] = {
        "bundle": host.name, "serial": serial, "hosts": (host.content_digest(),), "blueprints": {"depthwise": (1,)},
        "sites": ("s1",), "maximum_parameters": 1000, "maximum_growth_bytes": 1000,
        "health": HealthLimits(probes=host.probes.file.sha256, minimum_accuracy=0.9).model_dump(),
    }  # fmt: skip
    return ChangePlan.parse({**fields, **changes})
