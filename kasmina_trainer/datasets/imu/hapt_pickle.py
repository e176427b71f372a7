"""Reads a pickle of pandas tables without pandas, without numpy's own loaders, and without running anything of it.

The format is protocol 2 as pandas before 1.1 wrote it: a dictionary of lists of data frames, whose blocks are plain
numpy arrays. A pickle is a program, so it is held down three times over:

1. every instruction is looked at first (`pickletools`): only those that such tables need, a bounded number of them,
   bounded places in the memo, and no name but the twelve that such tables use;
2. those twelve names stand for inert classes and functions of this file: nothing of pandas or numpy is called by the
   pickle, and no name is ever imported;
3. arrays are made here from their bytes, and only where type, shape and length agree.
"""

from __future__ import annotations

import io
import math
import pickle  # nothing is loaded by its own rules: see the module's text
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

MAX_BYTES = 128 * 1024 * 1024
MAX_STEPS = 100_000
MAX_NUMBERS = 4_000_000
Column = npt.NDArray[np.float64]
Table = dict[str, Column]

_OPCODES = frozenset(
    {
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "NONE", "NEWTRUE", "NEWFALSE"),
        *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("BININT", "BININT1", "BININT2", "INT", "LONG1", "BINUNICODE"),
    }
)
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"})
_TYPES = {"f8": np.dtype("<f8"), "i8": np.dtype("<i8")}
_FAULTS = (
    pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    UnicodeError, RecursionError, MemoryError, AssertionError,
)  # fmt: skip


class _Frame:
    """Stands for a data frame; holds its state."""

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Blocks(_Frame):
    """Stands for the blocks of a data frame."""


class _Type:
    """Stands for a numpy type."""

    def __init__(self, name: str) -> None:
        if name not in (*_TYPES, "O8"):
            raise pickle.UnpicklingError(f"an array of type {name!r}")
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError(f"an array in byte order {state[1]!r}")


class _Array:
    """Stands for a numpy array; ``values`` is one of numbers, or a list of short names."""

    values: Column | list[str]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if type(shape) is not tuple or not all(type(n) is int and 0 <= n <= MAX_NUMBERS for n in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape!r}")
        if type(kind) is not _Type or math.prod(shape) > MAX_NUMBERS:
            raise pickle.UnpicklingError(f"an array of {math.prod(shape)} numbers, at most {MAX_NUMBERS} are read")
        if kind.name == "O8":
            if type(data) is not list or len(shape) != 1 or len(data) != shape[0]:
                raise pickle.UnpicklingError("names that are no list")
            if not all(type(name) is str and len(name) <= 64 for name in data):
                raise pickle.UnpicklingError("a name that is no short text")
            self.values = data
            return
        wanted = math.prod(shape) * 8
        if type(data) is not bytes or len(data) != wanted:
            raise pickle.UnpicklingError(f"an array of shape {shape} needs {wanted} bytes")
        flat = np.frombuffer(data, _TYPES[kind.name]).astype(np.float64)
        self.values = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


class _Marker:
    """Stands for a class that is only ever named: ndarray, Index, RangeIndex, object."""


def _reconstructor(kind: object, base: object, state: object) -> _Frame:
    if kind not in (_Frame, _Blocks) or base is not _Marker or state is not None:
        raise pickle.UnpicklingError("an object of another kind")
    return _Blocks() if kind is _Blocks else _Frame()


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Marker:
        raise pickle.UnpicklingError("an array of another kind")
    return _Array()


def _dtype(name: object, align: object = 0, copy: object = 1) -> _Type:
    return _Type(str(name))


def _encode(text: object, encoding: object) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding")
    return text.encode("latin1")


def _new_index(kind: object, told: Mapping[str, object]) -> list[str] | None:
    if kind is not _Marker or type(told) is not dict:
        raise pickle.UnpicklingError("an index of another kind")
    data = told.get("data")
    return data.values if type(data) is _Array and isinstance(data.values, list) else None


def _slice(begin: object, end: object, step: object) -> slice:
    if not all(type(n) is int and 0 <= n <= 64 for n in (begin, end, step)) or not step:
        raise pickle.UnpicklingError("a slice of something else than columns")
    return slice(begin, end, step)


