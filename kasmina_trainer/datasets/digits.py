"""Real handwritten digits (UCI Optical Recognition, as shipped inside scikit-learn) at 16x16, in disjoint parts.

1,797 grey 8x8 images with values 0 to 16 by 13 writers, the test part of UCI's set (Alpaydin and Kaynak 1998). They are
scaled to [0, 1] and enlarged to 16x16 bilinearly. Every part of a split is told from every other by the digest of the
8x8 source image. Who wrote an image is not in the file, so parts share no image but may share writers.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Samples = tuple[Images, Labels]  # inputs (N, C, H, W) and labels (N,)

LABELS = tuple(str(digit) for digit in range(10))
SIDE = 16
INPUT_SHAPE = (1, SIDE, SIDE)  # (C, H, W)


@dataclass(frozen=True)
class Digits:
    """Some digits.

    Attributes:
        x: Images in [0, 1], float32.  # (N, 1, 16, 16)
        y: Labels 0 to 9, int64.  # (N,)
        sources: SHA-256 of each 8x8 source image; two rows with one source show the same handwriting.
    """

    x: Images
    y: Labels
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def samples(self) -> Samples:
        """Inputs and labels."""
        return self.x, self.y

    def nhwc(self) -> Images:
        """The images as a device sees them.  # (N, 16, 16, 1)"""
        return to_nhwc(self.x)

    def take(self, rows: Sequence[int] | npt.NDArray[np.intp] | slice) -> Digits:
        """Some of the rows, in the order given."""
        index = np.arange(len(self))[rows]
        return Digits(self.x[index], self.y[index], tuple(self.sources[int(i)] for i in index))


@dataclass(frozen=True)
class DigitSplits:
    """Disjoint, stratified parts of the 1,797 digits.

    Attributes:
        host: Trains the host, and is the clean share of every graft's training mix.
        probes: Reference probes of the health gate and the clean hold-out of acceptance; never trained on.
        camera: Scenes the cameras show; captured frames come from here.
        check: Check frames: known scenes that pass through the device's own camera.
        test: Only for the figures that are reported.
    """

    host: Digits
    probes: Digits
    camera: Digits
    check: Digits
    test: Digits

    def parts(self) -> dict[str, Digits]:
        """Part by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


SIZES: Mapping[str, int] = {"host": 800, "probes": 220, "camera": 350, "check": 90}


def to_nhwc(x: Images) -> Images:
    """(N, C, H, W) to (N, H, W, C), contiguous."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def to_nchw(x: Images) -> Images:
    """(N, H, W, C) to (N, C, H, W), contiguous."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


@lru_cache(maxsize=1)
def load_digits() -> Digits:
    """All digits, each source image once; the arrays are shared and read-only.

    Raises:
        InputError: scikit-learn, which carries the images, is not installed.
    """
    table = _read_table()
    raw = table[:, :64].astype(np.uint8)
    digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in raw]
    first = sorted({digest: i for i, digest in reversed(list(enumerate(digests)))}.values())
    x = enlarge(raw[first].reshape(-1, 1, 8, 8).astype(np.float32) / 16.0)
    y = table[first, 64].astype(np.int64)
    x.setflags(write=False)
    y.setflags(write=False)
    return Digits(x, y, tuple(digests[i] for i in first))


def split_digits(seed: int = 0, sizes: Mapping[str, int] | None = None) -> DigitSplits:
    """Cut the digits into disjoint parts of given sizes; the test part gets the rest.

    Args:
        seed: Chooses which digit goes where.
        sizes: Rows of host, probes, camera and check; `SIZES` where left out.

    Raises:
        InputError: The sizes leave nothing for the test, or two parts would share an image.

    >>> parts = split_digits(0)
    >>> len(parts.host), len(parts.probes)
    (800, 220)
    """
    digits = load_digits()
    wanted = {**SIZES, **(sizes or {})}
    total = sum(wanted.values())
    if set(wanted) != set(SIZES) or min(wanted.values()) < 1 or total >= len(digits):
        raise InputError(
            f"digit parts {dict(wanted)}: expected positive sizes of {', '.join(SIZES)} that sum to less than "
            f"{len(digits)}, got {total}"
        )
    order = stratified_order(digits.y, seed)
    parts: dict[str, Digits] = {}
    start = 0
    for name, size in wanted.items():
        parts[name] = digits.take(order[start : start + size])
        start += size
    parts["test"] = digits.take(order[start:])
    require_disjoint({name: part.sources for name, part in parts.items()})
    return DigitSplits(**parts)


def require_disjoint(parts: Mapping[str, Sequence[str]]) -> None:
    """Refuse parts that share an image.

    Args:
        parts: Image digests by the name of the part.

    Raises:
        InputError: Names the two parts and how many images they share.
    """
    seen: dict[str, str] = {}
    for name, sources in parts.items():
        shared = [seen[s] for s in set(sources) if s in seen]
        if shared:
            raise InputError(f"{name} and {shared[0]} share {len(shared)} images: a figure from them would be a leak")
        seen.update(dict.fromkeys(sources, name))


def image_digests(x: npt.NDArray[np.generic]) -> tuple[str, ...]:
    """SHA-256 of each row's bytes: finds a repeated array, not a corrupted twin of it."""
    return tuple(hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in x)


def enlarge(x: Images) -> Images:
    """Twice the side, bilinear with half-pixel centres.  # (N, C, H, W) to (N, C, 2H, 2W)"""
    for axis in (2, 3):
        side = x.shape[axis]
        at = (np.arange(2 * side) + 0.5) / 2 - 0.5
        low = np.clip(np.floor(at), 0, side - 1).astype(np.intp)
        high = np.clip(low + 1, 0, side - 1)
        weight = np.clip(at - low, 0, 1).astype(np.float32)
        shape = [1] * x.ndim
        shape[axis] = 2 * side
        share = weight.reshape(shape)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return np.ascontiguousarray(x, dtype=np.float32)


def stratified_order(y: Labels, seed: int) -> npt.NDArray[np.intp]:
    """An order in which every contiguous slice holds the classes in their overall shares."""
    rng = np.random.default_rng(seed)
    rank = np.empty(len(y))
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        rank[rows] = (np.arange(len(rows)) + rng.uniform()) / len(rows)
    return np.argsort(rank, kind="stable")


def _read_table() -> npt.NDArray[np.float64]:
    """The 1,797 x 65 table, read from scikit-learn's folder without importing it (its import costs a second)."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the digits come with scikit-learn, which is not installed", "pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt") as stream:
            return np.loadtxt(stream, delimiter=",")
    from sklearn.datasets import load_digits as load  # another layout of scikit-learn's folder

    bunch = load()
    return np.column_stack([bunch.data, bunch.target])
