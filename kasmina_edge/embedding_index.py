"""Retrieval on the device: rows of embeddings with names, and which are nearest to what a model answered. Numpy alone.

An app opens an index beside its bundle, gives it a `Result`'s embedding, and gets names and cosines. Rows are floats,
or 8-bit integers with one scale at a quarter of the room. The file is data alone: named arrays, bounded, no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.arrays import pack_arrays, unpack_arrays
from kasmina_edge.contracts.canonical import sha256_hex, short_digest
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.storage import as_storage_error, write_durable

Array = npt.NDArray[Any]
MOST_ROWS, MOST_WIDTH, MOST_NAME_BYTES, MOST_SPACE_BYTES = 1_000_000, 8_192, 200, 200
MOST_FILE_BYTES = 64 * 1024 * 1024
_FORMAT = 1
_NAMES = ("ends", "format", "names", "rows", "scale", "space")
_BLOCK = 4096
"""Rows that are turned into floats at once: 8-bit rows never stand in memory as floats together."""


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        name: Of the row.
        cosine: -1 to 1.
        row: Its place in the index.
    """

    name: str
    cosine: float
    row: int


@dataclass(frozen=True, eq=False)
class EmbeddingIndex:
    """Rows to compare with, and their names; make one with `EmbeddingIndex.build` or `EmbeddingIndex.open`.

    Attributes:
        rows: float32, or int8 in steps of ``scale``.  # (N, E)
        scale: What an integer counts; 1 for floats.
        names: One a row; a name may come again.
        space: Whose answers the rows are comparable with, e.g. a bundle's content digest; "" says nothing.
    """

    rows: Array
    scale: float
    names: tuple[str, ...]
    space: str = ""

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype not in (np.float32, np.int8):
            raise InputError(f"index rows {self.rows.dtype} {self.rows.shape}: expected (N, E) of float32 or int8")
        count, width = self.rows.shape
        if not (0 < count <= MOST_ROWS and 0 < width <= MOST_WIDTH):
            raise InputError(
                f"index of {count} rows of {width} numbers: expected 1 to {MOST_ROWS}, and 1 to {MOST_WIDTH}"
            )
        if len(self.names) != count:
            raise InputError(f"index of {count} rows has {len(self.names)} names; expected one a row")
        if not (np.isfinite(self.scale) and self.scale > 0) or (self.rows.dtype == np.float32 and self.scale != 1):
            raise InputError(f"index scale {self.scale!r}: expected above 0, and 1 for float rows")
        for name in self.names:
            _check_text(name, "name", MOST_NAME_BYTES)
        if self.space:
            _check_text(self.space, "space", MOST_SPACE_BYTES)
        lengths = self._lengths
        if not np.isfinite(lengths).all() or not (lengths > 0).all():
            bad = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
            raise InputError(f"index row {bad} ({self.names[bad]!r:.60}): it has no direction (zero or not finite)")

    @classmethod
    def build(cls, embeddings: Array, names: Sequence[str], *, int8: bool = False, space: str = "") -> EmbeddingIndex:
        """An index of these embeddings; their lengths do not matter and are made 1.

        Args:
            embeddings: One a name.  # (N, E)
            names: What `top` answers with.
            int8: Keep bytes in place of floats; a cosine moves by about 0.001.
            space: As the attribute.

        Raises:
            InputError: Not one name a row, an embedding without direction, or more than an index holds.
        """
        values = np.asarray(embeddings)
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise InputError(f"embeddings {values.dtype} {values.shape}: expected (N, E) of numbers")
        unit = _unit_rows(values)
        if not int8 or not unit.size or not np.isfinite(unit).all():
            return cls(unit.astype(np.float32), 1.0, tuple(names), space)
        scale = float(np.float32(np.abs(unit).max() / 127)) or 1.0
        rows = np.clip(np.rint(unit / scale), -127, 127).astype(np.int8)
        return cls(rows, scale, tuple(names), space)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(self.rows.shape[1])

    def top(self, embedding: Array, k: int = 1) -> tuple[Hit, ...]:
        """The nearest rows by cosine, the best first; of equals the one that stands first in the index.

        Args:
            embedding: A model's answer of any length: (E,), or (1, E) as a runtime gives it. 8-bit answers whose zero
                point is 0 need no scale.
            k: How many; fewer where the index holds fewer.

        Raises:
            InputError: Another width, no direction (zero, or not finite), or ``k`` below 1.
        """
        if k < 1:
            raise InputError(f"top {k}: expected at least 1")
        cosines = self.cosines(embedding)
        k = min(k, len(cosines))
        if k < len(cosines):
            limit = np.partition(cosines, len(cosines) - k)[len(cosines) - k]
            above, equal = np.flatnonzero(cosines > limit), np.flatnonzero(cosines == limit)
            chosen = np.concatenate([above, equal[: k - len(above)]])
        else:
            chosen = np.arange(len(cosines))
        order = chosen[np.lexsort((chosen, -cosines[chosen]))]
        return tuple(Hit(self.names[i], float(cosines[i]), int(i)) for i in order)

    def cosines(self, embedding: Array) -> npt.NDArray[np.float32]:
        """Cosine of the angle to every row.  # (E,) or (1, E) to (N,)

        Raises:
            InputError: As `top`.
        """
        asked = np.asarray(embedding)
        if asked.shape not in ((self.width,), (1, self.width)) or asked.dtype.kind not in "fiu":
            raise InputError(f"embedding {asked.dtype} {asked.shape}: the index holds rows of {self.width} numbers")
        values = asked.reshape(-1).astype(np.float64)
        peak = float(np.abs(values).max())
        if not (np.isfinite(peak) and peak > 0):
            raise InputError(
                f"embedding with a largest number of {peak}: it has no direction", "Check the input frame."
            )
        values = values / peak
        values = (values / np.linalg.norm(values)).astype(np.float32)
        found = np.empty(len(self), np.float32)
        for at in range(0, len(self), _BLOCK):
            block = self.rows[at : at + _BLOCK]
            found[at : at + _BLOCK] = block.astype(np.float32, copy=False) @ values
        cosines: npt.NDArray[np.float32] = np.clip(found / self._lengths, -1, 1).astype(np.float32)
        return cosines

    def to_bytes(self) -> bytes:
        """As a file; equal indexes give equal bytes.

        Raises:
            InputError: More bytes than a device would read.
        """
        encoded = [name.encode() for name in self.names]
        data = pack_arrays(
            {
                "rows": self.rows, "scale": np.array([self.scale], np.float64), "format": np.array([_FORMAT], np.int64),
                "names": np.frombuffer(b"".join(encoded), np.uint8),
                "ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
                "space": np.frombuffer(self.space.encode(), np.uint8),
            }
        )  # fmt: skip
        if len(data) > MOST_FILE_BYTES:
            raise InputError(
                f"an index file of {len(data)} bytes: at most {MOST_FILE_BYTES} are read", "Keep its rows as int8."
            )
        return data

    @property
    def digest(self) -> str:
        """SHA-256 of the file, for whoever pins it."""
        return sha256_hex(self.to_bytes())

    def write(self, path: Path) -> str:
        """Write the file so that a power cut leaves the old one or the new one.

        Returns:
            Its digest.

        Raises:
            InputError: As `to_bytes`.
            StorageError: The disk refused.
        """
        data = self.to_bytes()
        write_durable(path, data, mode=0o644)
        return sha256_hex(data)

    @classmethod
    def open(cls, path: str | Path, *, digest: str | None = None, space: str | None = None) -> EmbeddingIndex:
        """Read an index.

        Args:
            path: The file.
            digest: SHA-256 that it must have; None: any.
            space: What its ``space`` must be; None: any.

        Raises:
            BundleError: Damaged, of another digest, too large, or not an index.
            InputError: No such file, or an index of another space.
            StorageError: It cannot be read.
        """
        place = Path(path)
        try:
            with place.open("rb") as file:
                data = file.read(MOST_FILE_BYTES + 1)
        except FileNotFoundError as exc:
            raise InputError(f"{place}: no such file", "Pass the path of an index.") from exc
        except OSError as exc:
            raise as_storage_error(exc, place) from exc
        found = sha256_hex(data)
        if digest is not None and found != digest:
            raise BundleError(
                f"{place}: sha256 {short_digest(found)}, expected {short_digest(digest)}", "Get the index again."
            )
        index = cls.from_bytes(data, where=str(place))
        if space is not None and index.space != space:
            raise InputError(
                f"{place}: made for {index.space!r}, asked for {space!r}",
                "Embeddings of two models cannot be compared; make the index with the model that asks.",
            )
        return index

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> EmbeddingIndex:
        """Read what `to_bytes` wrote.

        Args:
            data: The whole file.
            where: Its name, for messages.

        Raises:
            BundleError: Not an index, damaged, of another format, or of numbers that make no index.
        """
        if len(data) > MOST_FILE_BYTES:
            raise BundleError(f"{where}: more than {MOST_FILE_BYTES} bytes; an index has fewer", "Get the index again.")
        arrays = unpack_arrays(data, where=where, max_bytes=MOST_FILE_BYTES)
        if tuple(sorted(arrays)) != _NAMES:
            raise BundleError(f"{where}: holds {', '.join(sorted(arrays))}; expected {', '.join(_NAMES)}")
        version = _number(arrays["format"], np.int64, f"{where}: format")
        if version != _FORMAT:
            raise BundleError(f"{where}: format {version:g}, this version reads {_FORMAT}")
        try:
            return cls(
                arrays["rows"],
                _number(arrays["scale"], np.float64, f"{where}: scale"),
                _split(arrays["names"], arrays["ends"], where),
                _text(arrays["space"], where),
            )
        except InputError as exc:
            raise BundleError(f"{where}: {exc.message}", "Get the index again.") from exc

    @cached_property
    def _lengths(self) -> npt.NDArray[np.float32]:
        """Length of every row in its own numbers.  # (N,)"""
        found = np.empty(len(self.rows), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for at in range(0, len(found), _BLOCK):
                found[at : at + _BLOCK] = np.linalg.norm(self.rows[at : at + _BLOCK].astype(np.float32), axis=1)
        return found


def _unit_rows(values: Array) -> npt.NDArray[np.float64]:
    """Rows of length 1, whatever their size; rows without direction stay as they are and are refused later."""
    real = values.astype(np.float64)
    peak = np.abs(real).max(1, keepdims=True, initial=0.0)
    even = real / np.where((peak > 0) & np.isfinite(peak), peak, 1.0)
    length = np.linalg.norm(even, axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = even / np.where((length > 0) & np.isfinite(length), length, 1.0)
    return found


def _check_text(text: str, what: str, most: int) -> None:
    size = len(text.encode(errors="surrogatepass"))
    if not (text and size <= most and text.isprintable()):
        raise InputError(f"index {what} {text!r:.60} of {size} bytes: expected 1 to {most} bytes of printable text")


def _number(array: Array, dtype: Any, what: str) -> float:
    if array.dtype != dtype or array.shape != (1,):
        raise BundleError(f"{what}: {array.dtype} {array.shape}, expected one {np.dtype(dtype)}")
    return float(array[0])


def _text(array: Array, where: str) -> str:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise BundleError(f"{where}: text as {array.dtype} {array.shape}; expected bytes")
    try:
        return array.tobytes().decode()
    except UnicodeDecodeError as exc:
        raise BundleError(f"{where}: text is not UTF-8 ({exc.reason} at byte {exc.start})") from exc


def _split(names: Array, ends: Array, where: str) -> tuple[str, ...]:
    """Names from their bytes and where each ends."""
    if ends.dtype != np.int64 or ends.ndim != 1 or not 0 < len(ends) <= MOST_ROWS:
        raise BundleError(f"{where}: ends of names as {ends.dtype} {ends.shape}; expected 1 to {MOST_ROWS} of int64")
    starts = np.concatenate([[0], ends[:-1]])
    if names.dtype != np.uint8 or names.ndim != 1 or int(ends[-1]) != len(names) or not (ends > starts).all():
        raise BundleError(f"{where}: ends of names do not divide its {names.size} bytes of names")
    whole = names.tobytes()
    try:
        return tuple(whole[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
    except UnicodeDecodeError as exc:
        raise BundleError(f"{where}: a name is not UTF-8 ({exc.reason})") from exc
