"""Every data set that can be had by name: what it holds, where it comes from, and whether it is here already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import ecg, fashion, gaussian, imu, mnist, toy
from kasmina_trainer.datasets.captioned import CaptionedShapes, Pairs, drawing, emoji, load_emoji, shapes
from kasmina_trainer.datasets.fetching import Package, cache_folder, is_fetched
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.imu import hapt, simulator
from kasmina_trainer.datasets.medical_simulator import windows as heart_windows
from kasmina_trainer.datasets.medical_simulator.patterns import NAMES as HEART_PATTERNS
from kasmina_trainer.datasets.toy import shakespeare

Kind = Literal["images", "series", "points", "text"]
DRAWN = "drawn by seed, nothing to fetch"


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: As in ``kasmina-trainer data``; also its folder in the cache.
        title: What it is, in a line.
        samples: How many, in words.
        shape: Of one input.  # (C, H, W), (C, L), (D,) or (L,)
        labels: Class names; of a text its characters.
        licence: Under which it is published, in words.
        source: Who made it.
        package: Where it comes from; None: it came with an installed library, or is drawn here.
        load: Its parts by seed; None where it has a reader of its own (the digits), or is a text.
        warning: What a figure on it does not mean; "" when there is nothing to warn of.
        kind: How it is looked at.
        units: What the values mean.
        texts: Its parts by seed, of a text.
        made: Where it comes from when there is no package.
        kept_in: Its folder in the cache where that is another set's.
        pairs: Some of its training pictures with their texts by seed, where it has texts.
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
    kind: Kind = "images"
    units: str = "values 0 to 1"
    texts: Callable[[int], toy.Texts] | None = None
    made: str = "scikit-learn (installed)"
    kept_in: str = ""
    pairs: Callable[[int], Pairs] | None = None

    @property
    def folder(self) -> Path:
        """Its place in the cache."""
        return cache_folder() / (self.kept_in or self.name)

    @property
    def here(self) -> bool:
        """Whether it can be read without any network."""
        return self.package is None or is_fetched(self.package, self.folder)

    @property
    def origin(self) -> str:
        """The package it comes from, in words."""
        return self.made if self.package is None else str(self.package)


_IMAGES = "60,000 + 10,000"
_POINTS = "4,000 + 1,000 + 4,000"
_OURS = "Apache-2.0 (this project)"
_PLAIN = "no unit, near -1 to 1"
_INERTIAL = "acceleration x, y, z in g, rate x, y, z in rad/s"
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
        kind="series",
        units="0 to 1 is -3 to 3 mV",
        warning="labelled by a rule of our own, not by an expert; compares with nothing in the literature",
    ),
    DataSet(
        name="ecg-simulated",
        title="simulated ECG of many patients, 3 leads, 10 s at 128 Hz",
        samples="200 + 40 + 100 patients, a window of each pattern",
        shape=heart_windows.INPUT_SHAPE,
        labels=HEART_PATTERNS,
        licence=_OURS,
        source="dynamical model of McSharry et al. 2003 and Sameni et al. 2007",
        package=None,
        load=lambda seed: heart_windows.load(seed),
        warning="simulated: says nothing of a real patient",
        kind="series",
        units="0 to 1 is -3 to 3 mV",
        made=DRAWN,
    ),
    DataSet(
        name="spirals",
        title="two spirals in the plane",
        samples=_POINTS,
        shape=(2,),
        labels=("first", "second"),
        licence=_OURS,
        source="Lang and Witbrock 1988",
        package=None,
        load=lambda seed: toy.two_spirals(seed),
        kind="points",
        units=_PLAIN,
        made=DRAWN,
    ),
    DataSet(
        name="spheres",
        title="concentric spheres in 10 dimensions",
        samples=_POINTS,
        shape=(10,),
        labels=("r=0.7", "r=1"),
        licence=_OURS,
        source="Gilmer et al. 2018",
        package=None,
        load=lambda seed: toy.concentric_spheres(seed),
        kind="points",
        units=_PLAIN,
        made=DRAWN,
    ),
    DataSet(
        name="parity",
        title="XOR of the signs of 4 numbers",
        samples=_POINTS,
        shape=(4,),
        labels=("even", "odd"),
        licence=_OURS,
        source="Minsky and Papert 1969",
        package=None,
        load=lambda seed: toy.parity(seed),
        kind="points",
        units=_PLAIN,
        made=DRAWN,
    ),
    DataSet(
        name="checkerboard",
        title="squares of two colours, 4 x 4",
        samples=_POINTS,
        shape=(2,),
        labels=("dark", "light"),
        licence=_OURS,
        source="a checkerboard",
        package=None,
        load=lambda seed: toy.checkerboard(seed),
        kind="points",
        units=_PLAIN,
        made=DRAWN,
    ),
    DataSet(
        name="blobs",
        title="three Gaussian blobs that overlap by 5 %",
        samples=_POINTS,
        shape=(2,),
        labels=("blob-0", "blob-1", "blob-2"),
        licence=_OURS,
        source="normal distributions; the best possible purity is known",
        package=None,
        load=lambda seed: gaussian.blob_splits(gaussian.make_blobs(seed), seed),
        kind="points",
        units="standard deviations of a round blob",
        made=DRAWN,
    ),
    DataSet(
        name="brackets",
        title="balanced brackets of 2 kinds, nested up to 4 deep: exactly 1.25 bits a character",
        samples="200,000 + 20,000 + 50,000 characters",
        shape=(1,),
        labels=tuple("([)]"),
        licence=_OURS,
        source="a Dyck language, cut off",
        package=None,
        load=None,
        kind="text",
        units="indices into the alphabet",
        texts=lambda seed: toy.bracket_language().texts(seed),
        made=DRAWN,
    ),
    DataSet(
        name="reber",
        title="words of the embedded Reber grammar: exactly 7/12 bits a character",
        samples="200,000 + 20,000 + 50,000 characters",
        shape=(1,),
        labels=tuple("BTSXPVE"),
        licence=_OURS,
        source="Reber 1967; Cleeremans, Servan-Schreiber, McClelland 1989",
        package=None,
        load=None,
        kind="text",
        units="indices into the alphabet",
        texts=lambda seed: toy.reber_language().texts(seed),
        made=DRAWN,
    ),
    DataSet(
        name="shakespeare",
        title="37 plays, cut between plays",
        samples="4.33 + 0.27 + 0.25 million characters",
        shape=(1,),
        labels=("83 characters",),
        licence="CC BY 2.5; texts in the public domain",
        source="Project Gutenberg, Open Knowledge Foundation 2008",
        package=shakespeare.PACKAGE,
        load=None,
        kind="text",
        units="indices into the alphabet",
        texts=lambda seed: shakespeare.load_shakespeare(),
    ),
    DataSet(
        name="captioned-shapes",
        title="one coloured shape or two, with captions; pairs of colour and shape are held out",
        samples="4,320 + 352 + 960 combinations, any number of pictures",
        shape=drawing.PICTURE_SHAPE,
        labels=tuple(drawing.SHAPES),
        licence=_OURS,
        source="drawn from signed distances, captions by a grammar with synonyms",
        package=None,
        load=lambda seed: shapes.shape_splits(seed),
        made=DRAWN,
        pairs=lambda seed: CaptionedShapes(seed).draw("train", 12, seed=0),
    ),
    DataSet(
        name="emoji",
        title="emoji of Twemoji with their names; variants of one emoji are never in two parts",
        samples="1,911",
        shape=drawing.PICTURE_SHAPE,
        labels=emoji.CATEGORIES,
        licence="CC BY 4.0 (graphics), MIT (package)",
        source="Twemoji, Copyright Twitter, Inc. and other contributors; emoji-data, Cal Henderson",
        package=emoji.PACKAGE,
        load=lambda seed: emoji.emoji_splits(seed),
        warning="256 colours on grey; three of four held-out names have a word that no training name has",
        pairs=lambda seed: load_emoji(seed)["train"].at(np.random.default_rng(seed).permutation(1000)[:12]),
    ),
    DataSet(
        name="hapt",
        title="phone at the waist, 30 users, 2.56 s at 50 Hz, users never in two parts",
        samples="about 10,000 windows",
        shape=(6, imu.windows.LENGTH),
        labels=imu.ACTIVITIES,
        licence="CC BY 4.0 (UCI); the package states none",
        source="UCI HAPT, Reyes-Ortiz et al. 2016",
        package=hapt.PACKAGE,
        load=lambda seed: hapt.load_hapt(seed),
        kind="series",
        units=_INERTIAL,
    ),
    DataSet(
        name="imu-simulated",
        title="the same protocol from a kinematic model, 30 simulated users",
        samples="about 9,000 windows",
        shape=(6, imu.windows.LENGTH),
        labels=imu.ACTIVITIES,
        licence=_OURS,
        source="rigid-body kinematics; sizes and sensor faults measured on UCI HAPT",
        package=None,
        load=lambda seed: simulator.load_simulated(seed),
        warning="simulated: says nothing of real people",
        kind="series",
        units=_INERTIAL,
        made=DRAWN,
    ),
)


def data_set(name: str, among: Sequence[DataSet] = DATA_SETS) -> DataSet:
    """A data set by its name.

    Args:
        name: As in `DataSet.name`.
        among: Which there are.

    Raises:
        InputError: No such data set; the message names those there are.
    """
    for found in among:
        if found.name == name:
            return found
    names = ", ".join(known.name for known in among)
    raise InputError(f"data set {name!r}: there is none of this name", f"Take one of {names}.")
