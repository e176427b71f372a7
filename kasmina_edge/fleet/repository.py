"""The signing repository: what is published, for whom, and by whose signature.

Target paths::

    bundles/<name>/<release>/<file>            signed by targets (two offline keys)
    plans/<name>.json                          signed by targets
    grafts/<name>/<release>/<file>             signed by grafts (online): grafts, and taking them back
    <...>/<file>.<parent sha256, 12 digits>.delta
    desired/<device>/<name>.json               signed by director: length and digest are those of the manifest,
    desired/@<group>/<name>.json               custom.path is where the manifest lies
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.canonical import SignedContract, short_digest
from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.manifest import MANIFEST_PATH, BundleManifest
from kasmina_edge.errors import InputError, KasminaError, PlanError, StorageError
from kasmina_edge.fleet.assignment import assign, prune, recipient
from kasmina_edge.fleet.gate import Audit, check_acceptance, check_plan
from kasmina_edge.fleet.keys import KeyRing
from kasmina_edge.fleet.shelf import PLACES, Release, Role, Shelf, require_whole
from kasmina_edge.fleet.signing import DAY_S, VALID_DAYS, MetadataFolder, State, prefixed, target_of
from kasmina_edge.storage import as_storage_error, hold_lock, make_private_folder, write_durable

DELTA_PARENTS = 2


class RepositoryConfig(SignedContract):
    """``repository.json``; written last, so that a folder without it is not a repository."""

    format: Literal[1] = 1
    name: str
    desk: bool = False

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A damaged file of our own is a fault of the disk."""
        return StorageError


@dataclass(frozen=True)
class Published:
    """What a publication put on the shelf.

    Attributes:
        manifest: With its release number.
        bytes_by_file: Size of every file, ``manifest.json`` among them.
        deltas: Size of every delta by file and by the first 12 digits of its parent's SHA-256.
    """

    manifest: BundleManifest
    manifest_path: str
    release: int
    role: Role
    bytes_by_file: Mapping[str, int]
    deltas: Mapping[str, Mapping[str, int]]


