"""What of a data set is shown: some samples of each class, or points in their first two coordinates, or a text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import digits, mnist
from kasmina_trainer.datasets.catalogue import DATA_SETS, DataSet
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.pages.data_picture import Panel

MOST_PANELS = 20
EXCERPT = 400
CORRUPTED_ROWS = 200


def _corrupted(seed: int) -> Splits:
    """Some of MNIST's test pictures in every corruption; the label is the corruption."""
    from kasmina_trainer.adversarial.mnist_c import KINDS, suite

    parts = mnist.load_mnist(seed)
    found = []
    for part in (parts.train, parts.validation, parts.test):
        few = (part[0][:CORRUPTED_ROWS], part[1][:CORRUPTED_ROWS])
        pieces = [x for _, (x, _) in suite(few, seed=seed)]
        x = np.concatenate(pieces).reshape(-1, 1, *few[0].shape[2:])
        found.append((x, np.repeat(np.arange(len(KINDS)), len(few[1])).astype(np.int64)))
    return Splits(found[0], found[1], found[2], tuple(KINDS))


def _mnist_c() -> DataSet:
    from kasmina_trainer.adversarial.mnist_c import KINDS

    return DataSet(
        name="mnist-c",
        title="MNIST's pictures in 15 corruptions, made here from MNIST by seed",
        samples="15 times MNIST; shown: 200 of each part",
        shape=(1, 28, 28),
        labels=tuple(KINDS),
        licence="as MNIST's",
        source="Mu and Gilmer 2019 (MNIST-C), after Hendrycks and Dietterich 2019",
        package=mnist.PACKAGE,
        load=_corrupted,
        kept_in="mnist",
    )


def all_data_sets() -> tuple[DataSet, ...]:
    """The catalogue, and what is made from it by packages above the data sets."""
    return (*DATA_SETS, _mnist_c())


def panels(found: DataSet, seed: int) -> list[Panel]:
    """What is shown of a data set.

    Raises:
        InputError: It is not here; nothing is fetched for a picture.
    """
    if not found.here:
        raise InputError(f"{found.name}: not fetched", f"Run `kasmina-trainer data fetch {found.name}` first.")
    if found.texts is not None:
        texts = found.texts(seed)
        parts = (("training", texts.train), ("validation", texts.validation), ("test", texts.test))
        return [
            Panel(f"{name}: {len(text):,}", "text", "".join(texts.alphabet[i] for i in text[:EXCERPT].tolist()))
            for name, text in parts
        ]
    if found.pairs is not None:
        pairs = found.pairs(seed)
        return [
            Panel(caption, "image", one.transpose(1, 2, 0))
            for caption, one in zip(pairs.captions, pairs.pictures, strict=True)
        ]
    splits = _splits_of(found)(seed)
    if found.kind == "points":
        parts_of = (("training", splits.train), ("validation", splits.validation), ("test", splits.test))
        return [Panel(f"{name}: {len(y):,}", "points", x[:, :2], y, splits.labels) for name, (x, y) in parts_of]
    x, y = splits.train
    shown: list[Panel] = []
    for label, name in list(enumerate(splits.labels))[:MOST_PANELS]:
        rows = np.flatnonzero(y == label)
        if len(rows):
            one = x[rows[0]]
            values = one[0] if found.kind == "images" else one.reshape(one.shape[0], -1)
            shown.append(Panel(name, "image" if found.kind == "images" else "series", values))
    return shown


def _splits_of(found: DataSet) -> Callable[[int], Splits]:
    if found.load is not None:
        return found.load

    def read(seed: int) -> Splits:
        parts = digits.split_digits(seed)
        return Splits(parts.host.samples, parts.probes.samples, parts.test.samples, digits.LABELS)

    return read
