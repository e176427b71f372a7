"""The keys of a signing repository: which role is signed by how many keys of which folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from kasmina_edge.errors import InputError
from kasmina_edge.safety.encryption import load_signing_key, new_signing_key
from kasmina_edge.storage import make_private_folder

ONLINE_ROLES = ("snapshot", "timestamp", "grafts", "director")
OFFLINE_ROLES = ("root", "targets")
DESK_KEY = "desk"


@dataclass(frozen=True)
class RoleKeys:
    """File names (without ``.pem``) of a role's keys, and how many must sign."""

    names: tuple[str, ...]
    threshold: int


def role_keys(*, desk: bool) -> Mapping[str, RoleKeys]:
    """Root 2 of 3 and targets 2 of 2, both offline; every online role 1 of 1. A desk has one key for everything."""
    if desk:
        return {role: RoleKeys((DESK_KEY,), 1) for role in (*OFFLINE_ROLES, *ONLINE_ROLES)}
    return {
        "root": RoleKeys(("root-1", "root-2", "root-3"), 2),
        "targets": RoleKeys(("targets-1", "targets-2"), 2),
        **{role: RoleKeys((role,), 1) for role in ONLINE_ROLES},
    }


class KeyRing:
    """Key files of one repository: ``<folder>/keys/online``, and ``<folder>/keys/offline`` or another folder."""

    def __init__(self, folder: Path, *, desk: bool) -> None:
        self._online = folder / "keys" / "online"
        self._offline = folder / "keys" / "offline"
        self._desk = desk
        self.roles = role_keys(desk=desk)

    def make(self, offline_keys: Path | None) -> None:
        """Make every key file (PEM PKCS#8, 0600) in folders of mode 0700.

        Raises:
            InputError: A key file is there already; keys are never overwritten.
        """
        for role in self.roles:
            folder = make_private_folder(self._folder(role, offline_keys))
            for name in self.roles[role].names:
                if not (self._desk and (folder / f"{name}.pem").exists()):
                    new_signing_key(folder / f"{name}.pem")

    def signers(self, role: str, offline_keys: Path | None = None) -> list[CryptoSigner]:
        """The signers of a role.

        Args:
            role: Role name.
            offline_keys: Where the offline keys are now; None: where they are by default.

        Raises:
            InputError: An offline role, and its keys are not there.
            TrustError: A key file that others can read.
        """
        folder = self._folder(role, offline_keys)
        names = self.roles[role].names
        missing = [name for name in names if not (folder / f"{name}.pem").is_file()]
        if missing and role in OFFLINE_ROLES and not self._desk:
            raise InputError(
                f"{folder}: the {role} role is signed by {self.roles[role].threshold} offline keys, "
                f"and {missing[0]}.pem is not there",
                "Plug in the medium with the offline keys and name its folder with --offline-keys.",
            )
        return [CryptoSigner(load_signing_key(folder / f"{name}.pem")) for name in names]

    def every_signer(self, offline_keys: Path | None) -> Mapping[str, Sequence[CryptoSigner]]:
        """The signers of all roles, for the first metadata."""
        return {role: self.signers(role, offline_keys) for role in self.roles}

    def _folder(self, role: str, offline_keys: Path | None) -> Path:
        if self._desk or role in ONLINE_ROLES:
            return self._online
        return offline_keys if offline_keys is not None else self._offline
