"""Named arrays as deterministic bytes: a stored zip of ``.npy`` members that ``numpy.load`` also reads.

Self-test vectors, reference probes and captured frames travel in this form. No pickle, bounded size, sorted names,
fixed dates: the same arrays give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kasmina_edge.errors import BundleError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = Any  # an agent that waits does without numpy, which takes 15 MB
MAX_ARRAYS_BYTES = 64 * 1024 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf]\d{1,2})', 'fortran_order': False, 'shape': \(((?:\d{1,12}, )*(?:\d{1,12},?)?)\), \} *\n"
)


def pack_members(members: Mapping[str, bytes]) -> bytes:
    """A stored zip with sorted names and fixed dates: same members, same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=_EPOCH)
            info.external_attr = 0o600 << 16
            info.create_system = 3
            archive.writestr(info, members[name])
    return out.getvalue()


def unpack_members(data: bytes, *, where: str, max_bytes: int) -> dict[str, bytes]:
    """Read a zip that `pack_members` made; every other zip is refused.

    Args:
        data: The container.
        where: Path, for messages.
        max_bytes: Most bytes the members may hold together.

    Raises:
        BundleError: Truncated, tampered, compressed, oversized, duplicate or unsafe names, or trailing bytes.
    """
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            total = sum(info.file_size for info in infos)
            if total > max_bytes:
                raise BundleError(f"{where}: holds {total} bytes, at most {max_bytes} are read")
            for info in infos:
                name = info.filename
                if name in members:
                    raise BundleError(f"{where}: {name} is there twice")
                if not _safe(name):
                    raise BundleError(f"{where}: unsafe member name {name!r}")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise BundleError(f"{where}: {name} is compressed; members are stored")
                members[name] = archive.read(info)
    except BundleError:
        raise
    except Exception as exc:  # zipfile on hostile bytes: BadZipFile, struct.error, NotImplementedError, and more
        raise BundleError(f"{where}: not a whole container ({exc})") from exc
    if pack_members(members) != data:
        raise BundleError(f"{where}: truncated, damaged, or not written by Kasmina (not in canonical form)")
    return members


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Arrays by name as deterministic bytes.

    >>> import numpy as np
    >>> unpack_arrays(pack_arrays({"x": np.arange(3)}), where="x")["x"].tolist()
    [0, 1, 2]
    """
    import numpy as np

    members: dict[str, bytes] = {}
    for name, array in arrays.items():
        out = io.BytesIO()
        np.lib.format.write_array(out, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
        members[f"{name}.npy"] = out.getvalue()
    return pack_members(members)


def unpack_arrays(data: bytes, *, where: str, max_bytes: int = MAX_ARRAYS_BYTES) -> dict[str, Array]:
    """The arrays of `pack_arrays`.

    Raises:
        BundleError: Not such a container, or a member is not a plain array.
    """
    arrays: dict[str, Array] = {}
    for name, member in unpack_members(data, where=where, max_bytes=max_bytes).items():
        if not name.endswith(".npy"):
            raise BundleError(f"{where}: {name} is not an .npy member")
        try:
            arrays[name[:-4]] = _read_array(member)
        except (ValueError, TypeError) as exc:
            raise BundleError(f"{where}: {name} is not a plain array ({exc})") from exc
    return arrays


def _read_array(member: bytes) -> Array:
    """Parse one ``.npy``; the header may not claim more than the bytes that follow it.

    Only the spelling that `pack_arrays` writes is read: numpy's own reader evaluates the header as Python and lets
    tokenizer errors out of hostile ones.
    """
    import numpy as np

    if member[:8] != b"\x93NUMPY\x01\x00" or len(member) < 10:
        raise ValueError("not .npy version 1.0")
    start = 10 + int.from_bytes(member[8:10], "little")
    header = _NPY_HEADER.fullmatch(member[10:start])
    if header is None:
        raise ValueError("its header is not that of a plain array in C order")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[2].decode().split(",") if size.strip())
    body = member[start:]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"header claims shape {shape}, {len(body)} bytes follow")
    return np.frombuffer(body, dtype=dtype).reshape(shape)


def _safe(name: str) -> bool:
    parts = name.split("/")
    return (
        bool(name)
        and len(name) < 200
        and name.isascii()
        and name.isprintable()
        and "\\" not in name
        and all(p not in ("", ".", "..") and not p.startswith("-") for p in parts)
    )
