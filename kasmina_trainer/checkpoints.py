"""Networks on disk: named arrays and a JSON note in one deterministic container. No pickle, nothing runs on load.

The container is the one of `kasmina_edge.contracts.arrays`: sorted names, fixed dates, bounded sizes; the same network
gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from kasmina_edge.contracts.arrays import MAX_ARRAYS_BYTES, pack_arrays, pack_members, unpack_arrays, unpack_members
from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_edge.errors import BundleError, InputError, StorageError
from kasmina_edge.storage import as_storage_error, make_private_folder, write_durable
from kasmina_trainer.hosts import ARCHITECTURES, build_host
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, hash_state

_NOTE = "checkpoint.json"
_HOST = "host.arrays"
_GRAFTS = "grafts.arrays"


class _Note(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    architecture: str
    settings: dict[str, Any]
    host_hash: str
    sites: dict[str, tuple[int, int, int]] = {}
    grafts: tuple[Graft, ...] = ()
    acceptance: Acceptance | None = None
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        network: The host under its grafts; a host alone has none.
        grafts: As saved, with their capture batches.
        acceptance: The measurement that stood when it was saved.
        metadata: What the writer noted: seed, figures, sizes.
    """

    network: SeededNetwork
    grafts: tuple[Graft, ...] = ()
    acceptance: Acceptance | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def host(self) -> nn.Module:
        """The bare host."""
        return self.network.host_copy()


def save_host(path: Path, host: nn.Module, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a host; its folder is made when missing.

    Raises:
        InputError: The host's class has no name in `hosts.ARCHITECTURES`.
        StorageError: The disk refused.
    """
    save_network(path, attach_seeds(host), metadata=metadata)


def save_network(
    path: Path,
    network: SeededNetwork,
    *,
    grafts: tuple[Graft, ...] | None = None,
    acceptance: Acceptance | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a host with what has grown on it; raises as `save_host` does.

    Args:
        path: The file.
        network: What to write.
        grafts: With capture batches, as `GrownNetwork.grafts`; the network's own when left out.
        acceptance: Its measurement.
        metadata: Plain data for whoever reads the file.
    """
    architecture = getattr(network.body, "architecture", None)
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{type(network.body).__name__} has no architecture name; known are {', '.join(ARCHITECTURES)}",
            "Give the class an `architecture` and add it to hosts.ARCHITECTURES.",
        )
    note = _Note(
        format=1,
        architecture=architecture,
        settings=dict(getattr(network.body, "settings", {})),
        host_hash=network.current_host_hash(),
        sites=network.shapes,
        grafts=network.grafts if grafts is None else grafts,
        acceptance=acceptance,
        metadata=dict(metadata or {}),
    )
    members = {
        _NOTE: canonical_bytes(note.model_dump(mode="json")),
        _HOST: pack_arrays(_as_arrays(network.host_state())),
        _GRAFTS: pack_arrays(_as_arrays(network.graft_state())),
    }
    make_private_folder(path.parent)
    write_durable(path, pack_members(members), mode=0o644)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file of `save_host` or `save_network`.

    Raises:
        InputError: There is no such file.
        StorageError: It cannot be read.
        BundleError: It is damaged, of another format, or its weights are not what the note says.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such checkpoint", "Make one with `kasmina-trainer train`.") from exc
    except OSError as exc:
        raise _unreadable(exc, path) from exc
    members = unpack_members(data, where=str(path), max_bytes=2 * MAX_ARRAYS_BYTES)
    if set(members) != {_NOTE, _HOST, _GRAFTS}:
        raise BundleError(f"{path}: not a checkpoint (it holds {', '.join(sorted(members)[:4])})", _AGAIN)
    note = _parse_note(members[_NOTE], path)
    host_arrays = unpack_arrays(members[_HOST], where=f"{path}/{_HOST}")
    graft_arrays = unpack_arrays(members[_GRAFTS], where=f"{path}/{_GRAFTS}")
    try:
        host = build_host(note.architecture, **note.settings)
        host.load_state_dict(_as_tensors(host_arrays))
        merged = tuple(g for g in note.grafts if g.mergeable)
        network = SeededNetwork(host, dict(note.sites), merged=merged)
        for graft in note.grafts:
            if not graft.mergeable:
                network.graft(graft.site, graft.blueprint, intensity=graft.intensity)
        network.load_graft_state(_as_tensors(graft_arrays))
    except (RuntimeError, TypeError, AttributeError, InputError) as exc:
        raise BundleError(f"{path}: weights and note disagree ({str(exc).splitlines()[0]})", _AGAIN) from exc
    if hash_state(network.host_state()) != note.host_hash:
        raise BundleError(f"{path}: host state {network.host_hash[:12]}, the note says {note.host_hash[:12]}", _AGAIN)
    if note.acceptance is not None and note.acceptance.accepted:
        network.accept()
    return Checkpoint(network, note.grafts, note.acceptance, note.metadata)


_AGAIN = "Train or grow it again; the file was not written by this program, or was damaged since."


def _parse_note(data: bytes, path: Path) -> _Note:
    try:
        note = _Note.model_validate(json.loads(data))
    except (ValueError, ValidationError, RecursionError) as exc:
        raise BundleError(f"{path}: the note is malformed ({str(exc).splitlines()[0]})", _AGAIN) from exc
    if note.format != 1:
        raise BundleError(f"{path}: format {note.format}, this program reads 1", _AGAIN)
    return note


def _as_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def _as_tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _unreadable(exc: OSError, path: Path) -> StorageError:
    return as_storage_error(exc, path)