_STAND_INS: dict[str, Callable[..., object]] = {
    "copy_reg _reconstructor": _reconstructor,
    "__builtin__ object": _Marker,
    "__builtin__ slice": _slice,
    "pandas.core.frame DataFrame": _Frame,
    "pandas.core.internals.managers BlockManager": _Blocks,
    "pandas.core.indexes.base _new_Index": _new_index,
    "pandas.core.indexes.base Index": _Marker,
    "pandas.core.indexes.range RangeIndex": _Marker,
    "numpy.core.multiarray _reconstruct": _reconstruct,
    "numpy ndarray": _Marker,
    "numpy dtype": _dtype,
    "_codecs encode": _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of one of the twelve names; nothing is imported."""
        found = _STAND_INS.get(f"{module} {name}")
        if found is None:
            raise pickle.UnpicklingError(f"the name {module}.{name}")
        return found


def read_tables(data: bytes, *, where: str, max_bytes: int = MAX_BYTES) -> dict[int, list[Table]]:
    """Tables by number.

    Args:
        data: The whole pickle.
        where: Its name, for messages.
        max_bytes: Refused when longer.

    Returns:
        Columns by name, each as float64.  # (N,)

    Raises:
        InputError: Too long, damaged, or anything else than such tables; nothing of it was run.
    """
    if len(data) > max_bytes:
        raise InputError(f"{where}: {len(data)} bytes, at most {max_bytes} are read")
    try:
        _look_through(data)
        found = _Unpickler(io.BytesIO(data), fix_imports=False, encoding="latin1").load()
        if type(found) is not dict or not all(type(k) is int and type(v) is list for k, v in found.items()):
            raise pickle.UnpicklingError("no dictionary of lists")
        return {number: [_table(frame) for frame in frames] for number, frames in found.items()}
    except _FAULTS as exc:
        raise InputError(
            f"{where}: not a pickle of plain tables ({type(exc).__name__}: {exc})", "Nothing of it was run."
        ) from exc


def _look_through(data: bytes) -> None:
    """Refuse every instruction that such tables do not need, before the first one is carried out."""
    stop = -1
    for steps, (opcode, argument, position) in enumerate(pickletools.genops(data), 1):
        if opcode.name not in _OPCODES or steps > MAX_STEPS:
            raise pickle.UnpicklingError(f"instruction {steps}, {opcode.name}, at byte {position}")
        if opcode.name in _PUTS and not (isinstance(argument, int) and 0 <= argument < MAX_STEPS):
            raise pickle.UnpicklingError(f"place {argument} of the memo")
        if opcode.name == "GLOBAL" and argument not in _STAND_INS:
            raise pickle.UnpicklingError(f"the name {argument}")
        stop = position or 0
    if stop != len(data) - 1:
        raise pickle.UnpicklingError(f"{len(data) - 1 - stop} bytes after its end")


def _table(frame: object) -> Table:
    state = frame.state if type(frame) is _Frame else None
    blocks = state.get("_data") if type(state) is dict else None
    if type(blocks) is not _Blocks:
        raise pickle.UnpicklingError("no data frame")
    told: Any = blocks.state
    names = told[0][0]
    if type(names) is not list:
        raise pickle.UnpicklingError("columns without names")
    table: Table = {}
    for block in told[3]["0.14.1"]["blocks"]:
        places, array = block["mgr_locs"], block["values"]
        if type(places) is _Array and not isinstance(places.values, list):
            chosen = [names[int(i)] for i in places.values]
        elif type(places) is slice:
            chosen = names[places]
        else:
            raise pickle.UnpicklingError("a block without a place")
        values = array.values if type(array) is _Array else None
        if not isinstance(values, np.ndarray) or values.ndim != 2 or len(values) != len(chosen):
            raise pickle.UnpicklingError(f"a block that does not fit its {len(chosen)} columns")
        table |= dict(zip(chosen, values, strict=True))
    if len(table) != len(names) or len({len(column) for column in table.values()}) > 1:
        raise pickle.UnpicklingError(f"{len(table)} of {len(names)} columns, or columns of unequal length")
    return table
