"""How many self-test vectors a model file carries, and which: fewer where frames are large against the file.

Sixty-four frames of 32 x 32 x 3 floats take 786 kB, beside a model of 11 kB. Fewer find as much only where they are
chosen by what they find: the file is spoilt in some places, one at a time, and rows are taken that tell spoilt files
from the whole one (greedy cover; Johnson, "Approximation algorithms for combinatorial problems", 1974). Fewer rows
spread over the answers, or drawn, were measured to find less (decision 0037).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.arrays import MAX_ARRAYS_BYTES
from kasmina_edge.errors import KasminaError
from kasmina_trainer.export import flatbuffer, parity

Array = npt.NDArray[Any]

MOST_VECTORS = 64
LEAST_VECTORS = 24
LEAST_BUDGET_BYTES = 96 * 1024
"""What a file's vectors may take however small it is; sixty-four of the digits' frames fit."""
MOST_SPOILT = 40
LEAST_SPOILT = 4
MOST_ASKED = 240
MOST_READ_BYTES = 400_000_000
"""Of the file, once a call, while rows are chosen: a large file is spoilt less often and asked fewer rows."""
_SEEN_BY = (1.0, 2.0, 3.0, 5.0)
"""Differences in steps that count as seen, from slight to plain: what a tolerance may leave."""
_SHARE_OF_A_FLOAT = 0.005
_AGAIN = 0.25


def drawn_rows(count: int, seed: int) -> Array:
    """Which held-out inputs become self-test vectors where all fit: 64 different ones, or all of fewer."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:MOST_VECTORS])


def affordable(model_bytes: int, vector_bytes: int) -> int:
    """How many vectors a file carries: as many bytes as the model has, 96 KiB at least, and 24 to 64 vectors.

    Args:
        model_bytes: Of the model file.
        vector_bytes: Of one input with its answers.

    >>> affordable(11_000, 3_082), affordable(11_000, 12_328), affordable(64_000, 1_064)
    (31, 24, 64)
    """
    budget = max(LEAST_BUDGET_BYTES, model_bytes)
    readable = max(1, MAX_ARRAYS_BYTES // 2 // max(1, vector_bytes))
    return min(max(LEAST_VECTORS, budget // max(1, vector_bytes)), MOST_VECTORS, readable)


def telling_rows(data: bytes, inputs: Array, seed: int) -> Array:
    """Rows in the order in which they help to tell spoilt files from this one: the first n are the best n.

    Args:
        data: A TFLite file.
        inputs: As it takes them; 64 to 240 are looked at, evenly from all.  # (M, ...)
        seed: Chooses what is spoilt.
    """
    calls = MOST_READ_BYTES // len(data)
    most = min(len(inputs), MOST_ASKED, max(MOST_VECTORS, calls // LEAST_SPOILT))
    looked = np.linspace(0, len(inputs) - 1, most).round().astype(np.intp)
    asked = inputs[looked]
    right = parity.litert_raw(data, asked)
    rng = np.random.default_rng(seed)
    seen = []
    for spoilt in spoilt_files(data, min(MOST_SPOILT, max(LEAST_SPOILT, calls // len(asked))), rng):
        try:
            moved = _moved(right, parity.litert_raw(spoilt, asked))
        except KasminaError:
            continue  # so spoilt that no engine runs it
        seen += [moved > least for least in _SEEN_BY]
    return looked[_covering(np.asarray(seen, np.bool_).reshape(-1, len(asked)), rng)]


def spoilt_files(data: bytes, count: int, rng: np.random.Generator) -> list[bytes]:
    """The file with one number of a weight changed, ``count`` times; none where it has no weights."""
    made: list[bytes] = []
    for _ in range(count):
        model = flatbuffer.parse(data)
        weights = [
            (tensor.buffer, kind)
            for index, tensor in enumerate(model.subgraphs[0].tensors)
            if (kind := flatbuffer.type_name(model, index)) in ("INT8", "FLOAT32")
            and flatbuffer.constant(model, index) is not None
        ]
        if not weights:
            return made
        place, kind = weights[int(rng.integers(len(weights)))]
        values = np.array(model.buffers[place].data, np.uint8, copy=True)
        at = int(rng.integers(len(values)))
        at, bit = (at, int(rng.integers(8))) if kind == "INT8" else (at // 4 * 4 + 3, 7)  # a float's sign
        values[at] ^= np.uint8(1 << bit)
        model.buffers[place].data = values
        made.append(flatbuffer.serialize(model))
    return made


def _moved(right: tuple[Array, ...], given: tuple[Array, ...]) -> Array:
    """The largest difference of every row, in steps; of floats, in half per cent of the largest answer."""
    found = np.zeros(len(right[0]))
    for a, b in zip(right, given, strict=True):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).reshape(len(a), -1).max(axis=1)
        step = 1.0 if a.dtype.kind in "iu" else _SHARE_OF_A_FLOAT * max(float(np.abs(a).max()), 1e-9)
        found = np.maximum(found, np.nan_to_num(gap / step, nan=np.inf))
    return found


def _covering(seen: Array, rng: np.random.Generator) -> Array:
    """Up to 64 rows, each the one that adds most; what was seen already counts a quarter, and again a quarter."""
    rows = seen.shape[1]
    left = rng.permutation(rows).tolist()  # where nothing tells rows apart, chance does
    worth = np.ones(len(seen))
    taken: list[int] = []
    while left and len(taken) < MOST_VECTORS:
        best = max(left, key=lambda row: float(worth[seen[:, row]].sum()))
        left.remove(best)
        taken.append(best)
        worth[seen[:, best]] *= _AGAIN
    return np.asarray(taken, np.intp)
