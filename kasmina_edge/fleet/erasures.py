"""Erasure demands on the controller's side: one durable list, every plan carries it, and no covered capture is kept.

A demand goes four ways: into the change plan of every bundle (devices erase and prove it in their audit logs), out of
the controller's own memory, against captures that are still on their way, and to whoever has to look at the grafts that
learned from what is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.change_plan import ChangePlan, Erasure
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.errors import InputError, KasminaError, StorageError
from kasmina_edge.fleet.captures import batch_id
from kasmina_edge.storage import as_storage_error, hold_lock, write_durable

MAX_IN_A_PLAN: int = next(
    m.max_length for m in ChangePlan.model_fields["erasures"].metadata if hasattr(m, "max_length")
)


class _Book(SignedContract):
    format: Literal[1] = 1
    erasures: tuple[Erasure, ...] = ()
    batches: dict[str, tuple[str, ...]] = {}

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
        return self._read().erasures

    def batches(self, erasure: Erasure) -> frozenset[str]:
        """Capture batches that a demand ever removed something of, over all tries."""
        return frozenset(self._read().batches.get(erasure.id, ()))

    def remember(self, erasure: Erasure, batches: Iterable[str]) -> None:
        """Write down, durably, which batches a demand is about to remove something of."""
        with self._locked():
            book = self._read()
            known = book.batches.get(erasure.id, ())
            touched = tuple(sorted({*known, *batches}))
            if touched != known:
                book = book.model_copy(update={"batches": {**book.batches, erasure.id: touched}})
                write_durable(self._path, book.to_bytes())

    def add(self, erasure: Erasure) -> None:
        """Write a demand down, durably; the same one again changes nothing.

        Raises:
            InputError: Another demand has this id, or a plan has no place for one more.
        """
        with self._locked():
            book = self._read()
            known = book.erasures
            same = next((e for e in known if e.id == erasure.id), None)
            if same == erasure:
                return
            if same is not None:
                raise InputError(f"erasure {erasure.id}: demanded before with another scope", "Choose another id.")
            in_plan((*known, erasure))
            write_durable(self._path, book.model_copy(update={"erasures": (*known, erasure)}).to_bytes())

    def covers(self, device: str, at_s: float) -> bool:
        """Whether a capture must not be kept."""
        return any(erasure.covers(device, at_s) for erasure in self.all())

    def _read(self) -> _Book:
        try:
            return _Book.from_bytes(self._path.read_bytes(), where=str(self._path))
        except FileNotFoundError:
            return _Book()
        except OSError as exc:
            raise as_storage_error(exc, self._path) from exc

    def _locked(self) -> AbstractContextManager[object]:
        return hold_lock(self._path.with_name(self._path.name + ".lock"), wait=True)


def in_plan(erasures: Sequence[Erasure], limit: int = MAX_IN_A_PLAN) -> tuple[Erasure, ...]:
    """The demands as a plan carries them: none is ever forgotten.

    Up to ``limit`` each stands under its own id. Above, those that others cover wholly are left out; when that is not
    enough, spans of one device that touch become one, whose id is made from theirs, so that devices carry it out anew.

    Raises:
        InputError: There are more than ``limit`` even then.

    >>> a, b = Erasure(id="a", to_s=9.0), Erasure(id="b", from_s=2.0, to_s=5.0, device="cam-1")
    >>> [e.id for e in in_plan([a, b], 2)], [e.id for e in in_plan([a, b], 1)]
    (['a', 'b'], ['a'])
    """
    if len(erasures) <= limit:
        return tuple(erasures)
    kept = _uncovered(erasures)
    if len(kept) > limit:
        kept = _uncovered(_merged(kept))
    if len(kept) > limit:
        raise InputError(
            f"{len(erasures)} erasures have {len(kept)} separate spans, a change plan carries at most {limit}",
            "Demand one wider span that covers several, such as @all.",
        )
    return kept


def _uncovered(erasures: Sequence[Erasure]) -> tuple[Erasure, ...]:
    """Without those that another one covers wholly; of equal spans the first stays."""
    reach: dict[str | None, float] = {}
    everyone: list[Erasure] = []
    kept: set[str] = set()
    for erasure in sorted(erasures, key=lambda e: (e.device is not None, e.from_s, -e.to_s)):
        wider = erasure.to_s <= reach.get(erasure.device, 0.0) or any(
            other.from_s <= erasure.from_s and erasure.to_s <= other.to_s for other in everyone
        )
        if not wider:
            reach[erasure.device] = erasure.to_s
            kept.add(erasure.id)
            everyone += [erasure] if erasure.device is None else []
    return tuple(e for e in erasures if e.id in kept)


def _merged(erasures: Sequence[Erasure]) -> tuple[Erasure, ...]:
    """With spans of one device that overlap or touch made into one."""
    runs: list[list[Erasure]] = []
    for erasure in sorted(erasures, key=lambda e: (e.device or "", e.from_s)):
        last = runs[-1] if runs else []
        if last and last[0].device == erasure.device and erasure.from_s <= max(e.to_s for e in last):
            last.append(erasure)
        else:
            runs.append([erasure])
    return tuple(run[0] if len(run) == 1 else _joined(run) for run in runs)


def _joined(run: Sequence[Erasure]) -> Erasure:
    name = hashlib.sha256("\n".join(sorted(e.id for e in run)).encode()).hexdigest()[:16]
    return Erasure(
        id=f"joined-{name}", device=run[0].device, from_s=run[0].from_s, to_s=max(erasure.to_s for erasure in run)
    )


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
    """The next plan: the same but for its serial and the demands (see `in_plan`)."""
    return ChangePlan.parse({**plan.model_dump(), "serial": serial, "erasures": in_plan(erasures)}, where="change plan")


def carry_out(
    erasure: Erasure,
    book: ErasureBook,
    *,
    remove: Callable[[Erasure, Callable[[Sequence[tuple[str, int]]], None]], Sequence[tuple[str, int]]],
    plans: Iterable[ChangePlan],
    sign: Callable[[ChangePlan, tuple[Erasure, ...]], int],
    manifests: Iterable[tuple[int, BundleManifest]],
) -> CarriedOut:
    """Write the demand down first, then do it; doing it again after an interruption is harmless.

    Args:
        erasure: The demand.
        book: Where it is written down.
        remove: Removes what it covers from the controller's memory; gives device and sequence of each, and tells them
            to its second argument before anything is gone, so that a second try still knows what the first removed.
        plans: The change plans that are in force.
        sign: Signs a plan's successor with these demands, and gives its serial.
        manifests: Every release that was published here, with its number.

    Raises:
        InputError: Another demand has this id, a plan has no place for it, or a key is missing.
    """
    book.add(erasure)
    removed = tuple(remove(erasure, lambda gone: book.remember(erasure, {batch_id(*one) for one in gone})))
    signed = tuple((plan.bundle, sign(plan, book.all())) for plan in plans)
    touched = book.batches(erasure)
    grafts = tuple(
        f"{manifest.id} (release {number})"
        for number, manifest in manifests
        if any(touched & set(graft.capture_batches) for graft in manifest.grafts)
    )
    return CarriedOut(erasure, removed, signed, grafts)
