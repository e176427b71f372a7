"""Networks on disk: named arrays and a JSON note in one deterministic container. No pickle, nothing runs on load.

The container is the one of `kasmina_edge.contracts.arrays`: sorted names, fixed dates, bounded sizes; the same network
gives the same bytes. Format 2 holds everything that growth can be resumed from: ports, settings and first seeds of the
grafts, what nested seeds hold, and the life of every site. Format 1 (sites by shape, nothing but grafts) is still read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from kasmina_edge.contracts.arrays import MAX_ARRAYS_BYTES, pack_arrays, pack_members, unpack_arrays, unpack_members
from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_edge.errors import BundleError, InputError, StorageError
from kasmina_edge.safety.audit import Head
from kasmina_edge.storage import as_storage_error, make_private_folder, write_durable
from kasmina_trainer.blueprints.port import Layer, Layout, Port
from kasmina_trainer.hosts import ARCHITECTURES, build_host
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, freeze, hash_state
from kasmina_trainer.seeds.lifecycle import Record

FORMAT = 2
MOST_VALUES = 2**24
"""Numbers that may flow through one site, or weigh in the layer that it leaves: nothing larger is built for a note."""
_NOTE = "checkpoint.json"
_HOST = "host.arrays"
_GRAFTS = "grafts.arrays"


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Layer(_Plain):
    kind: Literal["conv1d", "conv2d", "linear"]
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


class _Port(_Plain):
    """A site: its port, the value it reads besides its own, and whether a hook holds it."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    layer: _Layer | None = None
    input_shape: tuple[int, ...] | None = None
    context: tuple[int, ...] | None = None
    context_of: str = ""
    hooked: bool = False


class _Growth(_Plain):
    """What stands at a site; ``structure`` is what a branch says of what it holds itself."""

    site: str
    blueprint: str
    version: int
    intensity: float
    seed: int = 0
    config: dict[str, Any] = {}
    structure: dict[str, Any] | None = None


class _Note(_Plain):
    format: int
    architecture: str
    settings: dict[str, Any]
    host_hash: str
    sites: dict[str, tuple[int, int, int]] = {}
    ports: tuple[_Port, ...] = ()
    growths: tuple[_Growth, ...] = ()
    lifecycle: dict[str, Any] | None = None
    grafts: tuple[Graft, ...] = ()
    acceptance: Acceptance | None = None
    audit: dict[str, Any] | None = None
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        network: The host under its grafts; a host alone has none.
        grafts: As saved, with their capture batches.
        acceptance: The measurement that stood when it was saved.
        metadata: What the writer noted: seed, figures, sizes.
        audit: The newest entry of the audit log when it was saved; a log that ends before it was cut.
    """

    network: SeededNetwork
    grafts: tuple[Graft, ...] = ()
    acceptance: Acceptance | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    audit: Head | None = None

    def host(self) -> nn.Module:
        """The bare host."""
        return self.network.host_copy()


def save_host(path: Path | str, host: nn.Module, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a host; its folder is made when missing.

    Raises:
        InputError: The host's class has no name in `hosts.ARCHITECTURES`.
        StorageError: The disk refused.
    """
    save_network(path, attach_seeds(host), metadata=metadata)


def save_network(
    path: Path | str,
    network: SeededNetwork,
    *,
    grafts: tuple[Graft, ...] | None = None,
    acceptance: Acceptance | None = None,
    metadata: Mapping[str, Any] | None = None,
    foreign: bool = False,
    times: bool = False,
    audit: Head | None = None,
) -> None:
    """Write a host with what has grown on it; raises as `save_host` does.

    Args:
        path: The file.
        network: What to write, in any state of growth.
        grafts: With capture batches, as `GrownNetwork.grafts`; the network's own when left out.
        acceptance: Its measurement.
        metadata: Plain data for whoever reads the file.
        foreign: The host's class is not ours: whoever loads the file passes the host.
        times: Write when each step was taken; without them the same growth gives the same bytes.
        audit: Head of the audit log that the steps were recorded in.
    """
    architecture = getattr(network.body, "architecture", None)
    if architecture not in ARCHITECTURES:
        if not foreign:
            raise InputError(
                f"{type(network.body).__name__} has no architecture name; known are {', '.join(ARCHITECTURES)}",
                "Pass foreign=True and the host again on loading, or add the class to hosts.ARCHITECTURES.",
            )
        architecture = ""
    note = _Note(
        format=FORMAT,
        architecture=architecture,
        settings=dict(getattr(network.body, "settings", {})) if architecture else {},
        host_hash=network.current_host_hash(),
        ports=tuple(_port_note(network, port) for port in network.ports.values()),
        growths=_growth_notes(network),
        lifecycle=network.lifecycle.to_json(times=times),
        grafts=network.grafts if grafts is None else grafts,
        acceptance=acceptance,
        audit=None if audit is None else {"seq": audit.seq, "hash": audit.hash},
        metadata=dict(metadata or {}),
    )
    members = {
        _NOTE: canonical_bytes(note.model_dump(mode="json")),
        _HOST: pack_arrays(_as_arrays(network.host_state())),
        _GRAFTS: pack_arrays(_as_arrays(network.graft_state())),
    }
    path = Path(path)
    make_private_folder(path.parent)
    write_durable(path, pack_members(members), mode=0o644)


