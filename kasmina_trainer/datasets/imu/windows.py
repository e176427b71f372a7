"""Records of an inertial sensor at the waist, cut into windows, split by user.

Channels are accelerometer x, y, z in g (gravity included) and gyroscope x, y, z in rad/s, at 50 Hz. Windows hold 128
samples (2.56 s) and begin every 64, as in the set's own paper (Reyes-Ortiz et al. 2016, Neurocomputing 171:754).

Whoever is in one part of a split is in no other, so nothing of a user's gait or of how the phone was worn leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Images, Labels, Samples
from kasmina_trainer.datasets.idx import Splits

RATE_HZ = 50.0
LENGTH = 128
STEP = 64
CHANNELS = (
    "acceleration x, g",
    "acceleration y, g",
    "acceleration z, g",
    "rate x, rad/s",
    "rate y, rad/s",
    "rate z, rad/s",
)
ACTIVITIES = ("walking", "stairs-up", "stairs-down", "sitting", "standing", "lying")
TRANSITIONS = ("stand-to-sit", "sit-to-stand", "sit-to-lie", "lie-to-sit", "stand-to-lie", "lie-to-stand")
LABELS = ACTIVITIES + TRANSITIONS
UNLABELLED = -1
TRANSITION_SHARE = 0.5
"""A window with at least this share of one transition in it is that transition."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What one user's sensor wrote without a break.

    Attributes:
        user: Who wore it, from 1.
        signal: `CHANNELS` by time.  # (6, N) float32
        labels: Indices into `LABELS`, `UNLABELLED` where nobody said.  # (N,)
    """

    user: int
    signal: Images
    labels: Labels

    def __post_init__(self) -> None:
        if self.signal.shape != (len(CHANNELS), len(self.labels)) or not np.isfinite(self.signal).all():
            raise InputError(f"recording of user {self.user}: signal {self.signal.shape}, {len(self.labels)} labels")


def cut(recording: Recording, *, classes: int = 6) -> Samples:
    """Windows of one recording and what is done in them.

    A window of an activity holds nothing else. With 12 classes, a window of which at least `TRANSITION_SHARE` is one
    transition belongs to it. Others are left out.

    Args:
        recording: Of any length.
        classes: 6 for the activities, 12 with the transitions.

    Raises:
        InputError: Another number of classes.
    """
    if classes not in (len(ACTIVITIES), len(LABELS)):
        raise InputError(f"{classes} classes: expected {len(ACTIVITIES)} or {len(LABELS)}")
    starts = np.arange(0, len(recording.labels) - LENGTH + 1, STEP)
    if not len(starts):
        return np.empty((0, len(CHANNELS), LENGTH), np.float32), np.empty(0, np.int64)
    inside = starts[:, None] + np.arange(LENGTH)
    found = recording.labels[inside]  # (M, LENGTH)
    shares = np.stack([(found == label).mean(1) for label in range(classes)], 1)
    needed = np.where(np.arange(classes) < len(ACTIVITIES), 1.0, TRANSITION_SHARE)
    fits = shares >= needed
    kept = fits.any(1)
    x: Images = np.ascontiguousarray(recording.signal[:, inside[kept]].swapaxes(0, 1), dtype=np.float32)
    y: Labels = (shares * fits)[kept].argmax(1).astype(np.int64)
    return x, y


def split_by_user(
    recordings: Sequence[Recording], seed: int = 0, *, classes: int = 6, validation: int = 4, test: int = 8
) -> Splits:
    """Windows in three parts of different users.  # x (N, 6, 128)

    Args:
        recordings: Of all users.
        seed: Chooses who is in which part.
        classes: As `cut`.
        validation: Users of the validation part.
        test: Users of the test part.

    Raises:
        InputError: Too few users, or a part without one of the classes.
    """
    parts = users_of_parts([r.user for r in recordings], seed, validation=validation, test=test)
    samples: list[Samples] = []
    for name, users in zip(("training", "validation", "test"), parts, strict=True):
        pieces = [cut(r, classes=classes) for r in recordings if r.user in users]
        x, y = np.concatenate([x for x, _ in pieces]), np.concatenate([y for _, y in pieces])
        if len(np.unique(y)) != classes:
            raise InputError(f"IMU, seed {seed}: the {name} part has {len(np.unique(y))} of {classes} classes")
        samples.append((x, y))
    return Splits(samples[0], samples[1], samples[2], LABELS[:classes])


def users_of_parts(
    users: Sequence[int], seed: int, *, validation: int, test: int
) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Who trains, who validates, who tests; nobody twice.

    Raises:
        InputError: Fewer users than the parts need.
    """
    everybody: npt.NDArray[np.int64] = np.unique(np.array(users, np.int64))
    if min(validation, test) < 1 or validation + test >= len(everybody):
        raise InputError(f"{len(everybody)} users: {validation} for validation and {test} for the test leave too few")
    order = np.random.default_rng(seed).permutation(everybody).tolist()
    return (
        frozenset(order[validation + test :]),
        frozenset(order[:validation]),
        frozenset(order[validation : validation + test]),
    )
