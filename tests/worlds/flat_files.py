"""TFLite files as large exports lay them out."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def constants_behind(data: bytes) -> bytes:
    """The same model with its constants behind the FlatBuffer, where files beyond some hundred kilobytes have them."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    bodies = {i: np.asarray(b.data, np.uint8).tobytes() for i, b in enumerate(model.buffers) if b.data is not None}
    for i, body in bodies.items():
        model.buffers[i].data, model.buffers[i].offset, model.buffers[i].size = None, 2, len(body)
    end = len(_packed(model))
    for i, body in bodies.items():
        end += -end % 16
        model.buffers[i].offset = end
        end += len(body)
    file = bytearray(_packed(model))
    for i, body in bodies.items():
        file += bytes(model.buffers[i].offset - len(file)) + body
    return bytes(file)


def _packed(model: object) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")  # type: ignore[attr-defined]
    return bytes(builder.Output())
