"""Grey pictures in rows under their names, as an SVG that holds them as PNG; single ones may have colours."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.pages.document import Markup, element, joined

Pictures = npt.NDArray[Any]  # (N, H, W) in [0, 1]

_STYLE = "text{font:12px sans-serif;fill:#222}rect{fill:#fff}image{image-rendering:pixelated}"
_MARGIN, _NAME_HEIGHT = 8, 18


def png(picture: Pictures) -> bytes:
    """One picture as a PNG of 8 bits a colour.

    Args:
        picture: Values in [0, 1]; others are held at the ends.  # (H, W), or (H, W, 3) in colour

    Raises:
        InputError: It has other axes than height, width and three colours.
    """
    if not picture.size or (picture.ndim != 2 and picture.shape[2:] != (3,)):
        raise InputError(f"picture of shape {picture.shape}: expected (height, width), or (height, width, 3)")
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    lines = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def png_link(picture: Pictures) -> str:
    """`png` as a link that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"


def contact_sheet(cells: Sequence[tuple[str, Pictures]], *, title: str, across: int = 4, zoom: int = 2) -> str:
    """An SVG file with some pictures under each name.

    Args:
        cells: Name and pictures of equal shape.  # (N, H, W) in [0, 1]
        title: Of the whole; read out by screen readers.
        across: Cells in a line.
        zoom: Side of a pixel, in the SVG's units.

    Raises:
        InputError: No cells, or pictures of another shape or number in one of them.
    """
    if not cells or len({pictures.shape for _, pictures in cells}) != 1 or cells[0][1].ndim != 3:
        shapes = sorted({pictures.shape for _, pictures in cells})
        raise InputError(f"cells of shapes {shapes}: expected one shape (N, H, W) for all")
    count, height, width = cells[0][1].shape
    cell_width, cell_height = count * width * zoom + _MARGIN, height * zoom + _NAME_HEIGHT + _MARGIN
    across = min(across, len(cells))
    drawn = []
    for at, (name, pictures) in enumerate(cells):
        left, top = _MARGIN + at % across * cell_width, _MARGIN + at // across * cell_height
        strip = np.concatenate(list(pictures), 1)
        link = png_link(strip)
        drawn.append(element("text", name, x=left, y=top + 12))
        drawn.append(
            element("image", href=link, x=left, y=top + _NAME_HEIGHT, width=count * width * zoom, height=height * zoom)
        )
    whole = _MARGIN + across * cell_width, _MARGIN + -(-len(cells) // across) * cell_height
    inside = element("title", title) + element("style", Markup(_STYLE))
    inside += element("rect", width=whole[0], height=whole[1]) + joined(drawn)
    return element(
        "svg", inside, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {whole[0]} {whole[1]}", width=whole[0],
        height=whole[1], role="img",
    ).html + "\n"  # fmt: skip


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