class Repository:
    """Keys, metadata and targets in one folder; every change holds its lock and is durable.

    Args:
        folder: Made by `init` or `desk`.
        clock: Seconds since 1970 UTC; decides expiry dates.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        path = folder / "repository.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError as exc:
            raise InputError(f"{folder}: not a signing repository", "Make one with `kasmina-edge fleet init`.") from exc
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        self.folder = folder
        self.config = RepositoryConfig.from_bytes(data, where=str(path))
        self.is_desk = self.config.desk
        self._clock = clock
        self._keys = KeyRing(folder, desk=self.is_desk)
        self._metadata = MetadataFolder(folder / "metadata", desk=self.is_desk)
        self._shelf = Shelf(folder / "targets")

    @classmethod
    def init(
        cls,
        folder: Path,
        *,
        name: str = "main",
        offline_keys: Path | None = None,
        clock: Callable[[], float],
        desk: bool = False,
    ) -> Repository:
        """Make keys, root and empty metadata.

        Args:
            folder: Missing or empty; made with mode 0700.
            name: For people.
            offline_keys: Folder for the root and targets keys; None: ``<folder>/keys/offline``, to be moved away.
            clock: Seconds since 1970 UTC.
            desk: One key for every role, and a root that says so.

        Raises:
            InputError: The folder holds something, or a key file is there already.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty", "Choose another folder for the repository.")
        make_private_folder(folder.parent)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.new")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            for part in ("metadata", "targets"):
                make_private_folder(make_private_folder(draft) / part)
            keys = KeyRing(draft, desk=desk)
            keys.make(offline_keys)
            metadata = MetadataFolder(draft / "metadata", desk=desk)
            metadata.begin(keys.every_signer(offline_keys), keys.roles, clock())
            write_durable(draft / "repository.json", RepositoryConfig(name=name, desk=desk).to_bytes())
            draft.rename(folder)
        except OSError as exc:
            raise as_storage_error(exc, folder) from exc
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls(folder, clock=clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float]) -> Repository:
        """Open what `init` made.

        Raises:
            InputError: Not a repository.
        """
        return cls(folder, clock=clock)

    @classmethod
    def desk(cls, folder: Path | None = None, *, clock: Callable[[], float]) -> Repository:
        """The desk key's repository, made on first use: ``kasmina/desk`` in ``$XDG_CONFIG_HOME`` or ``~/.config``."""
        if folder is None:
            base = os.environ.get("XDG_CONFIG_HOME")
            folder = (Path(base) if base else Path.home() / ".config") / "kasmina" / "desk"
        if not (folder / "repository.json").exists():
            return cls.init(folder, name="desk", clock=clock, desk=True)
        repository = cls(folder, clock=clock)
        if not repository.is_desk:
            raise InputError(f"{folder}: is a fleet's repository, not a desk key's")
        return repository

    # ------------------------------------------------------------------------------------------ reading

    def root_bytes(self) -> bytes:
        """The newest root: what a device pins."""
        return self._metadata.last_root()

    def metadata_files(self) -> dict[str, bytes]:
        """Every metadata file that a device may ask for, by name; ``timestamp.json`` is the last key."""
        return self._metadata.files()

    def marker(self) -> str:
        """Another string whenever something was published or renewed; costs one ``stat``."""
        return self._metadata.marker()

    def target_sizes(self) -> dict[str, int]:
        """Size in bytes of every target signed now, by its hash-prefixed path."""
        state = self._metadata.read()
        return {prefixed(t): t.length for r in PLACES for t in state.roles[r].targets.values()}

    def target_bytes(self, prefixed_path: str) -> bytes:
        """A target by its hash-prefixed path.

        Raises:
            InputError: No such target.
        """
        return self._shelf.read(prefixed_path)

    def releases(self, name: str) -> list[Release]:
        """Every release of ``name``, lowest number first."""
        return self._shelf.releases(name)

    def latest_release(self, name: str) -> int:
        """Highest release number of ``name``; 0 when there is none."""
        return self._shelf.last_number(name)

    def assigned(self, to: str) -> dict[str, str]:
        """Manifest paths by bundle name, as assigned to one device id or ``@group``."""
        found = self._metadata.read().roles["director"].targets
        start = f"desired/{recipient(to)}/"
        return {p[len(start) : -5]: str(t.custom["path"]) for p, t in found.items() if p.startswith(start)}

    def recipients(self) -> dict[str, int]:
        """Highest assigned release by device id or ``@group``, over all bundle names."""
        found: dict[str, int] = {}
        for path, target in self._metadata.read().roles["director"].targets.items():
            who, release = path.split("/")[1], int(str(target.custom["path"]).split("/")[2])
            found[who] = max(release, found.get(who, 0))
        return found

    def current_plan(self, name: str) -> ChangePlan | None:
        """The change plan that the targets role signs for ``name`` now, or None."""
        return self._plan(name, self._metadata.read())

    # ------------------------------------------------------------------------------------------ publishing

    def publish(
        self,
        bundle: Bundle,
        *,
        role: Role | None = None,
        to: Sequence[str] = (),
        offline_keys: Path | None = None,
        plan: ChangePlan | None = None,
        accept_anyway: bool = False,
        audit: Audit | None = None,
    ) -> Published:
        """Sign a bundle, and say for whom it is.

        Args:
            bundle: Whole: every file of its manifest.
            role: Who vouches for it; None: ``grafts`` for grafts and for a host that was published before,
                ``targets`` for a new host.
            to: Device ids and ``@group`` names; they get this bundle instead of what they were assigned before.
            offline_keys: Where the offline keys are; needed for a new host and for a plan.
            plan: A change plan to sign with it.
            accept_anyway: Publish though the acceptance numbers forbid it; written to the audit log first.
            audit: ``AuditLog.append``; needed with ``accept_anyway``.

        Raises:
            InputError: Acceptance failed, a key is missing, or a recipient's name is malformed.
            BundleError: A file is missing or is not the one that the manifest names.
        """
        require_whole(bundle)
        recipients = [recipient(who) for who in to]
        if role is None:
            known = {r.manifest.content_digest() for r in self.releases(bundle.manifest.name)}
            role = "grafts" if bundle.manifest.grafts or bundle.manifest.content_digest() in known else "targets"
        check_plan(plan, bundle.manifest)
        changed = dict.fromkeys([role, *(["targets"] if plan else []), *(["director"] if to else [])])
        signers = {r: self._keys.signers(r, offline_keys) for r in (*changed, "snapshot", "timestamp")}
        check_acceptance(bundle.manifest, accept_anyway=accept_anyway, audit=audit)
        with self._lock():
            state = self._metadata.read()
            manifest = bundle.manifest
            last = self._shelf.last_number(manifest.name)
            if manifest.release <= last:
                manifest = manifest.model_copy(update={"release": last + 1})
            published = self._store(Bundle(manifest, bundle.files, {}), role, state)
            if plan is not None:
                self._store_plan(plan, state)
            assign(state, published.manifest_path, recipients)
            prune(state, manifest.name, changed)
            self._metadata.commit(state, signers, self._clock(), changed=tuple(changed))
        return published

    def withdraw(self, name: str, *, to: Sequence[str]) -> Published:
        """Take the grafts back: the host's bytes under a new release number, signed by the online grafts role.

        Raises:
            InputError: Nothing of that name was published, or nothing there has grafts.
            PlanError: The change plan that is signed now does not list the host: devices would refuse it.
        """
        releases = self.releases(name)
        if not releases:
            raise InputError(f"{name}: nothing was published under this name")
        by_path = {r.manifest_path: r for r in releases}
        running = [by_path.get(self.assigned(who).get(name, "")) for who in to]
        grown = [r for r in (*running, *reversed(releases)) if r is not None and r.manifest.grafts]
        if not grown:
            raise InputError(f"{name}: no release with grafts was published", "There is nothing to withdraw.")
        wanted = grown[0].manifest.host
        hosts = [r for r in releases if r.manifest.content_digest() == wanted]
        if not hosts:
            raise InputError(f"{name}: the host of {grown[0].manifest.id} was never published here")
        plan = self.current_plan(name)
        if plan is not None and wanted not in plan.hosts:
            host = hosts[0].manifest
            raise PlanError(
                f"{host.id}: change plan {plan.serial} for {name} does not list this host "
                f"({short_digest(host.content_digest())}), and devices would refuse it",
                "Sign a plan that lists it with `kasmina-edge fleet plan`, then withdraw again.",
            )
        return self.publish(self._shelf.bundle(hosts[0]), role="grafts", to=to)

    def assign(self, manifest_path: str, to: Sequence[str]) -> None:
        """Give devices or groups a release that is published already.

        Raises:
            InputError: No role vouches for that path.
        """
        signers = {r: self._keys.signers(r) for r in ("director", "snapshot", "timestamp")}
        recipients = [recipient(who) for who in to]
        with self._lock():
            state = self._metadata.read()
            assign(state, manifest_path, recipients)
            self._metadata.commit(state, signers, self._clock(), changed=("director",))

    def set_plan(self, plan: ChangePlan, offline_keys: Path | None = None) -> None:
        """Sign a change plan with the offline keys.

        Raises:
            InputError: The keys are not there.
            PlanError: Its serial is not above the published one's.
        """
        signers = {r: self._keys.signers(r, offline_keys) for r in ("targets", "snapshot", "timestamp")}
        with self._lock():
            state = self._metadata.read()
            self._store_plan(plan, state)
            self._metadata.commit(state, signers, self._clock(), changed=("targets",))

    def sign_bundle(self, bundle: Bundle) -> Bundle:
        """Fill in ``metadata``, so that the bundle verifies alone.

        A desk signs whatever it is given, and its targets role then names this bundle alone. A fleet gives the
        metadata of what was published; its file is accepted until the timestamp runs out, a week after it was signed.

        Raises:
            InputError: Not published here (in a fleet).
            BundleError: A file is not the one that the manifest names.
        """
        manifest = bundle.manifest
        paths = {role: f"{place}/{manifest.name}/{manifest.release}/{MANIFEST_PATH}" for role, place in PLACES.items()}
        role: Role = "targets"
        if self.is_desk:
            require_whole(bundle)
            signers = {r: self._keys.signers(r) for r in ("targets", "snapshot", "timestamp")}
            with self._lock():
                state = self._metadata.read()
                state.roles["targets"].targets = {paths["targets"]: target_of(paths["targets"], manifest.to_bytes())}
                self._metadata.commit(state, signers, self._clock(), changed=("targets",))
        else:
            state = self._metadata.read()
            wanted = target_of("", manifest.to_bytes()).hashes
            found = [r for r, p in paths.items() if p in state.roles[r].targets and
                     state.roles[r].targets[p].hashes == wanted]  # fmt: skip
            if not found:
                raise InputError(
                    f"{bundle.id}: release {manifest.release} is not published here",
                    "Publish it first with `kasmina-edge fleet publish`.",
                )
            role = found[0]
        unneeded = {"director", "grafts"} - {role}
        files = {n: d for n, d in self._metadata.files().items() if n.split(".")[-2] not in unneeded}
        return Bundle(manifest, bundle.files, files)

    def refresh_expiry(self) -> tuple[str, ...]:
        """Sign again what is past half of its validity, as far as the online keys reach; a controller calls it.

        Returns:
            The roles that were signed again.
        """
        with self._lock():
            state = self._metadata.read()
            now = self._clock()
            online = {"timestamp": state.timestamp, "snapshot": state.snapshot,
                      **{r: state.roles[r] for r in ("grafts", "director")}}  # fmt: skip
            due = tuple(r for r, s in online.items() if s.expires.timestamp() - now < VALID_DAYS[r] * DAY_S / 2)
            if not due:
                return ()
            signers = {r: self._keys.signers(r) for r in {*due, "snapshot", "timestamp"}}
            changed = tuple(r for r in due if r in ("grafts", "director"))
            if "snapshot" in due and not changed:
                self._metadata.renew_snapshot(state, signers, now)
            else:
                self._metadata.commit(state, signers, now, changed=changed)
        return due

    # ------------------------------------------------------------------------------------------ inside

    def _lock(self) -> AbstractContextManager[None]:
        return hold_lock(self.folder / "lock", wait=True)

    def _store(self, bundle: Bundle, role: Role, state: State) -> Published:
        """Put a release and its deltas on the shelf, and name them in the role's metadata."""
        manifest = bundle.manifest
        folder = f"{PLACES[role]}/{manifest.name}/{manifest.release}"
        files = {
            f"{folder}/{path}": data for path, data in {**bundle.files, MANIFEST_PATH: manifest.to_bytes()}.items()
        }
        deltas = self._shelf.deltas(bundle, folder, self._parents(manifest, state))
        for path, data in {**files, **deltas}.items():
            self._shelf.put(path, data)
            state.roles[role].targets[path] = target_of(path, data)
        by_parent: dict[str, dict[str, int]] = {}
        for path, data in deltas.items():
            file, parent, _ = path.removeprefix(f"{folder}/").rsplit(".", 2)
            by_parent.setdefault(file, {})[parent] = len(data)
        return Published(
            manifest=manifest,
            manifest_path=f"{folder}/{MANIFEST_PATH}",
            release=manifest.release,
            role=role,
            bytes_by_file={path.removeprefix(f"{folder}/"): len(data) for path, data in files.items()},
            deltas=by_parent,
        )

    def _parents(self, manifest: BundleManifest, state: State) -> list[Release]:
        """Releases that a device may hold now: those assigned, the last two, and the manifest's own parent and host."""
        assigned = {t.custom["path"] for t in state.roles["director"].targets.values()}
        near = {manifest.parent, manifest.host}
        return [
            release
            for i, release in enumerate(reversed(self.releases(manifest.name)))
            if i < DELTA_PARENTS or release.manifest_path in assigned or release.manifest.content_digest() in near
        ]

    def _store_plan(self, plan: ChangePlan, state: State) -> None:
        path = f"plans/{plan.bundle}.json"
        old = self._plan(plan.bundle, state)
        if old is not None and plan.serial <= old.serial:
            raise PlanError(f"{path}: serial {plan.serial}, the published plan has {old.serial}", "Raise its serial.")
        self._shelf.put(path, plan.to_bytes())
        state.roles["targets"].targets[path] = target_of(path, plan.to_bytes())

    def _plan(self, name: str, state: State) -> ChangePlan | None:
        path = f"plans/{name}.json"
        target = state.roles["targets"].targets.get(path)
        return None if target is None else ChangePlan.from_bytes(self._shelf.read(prefixed(target)), where=path)
