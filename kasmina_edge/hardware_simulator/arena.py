"""The activation arena: how much memory a network's tensors take when those that never live together share it.

Two planners are followed step by step, because "lifetime packing" alone leaves the order of packing open, and with it a
quarter of the answer. LiteRT's ``ArenaPlanner`` and ``SimpleMemoryArena`` (google-ai-edge/LiteRT, tflite/): inputs are
never overwritten, some operations write over what they read, the rest goes by size into the gap that fits best. TFLM's
``GreedyMemoryPlanner`` (tensorflow/tflite-micro): by size into the first gap; nothing is written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

from kasmina_edge.hardware_simulator.scratch import TAKE_SCRATCH, scratch_sizes
from kasmina_edge.hardware_simulator.workload import TensorWork, Workload

Planner = Literal["litert", "litert-plain", "tflm"]
"""LiteRT with its reference kernels; with its own, which unroll convolutions into scratch memory; TFLM."""
PLANNERS: dict[str, int] = {"litert": 64, "litert-plain": 64, "tflm": 16}
_MOVES_NOTHING = ("reshape", "squeeze", "expand_dims", "bitcast")
_MAY_SHARE = frozenset((*_MOVES_NOTHING, "add", "sub", "mul", "div", "softmax"))
"""Kinds whose output may be written where an input lies."""
_SCALAR_BYTES = 4
_NEVER = 1 << 62
_LONG = 16  # operations, from which on a life counts as long


@dataclass(frozen=True)
class Placed:
    """One tensor's place in the arena.

    Attributes:
        name: The tensor's, or ``scratch of op N``.
        offset: Bytes from the arena's beginning.
        size_bytes: Of the tensor.
        first: Operation from which on it is there; -1 for inputs.
        last: The last operation during which it is.
    """

    name: str
    offset: int
    size_bytes: int
    first: int
    last: int


def arena_bytes(workload: Workload, alignment: int | None = None, planner: Planner = "litert") -> int:
    """Peak bytes of activations by lifetime packing.

    Args:
        workload: Without lives of tensors it counts as a chain: the largest input plus output of one operation.
        alignment: Of every tensor, bytes; None: the planner's own, 64 in LiteRT, 16 in TFLM.
        planner: Whose packing is followed.
    """
    if not workload.tensors:
        return max((op.input_bytes + op.output_bytes for op in workload.ops), default=0)
    return max((at + size for at, size, *_ in _packed(workload, alignment or PLANNERS[planner], planner)), default=0)


def arena_plan(workload: Workload, alignment: int | None = None, planner: Planner = "litert") -> tuple[Placed, ...]:
    """Every tensor's place; () where the workload does not say how long its tensors live. Arguments as `arena_bytes`.

    Tensors that are written over what another held stand at that one's place.
    """
    if not workload.tensors:
        return ()
    end, names = len(workload.ops), [t.name for t in workload.tensors]
    found = _packed(workload, alignment or PLANNERS[planner], planner)
    return tuple(
        Placed(names[i] if i < len(names) else f"scratch of op {i - len(names)}", at, size, first, min(last, end))
        for at, size, first, last, i in sorted(found, key=lambda block: block[4])
    )


def live_bytes(workload: Workload) -> tuple[int, ...]:
    """Bytes of activations that are alive while each operation runs: what no packing can get below."""
    if not workload.tensors:
        return tuple(op.input_bytes + op.output_bytes for op in workload.ops)
    change = [0] * (len(workload.ops) + 1)
    for t in workload.tensors:
        if not t.kept:
            change[max(t.first, 0)] += t.size_bytes
            change[min(t.last + 1, len(workload.ops))] -= t.size_bytes
    found, alive = [], 0
    for step in change[:-1]:
        alive += step
        found.append(alive)
    return tuple(found)


_Wanted = tuple[int, int, int, int]
"""Size, first, last, index."""
_Block = tuple[int, int, int, int, int]
"""Offset, size, first, last, index."""


def _packed(workload: Workload, alignment: int, planner: Planner) -> list[_Block]:
    wanted = [(t.size_bytes, t.first, t.last, i) for i, t in enumerate(workload.tensors) if not t.kept and t.size_bytes]
    scratch = [
        (size, i, i, len(workload.tensors) + i)
        for i, op in enumerate(workload.ops)
        if op.kind in TAKE_SCRATCH or op.weights_dtype == "int4"
        for size in scratch_sizes(op, planner)
        if size
    ]
    if planner == "tflm":
        return _first_fit(wanted + scratch, alignment, len(workload.ops))
    return _best_fit(_as_litert_counts(workload, wanted) + scratch, alignment, len(workload.ops))


def _as_litert_counts(workload: Workload, wanted: list[_Wanted]) -> list[_Wanted]:
    """Lives as LiteRT's planner sees them: inputs and what nobody reads stay, some outputs take an input's place."""
    end, tensors = len(workload.ops), workload.tensors
    root = _shared(workload)
    lives = {}
    for size, first, last, i in wanted:
        stays = first < 0 or last >= end or not (tensors[i].readers or last > first)
        lives[i] = (size, max(first, 0), _NEVER if stays else last, i)
    for i, holder in root.items():
        if i in lives and holder in lives:
            size, first, last, _ = lives[holder]
            lives[holder] = (size, first, max(last, lives.pop(i)[2]), holder)
    return list(lives.values())


def _shared(workload: Workload) -> dict[int, int]:
    """Of outputs that are written where an input lies: which tensor's place it is."""
    ops, tensors = workload.ops, workload.tensors
    end = len(ops)
    reads: dict[int, list[int]] = {i: [] for i, op in enumerate(ops) if op.kind in _MAY_SHARE}
    if not reads:
        return {}
    root: dict[int, int] = {}
    for i, t in enumerate(tensors):
        for reader in t.readers:
            if reader in reads:
                reads[reader].append(i)
    for i, t in enumerate(tensors):
        if t.first not in reads or t.last >= end or t.kept:
            continue
        moves_nothing = ops[t.first].kind in _MOVES_NOTHING
        for j in reads[t.first]:
            source = tensors[j]
            if source.first < 0 or source.kept or source.size_bytes != t.size_bytes:
                continue
            holder = root.get(j, j)
            if moves_nothing or (
                t.size_bytes > _SCALAR_BYTES
                and _references(source, end) == 1
                and _references(tensors[holder], end) == 1
            ):
                root[i] = holder
                break
    return root