def load_checkpoint(
    path: Path | str,
    *,
    host: nn.Module | None = None,
    clock: Callable[[], float] = time.time,
    record: Record | None = None,
) -> Checkpoint:
    """Read a file of `save_host` or `save_network`.

    Args:
        path: The file.
        host: The host it was grown on; needed where its class is not ours, checked wherever it is given.
        clock: As in `SeededNetwork`.
        record: As in `SeededNetwork`; called with steps that come after.

    Raises:
        InputError: There is no such file, it needs its host, or it was grown on another one.
        StorageError: It cannot be read.
        BundleError: It is damaged, of another format, or its weights are not what the note says.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise InputError(
            f"{path}: no such checkpoint", f"Make one with `kasmina-trainer train --out {path.parent}`."
        ) from exc
    except OSError as exc:
        raise _unreadable(exc, path) from exc
    try:
        members = unpack_members(data, where=str(path), max_bytes=2 * MAX_ARRAYS_BYTES)
    except BundleError as exc:
        raise BundleError(exc.message, _AGAIN) from exc
    if set(members) != {_NOTE, _HOST, _GRAFTS}:
        raise BundleError(f"{path}: not a checkpoint (it holds {', '.join(sorted(members)[:4])})", _AGAIN)
    note = _parse_note(members[_NOTE], path)
    _check_given(note, host, path)
    host_arrays = unpack_arrays(members[_HOST], where=f"{path}/{_HOST}")
    graft_arrays = unpack_arrays(members[_GRAFTS], where=f"{path}/{_GRAFTS}")
    try:
        own = freeze(host) if host is not None else build_host(note.architecture, **note.settings)
        own.load_state_dict(_as_tensors(host_arrays))
        network = _grown(note, own, clock)
        network.load_graft_state(_as_tensors(graft_arrays))
        audit = None if note.audit is None else Head(int(note.audit["seq"]), str(note.audit["hash"]))
    except (RuntimeError, TypeError, AttributeError, KeyError, ValueError, InputError) as exc:
        raise BundleError(f"{path}: weights and note disagree ({_first_line(exc)})", _AGAIN) from exc
    if hash_state(network.host_state()) != note.host_hash:
        raise BundleError(f"{path}: host state {network.host_hash[:12]}, the note says {note.host_hash[:12]}", _AGAIN)
    if note.acceptance is not None and note.acceptance.accepted and network.grafts:
        network.accept()
    network.record_to(record)
    return Checkpoint(network, note.grafts, note.acceptance, note.metadata, audit)


_AGAIN = "Train or grow it again; the file was not written by this program, or was damaged since."

_IN_PYTHON = "Pass the network it was: --host FILE.pt2 for `kasmina-trainer export`, host= in Python."


def _parse_note(data: bytes, path: Path) -> _Note:
    try:
        note = _Note.model_validate(json.loads(data))
    except (ValueError, ValidationError, RecursionError) as exc:
        raise BundleError(f"{path}: the note is malformed ({_first_line(exc)})", _AGAIN) from exc
    if note.format not in (1, FORMAT):
        raise BundleError(f"{path}: format {note.format}, this program reads 1 and {FORMAT}", _AGAIN)
    return note


def _check_given(note: _Note, host: nn.Module | None, path: Path) -> None:
    """Whether the host that was passed is the one of the file."""
    if host is None:
        if note.format == FORMAT and not note.architecture:
            raise InputError(f"{path}: grown on a host whose class is not ours", _IN_PYTHON)
        return
    given = hash_state(host.state_dict())
    if given != note.host_hash and not any(graft.mergeable for graft in note.grafts):
        raise InputError(
            f"{path}: grown on another host: state {note.host_hash[:12]} there, {given[:12]} here",
            "Load the weights that the host had when it was attached.",
        )


def _port_note(network: SeededNetwork, port: Port) -> _Port:
    return _Port(
        name=port.name,
        shape=port.shape,
        layout=port.layout,
        layer=None if port.layer is None else _Layer(**vars(port.layer)),
        input_shape=port.input_shape,
        context=port.context,
        context_of=network.contexts.get(port.name, ""),
        hooked=network.site(port.name).kind == "hooked",
    )


def _growth_notes(network: SeededNetwork) -> tuple[_Growth, ...]:
    notes = []
    for site, growth in network.growths.items():
        structure = getattr(network.site(site).branch, "structure", None)
        notes.append(
            _Growth(
                site=site,
                blueprint=growth.blueprint.name,
                version=growth.blueprint.version,
                intensity=growth.intensity,
                seed=growth.seed,
                config=growth.config.model_dump(mode="json"),
                structure=structure() if callable(structure) else None,
            )
        )
    return tuple(notes)


def _grown(note: _Note, host: nn.Module, clock: Callable[[], float]) -> SeededNetwork:
    """The network as the note tells it; its branches have their first weights."""
    merged = tuple(graft for graft in note.grafts if graft.mergeable)
    if note.format == 1:
        for name, shape in note.sites.items():
            _check_size(name, "shape", shape)
        network = SeededNetwork(host, dict(note.sites), merged=merged, clock=clock)
        _check_flow(network)
        for graft in note.grafts:
            if not graft.mergeable:
                network.graft(graft.site, graft.blueprint, version=graft.blueprint_version, intensity=graft.intensity)
        return network
    network = SeededNetwork(
        host,
        {port.name: _as_port(port) for port in note.ports},
        merged=merged,
        contexts={port.name: port.context_of for port in note.ports if port.context_of},
        hooked=[port.name for port in note.ports if port.hooked],
        clock=clock,
    )
    _check_flow(network)
    for growth in note.growths:
        network.graft(
            growth.site,
            growth.blueprint,
            config=growth.config,
            version=growth.version,
            intensity=growth.intensity,
            seed=growth.seed,
        )
        if growth.structure is not None:
            rebuild: Any = getattr(network.site(growth.site).branch, "rebuild")  # noqa: B009
            rebuild(growth.structure)
    if note.lifecycle is None:
        raise InputError("the note has no life cycle")
    network.lifecycle.from_json(note.lifecycle)
    standing = {name for name, state in network.states.items() if state in ("probing", "active")}
    if standing != set(network.growths):
        raise InputError(f"sites in growth are {sorted(standing)}, grafts stand at {sorted(network.growths)}")
    return network


def _check_size(site: str, what: str, sizes: tuple[int, ...]) -> None:
    if min(sizes, default=1) < 1 or prod(sizes) > MOST_VALUES:
        raise InputError(
            f"site {site}: {what} {sizes} holds {prod(sizes)} numbers, expected at most {MOST_VALUES} and no empty axis"
        )


def _check_flow(network: SeededNetwork) -> None:
    """Whether the note's shapes are what flows through the bare sites; asked of hosts that say what they take."""
    entry = getattr(network.body, "input_shape", None)
    if not isinstance(entry, tuple):
        return
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str, value: torch.Tensor) -> None:
        seen[name] = tuple(value.shape[1:])

    hooks = [network.site(n).register_forward_hook(lambda m, x, y, n=n: note(n, y)) for n in network.sites]
    try:
        with torch.no_grad(), network.watched():
            network(torch.zeros(1, *entry))
    finally:
        for hook in hooks:
            hook.remove()
    for name, shape in network.shapes.items():
        if name in seen and seen[name] != tuple(shape):
            raise InputError(f"site {name}: shape {tuple(shape)} in the note, {seen[name]} in the host")


def _as_port(port: _Port) -> Port:
    for what, sizes in (("shape", port.shape), ("input shape", port.input_shape), ("context", port.context)):
        _check_size(port.name, what, sizes or ())
    if port.layer is not None:
        _check_size(port.name, "layer", (port.layer.inputs, port.layer.outputs, *port.layer.kernel))
    layer = None if port.layer is None else Layer(**port.layer.model_dump())
    return Port(port.name, port.shape, port.layout, layer, port.input_shape, port.context)


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _as_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def _as_tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _unreadable(exc: OSError, path: Path) -> StorageError:
    return as_storage_error(exc, path)
