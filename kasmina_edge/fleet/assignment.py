"""Changes to a repository's state in memory: who is assigned what, and what is still worth vouching for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tuf.api.metadata import TargetFile

from kasmina_edge.contracts.manifest import MANIFEST_PATH
from kasmina_edge.errors import InputError
from kasmina_edge.fleet.shelf import PLACES
from kasmina_edge.fleet.signing import State

KEPT_RELEASES = 1
_RECIPIENT = re.compile(r"@?[a-z0-9-]{1,32}")


def recipient(name: str) -> str:
    """A device id, or a group's name behind ``@``, as it stands in a target path."""
    if not _RECIPIENT.fullmatch(name):
        raise InputError(f"recipient {name!r}: expected a device id or @group, of 1 to 32 of a-z, 0-9 and -")
    return name


def assign(state: State, manifest_path: str, recipients: Sequence[str]) -> None:
    """One bundle a recipient: what was assigned before goes."""
    image = next(
        (state.roles[r].targets[manifest_path] for r in PLACES if manifest_path in state.roles[r].targets), None
    )
    if image is None or not manifest_path.endswith(f"/{MANIFEST_PATH}"):
        raise InputError(f"{manifest_path}: no role vouches for such a manifest", "Publish it first.")
    director = state.roles["director"].targets
    for who in recipients:
        for path in [p for p in director if p.startswith(f"desired/{who}/")]:
            del director[path]
        path = f"desired/{who}/{manifest_path.split('/')[1]}.json"
        director[path] = TargetFile(image.length, dict(image.hashes), path, {"custom": {"path": manifest_path}})


def prune(state: State, name: str, roles: Iterable[str]) -> None:
    """Stop vouching for releases that nobody is assigned and that newer ones replaced; it keeps metadata short."""
    assigned = {str(t.custom["path"]).rpartition("/")[0] for t in state.roles["director"].targets.values()}
    for role, place in PLACES.items():
        if role not in roles:
            continue
        targets = state.roles[role].targets
        start = f"{place}/{name}/"
        numbers = sorted({int(p[len(start) :].split("/")[0]) for p in targets if p.startswith(start)})
        kept = assigned | {f"{start}{number}" for number in numbers[-KEPT_RELEASES:]}
        for path in [p for p in targets if p.startswith(start) and p.rpartition("/")[0] not in kept]:
            del targets[path]
