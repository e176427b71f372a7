"""The zip of a ``.pt2``: which members are read, and how weights become tensors without any pickle.

``torch.export.load`` is not called, because a file can make it run code in at least these ways (torch 2.13): weights,
constants and example inputs that are pickled; symbolic expressions that go through ``sympify``; guards that are
compiled as source; operator names that are looked up anywhere below ``torch``; and node names that are pasted into
generated code. Layout: torch/export/pt2_archive/constants.py; schema: torch/_export/serde/schema.py.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from kasmina_edge.errors import InputError

MAX_JSON_BYTES = 256 * 1024**2
SCALAR_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_AGAIN = "Save it again: torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2'), torch 2.9+."


class Archive:
    """Members of one ``.pt2``.

    Args:
        data: The file.
        where: Path, for messages.

    Raises:
        InputError: Not such an archive, several models, or one that needs a pickle.
    """

    def __init__(self, data: bytes, *, where: str) -> None:
        self.where = where
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                infos = archive.infolist()
                if sum(i.file_size for i in infos) > 2 * len(data) + 1_000_000:
                    raise InputError(f"{where}: unpacks to far more than its {len(data)} bytes")
                members = {i.filename.partition("/")[2]: archive.read(i) for i in infos}
        except InputError:
            raise
        except Exception as exc:  # zipfile on hostile bytes: BadZipFile, struct.error, zlib.error, and more
            raise InputError(f"{where}: not a whole .pt2 ({exc})", _AGAIN) from exc
        if members.get("archive_format") != b"pt2":
            raise InputError(
                f"{where}: a zip without the mark of torch.export; TorchScript files and checkpoints are pickles",
                _AGAIN,
            )
        models = [n for n in members if n.startswith("models/") and n.endswith(".json")]
        if len(models) != 1 or any(n.startswith("data/aotinductor/") for n in members):
            raise InputError(f"{where}: holds {len(models)} exported programs, or compiled ones; one is read", _AGAIN)
        self._members = members
        name = models[0].removeprefix("models/").removesuffix(".json")
        self.program: dict[str, Any] = self._json(models[0])
        self.weights = self._tensors("data/weights/", f"{name}_weights_config.json")
        self.constants = self._tensors("data/constants/", f"{name}_constants_config.json")

    def _json(self, member: str) -> dict[str, Any]:
        body = self._members.get(member)
        if body is None:
            raise InputError(f"{self.where}: {member} is missing; an older torch keeps a pickle in its place", _AGAIN)
        if len(body) > MAX_JSON_BYTES:
            raise InputError(f"{self.where}: {member} has {len(body)} bytes, at most {MAX_JSON_BYTES} are read")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{self.where}: {member} is not JSON ({exc})") from exc
        if not isinstance(value, dict):
            raise InputError(f"{self.where}: {member} is not an object")
        return value

    def _tensors(self, folder: str, config: str) -> dict[str, torch.Tensor]:
        found = {}
        for name, entry in self._json(folder + config).get("config", {}).items():
            path, meta = str(entry.get("path_name")), entry.get("tensor_meta")
            if entry.get("use_pickle") or meta is None or path.startswith(("custom_obj_", "opaque_obj_")):
                raise InputError(
                    f"{self.where}: {name} is stored as a pickle ({folder}{path}), which can run any code", _AGAIN
                )
            found[str(name)] = self._tensor(name, self._members.get(folder + path), meta)
        return found

    def _tensor(self, name: str, body: bytes | None, meta: Mapping[str, Any]) -> torch.Tensor:
        try:
            dtype = SCALAR_TYPES[int(meta["dtype"])]
            size = [int(s["as_int"]) for s in meta["sizes"]]
            stride = [int(s["as_int"]) for s in meta["strides"]]
            offset = int(meta["storage_offset"]["as_int"])
            numbers = torch.frombuffer(bytearray(body or b""), dtype=dtype) if body else torch.empty(0, dtype=dtype)
            if min([offset, *stride, *size], default=0) < 0:
                raise ValueError("negative sizes")
            return torch.as_strided(numbers, size, stride, offset).clone()
        except (KeyError, TypeError, ValueError, RuntimeError) as exc:
            raise InputError(f"{self.where}: weight {name} cannot be read ({exc})", _AGAIN) from exc