def _references(tensor: TensorWork, end: int) -> int:
    return len(tensor.readers) + (tensor.first < 0) + (tensor.last >= end)


def _best_fit(wanted: Sequence[_Wanted], alignment: int, end: int) -> list[_Block]:
    """``SimpleMemoryArena::Allocate`` in ``ArenaPlanner``'s order: what lives throughout first, then by size."""
    throughout = [w for w in wanted if w[1] <= 0 and w[2] == _NEVER]
    others = sorted([w for w in wanted if w[1] > 0 or w[2] != _NEVER], key=itemgetter(1))
    others.sort(key=itemgetter(0), reverse=True)
    placed, alive = [], _Alive(end)
    for size, first, last, index in (*sorted(throughout, key=itemgetter(3)), *others):
        best, fit, top = -1, _NEVER, 0
        until = last if last < end else end
        for at, after in alive.during(first, until):
            if at >= top:
                start = -(-top // alignment) * alignment
                if size <= at - start < fit:
                    best, fit = start, at - top
                    if not fit:
                        break
            if after > top:
                top = after
        if best < 0:
            best = -(-top // alignment) * alignment
        alive.add(first, until, best, best + size)
        placed.append((best, size, first, last, index))
    return placed


def _first_fit(wanted: Sequence[_Wanted], alignment: int, end: int) -> list[_Block]:
    """``GreedyMemoryPlanner``: sizes rounded up, the largest first (of equal ones the last), into the first gap."""
    rounded = [(-(-size // alignment) * alignment, index, first, last) for size, first, last, index in wanted]
    rounded.sort(reverse=True)
    placed, alive = [], _Alive(end)
    for size, index, first, last in rounded:
        top, until = 0, last if last < end else end
        for at, after in alive.during(first, until):
            if at - top >= size:
                break
            if after > top:
                top = after
        alive.add(first, until, top, top + size)
        placed.append((top, size, first, last, index))
    return placed


class _Alive:
    """Which bytes are taken during which operations; operation -1 is the feeding of the inputs.

    Short lives stand at each of their operations, long ones once: a file of many long ones stays quadratic.
    """

    def __init__(self, end: int) -> None:
        self._taken: list[list[tuple[int, int]]] = [[] for _ in range(end + 2)]
        self._long: list[tuple[int, int, tuple[int, int]]] = []

    def add(self, first: int, last: int, at: int, after: int) -> None:
        taken = (at, after)
        if last - first >= _LONG:
            self._long.append((first, last, taken))
            return
        for step in self._taken[first + 1 : last + 2]:
            step.append(taken)

    def during(self, first: int, last: int) -> list[tuple[int, int]]:
        """Taken ranges by their beginning, one as often as it has operations here; none is empty."""
        found: list[tuple[int, int]] = []
        for step in self._taken[first + 1 : last + 2]:
            found += step
        if self._long:
            found += [taken for begun, ended, taken in self._long if begun <= last and first <= ended]
        found.sort()
        return found
