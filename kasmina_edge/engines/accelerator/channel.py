"""What supervisor and worker share: tensors in anonymous memory, and small messages on a private socket pair.

Both are inherited descriptors without a name in any file system; nobody else can open them. Messages keep their
boundaries (``SOCK_SEQPACKET``), have a fixed head and at most `MAX_MESSAGE` bytes, and carry the number of the call
they belong to. Nothing is pickled: tensors have the manifest's shapes and dtypes, what a worker shall load is JSON and
bytes.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelFile, ModelTensor
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import EngineError

Array = npt.NDArray[Any]
HEAD = struct.Struct("<4sQ")
RUN, DONE, FAILED, READY = b"KRUN", b"KANS", b"KBAD", b"KRDY"
MAX_TEXT = 400
MAX_MESSAGE = HEAD.size + MAX_TEXT
_LENGTH = struct.Struct("<Q")
_MAX_SPEC = 16 * 2**20
_LINE = 64


def as_stateless(model: ModelFile) -> ModelFile:
    """The same file with states and constants as ordinary inputs and outputs, for an engine that shall keep nothing.

    The supervisor holds the state instead, so that the twin goes on from the accelerator's last good answer.
    """
    inputs = tuple(t.model_copy(update={"constant": None}) for t in model.inputs)
    return model.model_copy(update={"inputs": inputs, "states": ()})


def memory(name: str, size_bytes: int) -> int:
    """Anonymous memory of a fixed size: ``memfd_create(2)``, sealed so that nobody can shrink it under a reader."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


class TensorMemory:
    """Views of the shared memory: one array for each input and output, in the manifest's order.

    Args:
        fd: Memory of at least `size_bytes`; the descriptor stays the caller's.
        model: Names shapes and dtypes.
    """

    def __init__(self, fd: int, model: ModelFile) -> None:
        map_ = mmap.mmap(fd, self.size_bytes(model))  # lives as long as its views do
        offset = 0
        views: list[Array] = []
        for tensor in (*model.inputs, *model.outputs):
            dtype = np.dtype(tensor.dtype)
            count = int(np.prod(tensor.shape))
            views.append(np.frombuffer(map_, dtype, count, offset).reshape(tensor.shape))
            offset += _room(tensor)
        self.inputs, self.outputs = views[: len(model.inputs)], views[len(model.inputs) :]

    @staticmethod
    def size_bytes(model: ModelFile) -> int:
        """Bytes that the tensors need, each beginning on a cache line."""
        return sum(_room(tensor) for tensor in (*model.inputs, *model.outputs))


def _room(tensor: ModelTensor) -> int:
    size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
    return max(-(-size // _LINE), 1) * _LINE


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker loads.

    Attributes:
        engine: The engine's class as ``module:name``; it has to be importable there.
        model: The manifest's entry, as `as_stateless` makes it.
        data: The file's bytes.
        profile: The hardware target.
        stateful: Whether the model has state, which the supervisor holds.
    """

    engine: str
    model: ModelFile
    data: bytes
    profile: HardwareProfile
    stateful: bool = False

    def to_memory(self) -> int:
        """A descriptor of anonymous memory that `read` understands."""
        head = json.dumps(
            {
                "engine": self.engine,
                "model": self.model.model_dump(mode="json"),
                "profile": self.profile.model_dump(mode="json"),
            }
        ).encode()
        parts: Sequence[bytes] = (_LENGTH.pack(len(head)), head, self.data)
        fd = memory("kasmina-spec", sum(map(len, parts)))
        try:
            with open(os.dup(fd), "wb") as file:
                file.writelines(parts)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @classmethod
    def read(cls, fd: int) -> WorkerSpec:
        """What `to_memory` wrote; closes the descriptor.

        Raises:
            EngineError: Something else is in there.
        """
        with open(fd, "rb") as file:
            file.seek(0)
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MAX_SPEC:
                raise EngineError(f"a worker's order has a head of {length} bytes, at most {_MAX_SPEC} are read")
            head = json.loads(file.read(length))
            data = file.read()
        model = ModelFile.parse(head["model"], where="worker")
        profile = HardwareProfile.parse(head["profile"], where="worker")
        return cls(str(head["engine"]), model, data, profile)


def message(kind: bytes, call: int, text: str = "") -> bytes:
    """A message; text is cut to `MAX_TEXT` bytes."""
    return HEAD.pack(kind, call) + text.encode()[:MAX_TEXT]
