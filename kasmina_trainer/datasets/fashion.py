"""Fashion-MNIST: 60,000 + 10,000 pictures of clothing at 28x28 grey (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747).

They come from Debian's package ``dataset-fashion-mnist`` (MIT, Zalando SE), read where it is installed and otherwise
downloaded with ``apt-get download``, which needs no root. The archive's own digest is not pinned: apt checks it against
Debian's signed lists, and the four files inside are pinned here.
"""

from __future__ import annotations

from pathlib import Path

from kasmina_trainer.datasets.fetching import Download, Member, Package, by_client, cache_folder, read
from kasmina_trainer.datasets.idx import Splits, image_splits

LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
VALIDATION_ROWS = 5_000
_PLACE = "usr/share/datasets/fashion-mnist"
PACKAGE = Package(
    client="apt",
    name="dataset-fashion-mnist",
    version="",
    archives=(),
    max_archive_bytes=64_000_000,
    max_content_bytes=64_000_000,
    installed=Path("/") / _PLACE,
    members=(
        Member(
            "train-images",
            f"{_PLACE}/train-images-idx3-ubyte.gz",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            47_040_016,
            gzipped=True,
        ),
        Member(
            "train-labels",
            f"{_PLACE}/train-labels-idx1-ubyte.gz",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            60_008,
            gzipped=True,
        ),
        Member(
            "test-images",
            f"{_PLACE}/t10k-images-idx3-ubyte.gz",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            7_840_016,
            gzipped=True,
        ),
        Member(
            "test-labels",
            f"{_PLACE}/t10k-labels-idx1-ubyte.gz",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            10_008,
            gzipped=True,
        ),
    ),
)


def load_fashion(
    seed: int = 0,
    *,
    validation: int = VALIDATION_ROWS,
    train_rows: int | None = None,
    folder: Path | None = None,
    downloaded: Download | None = by_client,
) -> Splits:
    """Fashion-MNIST in its official parts.  # x (N, 1, 28, 28) in [0, 1]

    Args:
        seed: Chooses the validation images among the 60,000.
        validation: How many.
        train_rows: Keep only so many of the others; None keeps all.
        folder: Where the files lie; the cache's ``fashion-mnist`` when left out.
        downloaded: Gets the package when files are missing; None: nothing is fetched.

    Raises:
        InputError: Missing and not to be fetched, no apt-get here, or a damaged download.
        LinkError: Debian's mirror cannot be reached.
    """
    files = read(PACKAGE, folder or cache_folder() / "fashion-mnist", downloaded=downloaded)
    return image_splits(files, labels=LABELS, seed=seed, validation=validation, train_rows=train_rows)
