"""The network that calibration measures beside all others, as a table: profiles made by it have it as their anchor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kasmina_edge.hardware_simulator.calibration_nets import REFERENCE, reference_net
from kasmina_edge.hardware_simulator.reading import read_workload
from kasmina_edge.hardware_simulator.workload import Workload


def _table(dtype: str) -> Workload:
    return read_workload(reference_net(dtype), f"{REFERENCE}-{dtype}")


NETWORKS: dict[str, Callable[[], Workload]] = {
    f"{REFERENCE}-{dtype}": partial(_table, dtype) for dtype in ("int8", "float32")
}
