"""Erasure demands on the controller's side: one durable list, every plan carries it, and no covered capture is kept.

A demand goes four ways: into the change plan of every bundle (devices erase and prove it in their audit logs), out of
the controller's own memory, against captures that are still on their way, and to whoever has to look at the grafts that
learned from what is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.change_plan import ChangePlan, Erasure
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.errors import InputError, KasminaError, StorageError
from kasmina_edge.fleet.captures import batch_id
from kasmina_edge.storage import as_storage_error, hold_lock, write_durable

MAX_IN_A_PLAN = 256


class _Book(SignedContract):
    format: Literal[1] = 1
    erasures: tuple[Erasure, ...] = ()

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        return StorageError


class ErasureBook:
    """Every demand that was ever made here, oldest first, in one file; safe for several processes.

    Args:
        path: ``erasures.json`` of the fleet folder; made with the first demand.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> tuple[Erasure, ...]:
        """Every demand.

        Raises:
            StorageError: The file is damaged or cannot be read: nothing may be kept or signed until it is mended.
        """
        try:
            return _Book.from_bytes(self._path.read_bytes(), where=str(self._path)).erasures
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise as_storage_error(exc, self._path) from exc

    def add(self, erasure: Erasure) -> None:
        """Write a demand down, durably; the same one again changes nothing.

        Raises:
            InputError: Another demand has this id.
        """
        with hold_lock(self._path.with_name(self._path.name + ".lock"), wait=True):
            known = self.all()
            same = next((e for e in known if e.id == erasure.id), None)
            if same == erasure:
                return
            if same is not None:
                raise InputError(f"erasure {erasure.id}: demanded before with another scope", "Choose another id.")
            write_durable(self._path, _Book(erasures=(*known, erasure)).to_bytes())

    def covers(self, device: str, at_s: float) -> bool:
        """Whether a capture must not be kept."""
        return any(erasure.covers(device, at_s) for erasure in self.all())


@dataclass(frozen=True)
class CarriedOut:
    """What a demand did on this side.

    Attributes:
        removed: Device and sequence of each sealed capture that was removed from the controller's memory.
        plans: Bundle and new serial of each change plan that carries the demand now.
        grafts: ``NAME VERSION (release N)`` whose manifest lists a capture batch of which something was removed, or may
            have been: batches are 64 captures long.
    """

    erasure: Erasure
    removed: tuple[tuple[str, int], ...]
    plans: tuple[tuple[str, int], ...]
    grafts: tuple[str, ...]


def plan_with(plan: ChangePlan, erasures: Sequence[Erasure], serial: int) -> ChangePlan:
    """The next plan: the same but for its serial and the newest `MAX_IN_A_PLAN` demands."""
    return ChangePlan.parse(
        {**plan.model_dump(), "serial": serial, "erasures": tuple(erasures)[-MAX_IN_A_PLAN:]}, where="change plan"
    )


def carry_out(
    erasure: Erasure,
    book: ErasureBook,
    *,
    remove: Callable[[Erasure], Sequence[tuple[str, int]]],
    plans: Iterable[ChangePlan],
    sign: Callable[[ChangePlan, tuple[Erasure, ...]], int],
    manifests: Iterable[tuple[int, BundleManifest]],
) -> CarriedOut:
    """Write the demand down first, then do it; doing it again after an interruption is harmless.

    Args:
        erasure: The demand.
        book: Where it is written down.
        remove: Removes what it covers from the controller's memory; gives device and sequence of each.
        plans: The change plans that are in force.
        sign: Signs a plan's successor with these demands, and gives its serial.
        manifests: Every release that was published here, with its number.

    Raises:
        InputError: Another demand has this id, or a key is missing.
    """
    book.add(erasure)
    removed = tuple(remove(erasure))
    signed = tuple((plan.bundle, sign(plan, book.all())) for plan in plans)
    touched = {batch_id(device, sequence) for device, sequence in removed}
    grafts = tuple(
        f"{manifest.id} (release {number})"
        for number, manifest in manifests
        if any(touched & set(graft.capture_batches) for graft in manifest.grafts)
    )
    return CarriedOut(erasure, removed, signed, grafts)
