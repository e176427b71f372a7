"""The IDX format of the MNIST family, and image sets in it with their official split and a validation part.

IDX (LeCun, Cortes, Burges): two zero bytes, a type code (8: unsigned byte), the number of axes, each axis as 32-bit
big-endian, then the values in C order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Labels, Samples, stratified_order

_UNSIGNED_BYTE = 0x08
_MOST_AXES = 4
MAX_VALUES = 256 * 1024 * 1024
FULL_SCALE = 255.0


@dataclass(frozen=True)
class Splits:
    """A data set in its official parts, a validation part cut from the training one.

    Attributes:
        train: Inputs (N, C, ...) float32 and labels (N,) int64.
        validation: Cut from the official training part; never in ``train``.
        test: The official test part, whole.
        labels: Class names.
    """

    train: Samples
    validation: Samples
    test: Samples
    labels: tuple[str, ...]


def read_idx(data: bytes, *, where: str) -> npt.NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes.

    Args:
        data: The whole file.
        where: Its name, for messages.

    Returns:
        A read-only view of ``data``.

    Raises:
        InputError: Another magic number or type, no axes or more than four, or a length other than the header claims.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), where="x").tolist()
    [7, 8, 9]
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE or not 1 <= data[3] <= _MOST_AXES:
        raise InputError(f"{where}: starts with {data[:4].hex() or 'nothing'}, expected 000008 and 1 to {_MOST_AXES}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise InputError(f"{where}: {len(data)} bytes, its header alone has {start}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    values = math.prod(shape)
    if values > MAX_VALUES or values != len(data) - start:
        raise InputError(f"{where}: shape {shape} needs {values} values, {len(data) - start} follow")
    return np.frombuffer(data, np.uint8, values, start).reshape(shape)


def image_splits(
    files: Mapping[str, bytes], *, labels: tuple[str, ...], seed: int, validation: int, train_rows: int | None = None
) -> Splits:
    """Grey images of the four files of an MNIST-like set.

    Args:
        files: ``train-images``, ``train-labels``, ``test-images``, ``test-labels``: IDX bytes.
        labels: Class names; labels in the files are their indices.
        seed: Chooses which training images become the validation part.
        validation: How many, stratified by class.
        train_rows: Keep only so many of the rest for training, stratified; None keeps all.

    Raises:
        InputError: Files that do not fit together, or more rows asked for than there are.
    """
    x, y = _pair(files, "train", labels)
    order = stratified_order(y, seed)
    rows = len(y) - validation if train_rows is None else train_rows
    if validation < 1 or rows < 1 or validation + rows > len(y):
        raise InputError(f"{validation} validation and {rows} training rows: there are {len(y)}")
    kept, chosen = order[validation : validation + rows], order[:validation]
    return Splits(
        train=(scaled(x[kept]), y[kept]),
        validation=(scaled(x[chosen]), y[chosen]),
        test=(lambda found: (scaled(found[0]), found[1]))(_pair(files, "test", labels)),
        labels=labels,
    )


def scaled(pixels: npt.NDArray[np.uint8]) -> Images:
    """Grey bytes as channels-first float32 in [0, 1].  # (N, H, W) to (N, 1, H, W)"""
    images: Images = np.divide(pixels[:, None], FULL_SCALE, dtype=np.float32)
    return images


def _pair(files: Mapping[str, bytes], part: str, labels: tuple[str, ...]) -> tuple[npt.NDArray[np.uint8], Labels]:
    x = read_idx(files[f"{part}-images"], where=f"{part}-images")
    y = read_idx(files[f"{part}-labels"], where=f"{part}-labels").astype(np.int64)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise InputError(f"{part}: images {x.shape} and labels {y.shape}, expected (N, H, W) and (N,)")
    if y.max() >= len(labels):
        raise InputError(f"{part}: label {y.max()}, expected 0 to {len(labels) - 1}")
    return x, y
