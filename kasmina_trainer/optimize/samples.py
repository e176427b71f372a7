"""Frames and labels that both sides of a comparison, or all recipes of a search, are asked."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from kasmina_edge.bundle import Bundle
from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import image_digests

Array = npt.NDArray[Any]

_INPUT_NAMES = ("x", "inputs", "input", "frames")
_NUMBERED = re.compile(r"input[0-9]{1,6}")
_LABEL_NAMES = ("y", "labels", "label")
MOST_BYTES = 4 * 2**30
"""Of one array: what its header may declare before it is read."""


@dataclass(frozen=True)
class Frames:
    """What a network is asked.

    Attributes:
        inputs: One array an input of the network.  # (N, ...)
        labels: True classes; None where unknown.  # (N,)
        source: Where they come from, for people.
    """

    inputs: tuple[Array, ...]
    labels: Array | None
    source: str

    def __len__(self) -> int:
        return len(self.inputs[0])


def read_frames(path: Path) -> Frames:
    """An ``.npz``: inputs as ``x`` (or ``input0``, ``input1``, ... for several), labels as ``y`` where they are known.

    Raises:
        InputError: Missing, not plain arrays, no inputs, inputs that are no numbers or no rows, other numbers of labels
            than frames, or values that are not finite.
    """
    try:
        arrays = _arrays(path)
    except InputError:
        raise
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file", "Write one with numpy.savez(path, x=frames, y=labels).") from exc
    except Exception as exc:  # archives break in the words of zipfile, zlib, lzma, ast and tokenize
        raise InputError(f"{path}: not a file of plain arrays ({str(exc).partition(chr(10))[0]})") from exc
    several = sorted((name for name in arrays if _NUMBERED.fullmatch(name)), key=lambda name: (int(name[5:]), name))
    single = [name for name in _INPUT_NAMES if name in arrays][:1]
    names = several or single
    if not names:
        raise InputError(
            f"{path}: no array is called x or input0, it holds {', '.join(arrays) or 'nothing'}",
            "Name the frames x and the labels y.",
        )
    for name in names:
        _require_rows_of_numbers(arrays[name], f"{path}: array {name}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        inputs = tuple(arrays[name].astype(np.float32) for name in names)
    labels = next((arrays[name] for name in _LABEL_NAMES if name in arrays), None)
    return checked(Frames(inputs, labels, str(path)))


def _arrays(path: Path) -> dict[str, Array]:
    """Every array of an ``.npz``.

    Raises:
        InputError: One declares more bytes than `MOST_BYTES`, or than the file holds for it.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                _require_held(stream, member.file_size, f"{path}: array {member.filename.removesuffix('.npy')}")
    with np.load(path, allow_pickle=False) as file:
        return {name: np.asarray(file[name]) for name in file.files}


def _require_held(stream: IO[bytes], size: int, where: str) -> None:
    """Refuse an array whose header declares more than is there: it would be allocated before it is read."""
    if stream.read(len(npy_format.MAGIC_PREFIX)) != npy_format.MAGIC_PREFIX:
        return
    stream.seek(0)
    version = npy_format.read_magic(stream)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    declared, held = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if dtype.hasobject:
        return  # numpy refuses it by itself
    if min(shape, default=0) < 0 or declared > min(MOST_BYTES, held):
        raise InputError(
            f"{where}: its header declares {declared} bytes for shape {shape}, the file holds {held} for it, at most "
            f"{MOST_BYTES} are read",
            "The file is damaged; write it again with numpy.savez(path, x=frames, y=labels).",
        )


def _require_rows_of_numbers(array: Array, where: str) -> None:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} is of type {array.dtype}, expected real numbers", "Save the frames as float32.")
    if not array.ndim:
        raise InputError(f"{where} is one number, expected a row a frame: (N, ...)", "Stack the frames first.")


def bundle_frames(bundle: Bundle, where: str) -> Frames:
    """A bundle's reference probes; where it has none, the inputs of its self-test. Pre-processed as the runtime does.

    Raises:
        InputError: It has neither in a form that can be fed to other models.
    """
    pre = bundle.manifest.preprocessing
    if bundle.manifest.probes is not None and bundle.manifest.probes.file.path in bundle.files:
        arrays = bundle.arrays(bundle.manifest.probes.file)
        x = ((arrays["inputs"] - np.float32(pre.mean)) / np.float32(pre.std)).astype(np.float32)
        return checked(Frames((x,), arrays["labels"], f"reference probes of {where}"))
    for model in bundle.manifest.models:
        if model.selftest.file.path not in bundle.files or model.stateful:
            continue
        arrays = bundle.arrays(model.selftest.file)
        found = []
        for tensor in model.app_inputs:
            value = arrays[f"input_{tensor.name}"].astype(np.float32)
            if tensor.scale is not None and tensor.zero_point is not None:
                value = (value - tensor.zero_point) * np.float32(tensor.scale)
            found.append(value.astype(np.float32))
        return checked(Frames(tuple(found), None, f"self-test of {where}"))
    raise InputError(f"{where}: neither reference probes nor a self-test to ask", "Pass --data FILE.npz.")


def checked(frames: Frames) -> Frames:
    """The same frames.

    Raises:
        InputError: None, or of different numbers, or not finite; labels of another number or not whole.
    """
    counts = sorted({len(x) for x in frames.inputs})
    if len(counts) != 1 or counts[0] < 1:
        raise InputError(f"{frames.source}: inputs of {counts} frames; at least one, and as many for every input")
    for number, x in enumerate(frames.inputs):
        bad = int((~np.isfinite(x)).sum())
        if bad:
            raise InputError(f"{frames.source}: input {number} holds {bad} values that are not finite numbers")
    y = frames.labels
    if y is not None and (y.shape != (counts[0],) or y.dtype.kind not in "iu"):
        raise InputError(f"{frames.source}: labels {y.shape} {y.dtype}, expected ({counts[0]},) whole numbers")
    return frames


def thinned(x: Array, most: int) -> Array:
    """At most so many rows, evenly from the whole array."""
    if len(x) <= most:
        return x
    return x[np.linspace(0, len(x) - 1, most).round().astype(np.intp)]


def halves(count: int, share: float, seed: int) -> tuple[Array, Array]:
    """Row numbers of two parts that have nothing in common, each in rising order.

    Args:
        count: Rows there are.
        share: Of the first part, 0 to 1.
        seed: Chooses them.
    """
    order = np.random.default_rng(seed).permutation(count)
    cut = min(count, max(0, round(share * count)))
    return np.sort(order[:cut]), np.sort(order[cut:])


def frame_groups(x: Array) -> npt.NDArray[np.int64]:
    """A number for each row, counted from 0 in order of first sight; rows of the same bytes share one.  # (N,)

    >>> frame_groups(np.array([[1, 2], [3, 4], [1, 2]])).tolist()
    [0, 1, 0]
    """
    known: dict[str, int] = {}
    return np.array([known.setdefault(digest, len(known)) for digest in image_digests(x)], np.int64)


def digest_parts(arrays: Sequence[Array | None]) -> list[bytes]:
    """What identifies arrays: type, shape and bytes of each."""
    return [
        b"none" if a is None else f"{a.dtype.str}{a.shape}".encode() + np.ascontiguousarray(a).tobytes() for a in arrays
    ]
