"""Inertial sensors at the waist: six activities and six transitions, users never in two parts.

- `hapt`: the real set, UCI HAPT; `hapt_pickle` reads its pickle and runs nothing of it.
- `simulator`: the same protocol from a kinematic model (`body`) through a measured sensor (`sensor`).
- `windows`: recordings, windows of 2.56 s, splits by user.
"""

from kasmina_trainer.datasets.imu.hapt import load_hapt, load_recordings
from kasmina_trainer.datasets.imu.simulator import load_simulated, simulate
from kasmina_trainer.datasets.imu.windows import ACTIVITIES, LABELS, TRANSITIONS, Recording, cut, split_by_user

__all__ = [
    "ACTIVITIES",
    "LABELS",
    "TRANSITIONS",
    "Recording",
    "cut",
    "load_hapt",
    "load_recordings",
    "load_simulated",
    "simulate",
    "split_by_user",
]
