"""Weights that an ``.onnx`` keeps in files beside it ("external data"), as torch.onnx.export writes them by default.

The names of these files stand in the model, and a model comes from anywhere: only plain files of the model's own folder
are read, each whole and once, and of each only what a tensor's type and shape account for. ONNX Runtime itself never
gets to see such a name; it would look into the working folder.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.errors import InputError

MAX_WHOLE_BYTES = 1_900_000_000
"""Of a model with its side files: protobuf takes no message of 2 GiB."""
MOST_SIDE_FILES = 64

_HALF_BYTES = frozenset(
    value for name, value in onnx.TensorProto.DataType.items() if name.endswith(("INT4", "FLOAT4E2M1"))
)
_NO_BYTES = frozenset(
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name in ("UNDEFINED", "STRING") or "T6" in name or "NT2" in name
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_ONE_FILE = "Or write one file: torch.onnx.export(..., external_data=False), or onnx.save(onnx.load(path), 'one.onnx')."


def take_in(model: onnx.ModelProto, folder: Path | None, where: str) -> dict[str, str]:
    """Put the weights of side files into the model.

    Args:
        model: Changed in place: afterwards nothing in it names another file.
        folder: The model's own; None: every side file is refused.
        where: Path of the model, for messages.

    Returns:
        SHA-256 of every file that was read, by its name.

    Raises:
        InputError: A name that is no plain file name, a file that is missing, no plain file or a link, too much in all,
            or bytes that do not fit a tensor's type and shape. The message names the weight, the file and both numbers.
    """
    read: dict[str, bytes] = {}
    left = MAX_WHOLE_BYTES - model.ByteSize()
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        name = _clean(tensor.name) or "without a name"
        asked = {entry.key: entry.value for entry in tensor.external_data}
        place = asked.get("location", "")
        if folder is None or not _is_plain(place):
            raise InputError(
                f"{where}: weight {name} lies in another file, {_clean(place) or 'which it does not name'}; only a "
                "file in the model's own folder is read",
                _ONE_FILE,
            )
        if place not in read:
            if len(read) == MOST_SIDE_FILES:
                raise InputError(f"{where}: more than {MOST_SIDE_FILES} files of weights", _ONE_FILE)
            read[place] = _read(folder / place, name, where, left)
        needed = _bytes_of(tensor, name, where)
        offset = _number(asked.get("offset", "0"), name, where)
        given = _number(asked.get("length", str(needed)), name, where)
        there = len(read[place]) - offset
        if given != needed or there < needed:
            raise InputError(
                f"{where}: weight {name} needs {needed} bytes; it names {given} from byte {offset} of "
                f"{_clean(place)}, which has {len(read[place])}",
                "The two files do not belong together: export the model again.",
            )
        left -= needed
        if left < 0:
            raise InputError(f"{where}: more than {MAX_WHOLE_BYTES} bytes with its side files", "Export a smaller one.")
        tensor.raw_data = read[place][offset : offset + needed]
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    if _names_files(model):
        raise InputError(f"{where}: a function or a sparse weight lies in another file", _ONE_FILE)
    return {name: sha256_hex(data) for name, data in sorted(read.items())}


def whole_model(path: Path) -> bytes:
    """An ``.onnx`` file with its side files taken in; the file as it is where it has none, or is no such file.

    Raises:
        InputError: As `take_in`.
    """
    data = path.read_bytes()
    try:
        model: onnx.ModelProto = onnx.load_model_from_string(data)
    except Exception:  # protobuf's DecodeError on hostile bytes; whoever opens the file says what it is not
        return data
    return bytes(model.SerializeToString()) if take_in(model, path.parent, str(path)) else data


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every plain constant of a graph and of the graphs inside it."""
    yield from graph.initializer
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)


def _names_files(model: onnx.ModelProto) -> bool:
    """Whether a part that is not taken in - sparse weights, functions, training - names a file."""
    parts = [part for sparse in model.graph.sparse_initializer for part in (sparse.values, sparse.indices)]
    for function in model.functions:
        parts += _in_nodes(function.node)
    for training in model.training_info:
        parts += (*_tensors(training.initialization), *_tensors(training.algorithm))
    return any(part.data_location == onnx.TensorProto.EXTERNAL for part in parts)


def _is_plain(place: str) -> bool:
    return place not in ("", ".", "..") and not set(place) & set("/\\:\0") and len(place) < 256


def _read(path: Path, name: str, where: str, most: int) -> bytes:
    """A plain file, whole. No link is followed and no pipe is waited for."""
    shown = _clean(path.name)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        number = os.open(path, flags)
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{where}: weight {name} lies in {shown}, which is no plain file", _ONE_FILE)
            if found.st_size > most:
                raise InputError(
                    f"{where}: {shown} has {found.st_size} bytes, at most {most} are read", "Export a smaller one."
                )
            with os.fdopen(number, "rb", closefd=False) as file:
                return file.read(found.st_size)
        finally:
            os.close(number)
    except FileNotFoundError as exc:
        raise InputError(
            f"{where}: weight {name} lies in {shown}, which is not beside it", f"Put {shown} there. {_ONE_FILE}"
        ) from exc
    except OSError as exc:
        raise InputError(f"{where}: {shown} with weight {name} cannot be read ({exc.strerror})", _ONE_FILE) from exc


def _bytes_of(tensor: onnx.TensorProto, name: str, where: str) -> int:
    kind, count = int(tensor.data_type), int(math.prod(tensor.dims))
    if kind in _NO_BYTES or kind not in onnx.TensorProto.DataType.values() or min(tensor.dims, default=0) < 0:
        raise InputError(
            f"{where}: weight {name} is of type {kind} and shape {tuple(tensor.dims)}, which no file holds"
        )
    if kind in _HALF_BYTES:
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _number(text: str, name: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise InputError(f"{where}: weight {name} names a place {_clean(text)}, a whole number of bytes is expected")
    return int(text)


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)[:120]
