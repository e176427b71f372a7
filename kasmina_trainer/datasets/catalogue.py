"""Every data set that can be had by name: what it holds, where it comes from, and whether it is here already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import ecg, fashion, mnist
from kasmina_trainer.datasets.fetching import Package, cache_folder, is_fetched
from kasmina_trainer.datasets.idx import Splits


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: As in ``kasmina-trainer data``; also its folder in the cache.
        title: What it is, in a line.
        samples: How many, in words.
        shape: Of one input.  # (C, H, W)
        labels: Class names.
        licence: Under which it is published, in words.
        source: Who made it.
        package: Where it comes from; None: it came with an installed library.
        warning: What a figure on it does not mean; "" when there is nothing to warn of.
        load: Its parts by seed; None where it has a reader of its own (the digits).
    """

    name: str
    title: str
    samples: str
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    licence: str
    source: str
    package: Package | None
    load: Callable[[int], Splits] | None
    warning: str = ""

    @property
    def folder(self) -> Path:
        """Its place in the cache."""
        return cache_folder() / self.name

    @property
    def here(self) -> bool:
        """Whether it can be read without any network."""
        return self.package is None or is_fetched(self.package, self.folder)

    @property
    def origin(self) -> str:
        """The package it comes from, in words."""
        return "scikit-learn (installed)" if self.package is None else str(self.package)


_IMAGES = "60,000 + 10,000"
DATA_SETS = (
    DataSet(
        name="digits",
        title="handwritten digits, 8x8 enlarged to 16x16",
        samples="1,797",
        shape=(1, 16, 16),
        labels=mnist.LABELS,
        licence="CC BY 4.0 (UCI)",
        source="Alpaydin and Kaynak 1998",
        package=None,
        load=None,
    ),
    DataSet(
        name="mnist",
        title="handwritten digits",
        samples=_IMAGES,
        shape=(1, 28, 28),
        labels=mnist.LABELS,
        licence="no formal licence; package ISC",
        source="LeCun, Bottou, Bengio, Haffner 1998",
        package=mnist.PACKAGE,
        load=lambda seed: mnist.load_mnist(seed),
    ),
    DataSet(
        name="fashion-mnist",
        title="pictures of clothing",
        samples=_IMAGES,
        shape=(1, 28, 28),
        labels=fashion.LABELS,
        licence="MIT",
        source="Xiao, Rasul, Vollgraf 2017",
        package=fashion.PACKAGE,
        load=lambda seed: fashion.load_fashion(seed),
    ),
    DataSet(
        name="ecg",
        title="heart beats of one patient, one lead, 180 Hz",
        samples="about 2,600 windows",
        shape=ecg.INPUT_SHAPE,
        labels=ecg.LABELS,
        licence="ODC-By (MIT-BIH), package BSD-3",
        source="MIT-BIH record 208, Moody and Mark 2001",
        package=ecg.PACKAGE,
        load=lambda seed: ecg.load_ecg(seed),
        warning="labelled by a rule of our own, not by an expert; compares with nothing in the literature",
    ),
)


def data_set(name: str) -> DataSet:
    """A data set by its name.

    Raises:
        InputError: No such data set; the message names those there are.
    """
    for found in DATA_SETS:
        if found.name == name:
            return found
    names = ", ".join(known.name for known in DATA_SETS)
    raise InputError(f"data set {name!r}: there is none of this name", f"Take one of {names}.")
