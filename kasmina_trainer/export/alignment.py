"""Which operator of a grown network is which operator of its parent.

Inserting a branch renumbers and renames everything, so operators are matched by what they are: same kind and shapes,
and preferably the same constants, in the same order (Needleman and Wunsch 1970, without substitutions). Where two fit
equally the earlier one is taken: a branch is computed after the site that feeds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.flatbuffer import Operator

_SAME_KIND, _SAME_CONSTANT = 1, 4


@dataclass(frozen=True)
class Alignment:
    """Tensors of a grown network against those of its parent.

    Attributes:
        operators: Operators of the grown network to those of the parent.
        twins: Tensor to the parent's tensor that it is; at most one each way.
        stands_for: Tensor to the parent's tensor whose place it takes: the twins, and the site outputs that the
            parent's operators now read instead of the site inputs.
    """

    operators: Mapping[int, int]
    twins: Mapping[int, int]
    stands_for: Mapping[int, int]


def align(parent: Any, grown: Any) -> Alignment:
    """Match a grown network with its parent; both quantized object trees (`flatbuffer.parse`)."""
    ours, theirs = flatbuffer.operators(grown), flatbuffer.operators(parent)
    gains = [[_gain(grown, g, parent, p) for p in theirs] for g in ours]
    pairs = best_pairs(gains)
    twins: dict[int, int] = {}
    taken: set[int] = set()

    def pair_up(mine: Sequence[int], other: Sequence[int]) -> None:
        for a, b in zip(mine, other, strict=True):
            if a >= 0 and b >= 0 and a not in twins and b not in taken:
                twins[a] = b
                taken.add(b)

    pair_up([int(i) for i in grown.subgraphs[0].inputs], [int(i) for i in parent.subgraphs[0].inputs])
    for g, p in pairs.items():
        pair_up(ours[g].outputs, theirs[p].outputs)
    stands_for = dict(twins)
    for g, p in pairs.items():
        constants = [i for i in range(len(ours[g].inputs)) if flatbuffer.constant(grown, ours[g].inputs[i]) is not None]
        pair_up([ours[g].inputs[i] for i in constants], [theirs[p].inputs[i] for i in constants])
        for a, b in zip(ours[g].inputs, theirs[p].inputs, strict=True):
            if a >= 0 and b >= 0 and flatbuffer.constant(grown, a) is None:
                stands_for.setdefault(a, b)
    return Alignment(pairs, twins, {**stands_for, **twins})


def _gain(grown: Any, mine: Operator, parent: Any, other: Operator) -> int | None:
    """How well two operators fit; None when they cannot be the same."""
    if mine.kind != other.kind or len(mine.inputs) != len(other.inputs) or len(mine.outputs) != len(other.outputs):
        return None
    gain = _SAME_KIND
    for a, b in zip((*mine.inputs, *mine.outputs), (*other.inputs, *other.outputs), strict=True):
        if (a < 0) != (b < 0):
            return None
        if a < 0:
            continue
        if flatbuffer.shape(grown, a) != flatbuffer.shape(parent, b):
            return None
        ours, theirs = flatbuffer.constant(grown, a), flatbuffer.constant(parent, b)
        if (ours is None) != (theirs is None):
            return None
        if ours is not None and theirs is not None and ours.tobytes() == theirs.tobytes():
            gain += _SAME_CONSTANT
    return gain


def best_pairs(gains: Sequence[Sequence[float | None]]) -> dict[int, int]:
    """The order-keeping pairs of the largest total gain; rows and columns both rise.

    >>> best_pairs([[1], [1]])
    {0: 0}
    """
    rows, columns = len(gains), len(gains[0]) if gains else 0
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]  # best[r][c]: from row r and column c on
    for r in range(rows - 1, -1, -1):
        for c in range(columns - 1, -1, -1):
            gain = gains[r][c]
            paired = -1 if gain is None else gain + best[r + 1][c + 1]
            best[r][c] = max(paired, best[r + 1][c], best[r][c + 1])
    pairs: dict[int, int] = {}
    r = c = 0
    while r < rows and c < columns:
        gain = gains[r][c]
        if gain is not None and gain + best[r + 1][c + 1] == best[r][c]:
            pairs[r] = c
            r, c = r + 1, c + 1
        elif best[r + 1][c] == best[r][c]:
            r += 1
        else:
            c += 1
    return pairs
