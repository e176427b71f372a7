"""The interface of a simulation layer, and what every estimate carries: a figure, its band, and how it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

_T = TypeVar("_T")
MOST_KNOWN = 1 << 16


@dataclass(frozen=True)
class OpCost:
    """What one operation costs.

    Attributes:
        latency_us: Time on the target.
        where: The part that runs it: ``cpu``, ``edgetpu``, ``npu``, ``mcu``.
        bound: What limits it: ``compute``, ``memory``, ``overhead`` or ``transfer``.
    """

    latency_us: float
    where: str
    bound: str


@dataclass(frozen=True)
class Costs:
    """What a layer finds of a workload.

    Attributes:
        ops: One entry an operation, in the workload's order.
        fixed_us: What an inference costs besides its operations: the call, a transfer that no operation owns.
        band: Half-width around the prediction, relative to it, that held 90 % of known cases; None: unknown.
        notes: Sentences for people: what streams, what falls back to the host, what does not fit.
        energy_uj: Where the layer knows better than power times time; None otherwise.
        no_energy: Why the profile's power says nothing of this workload; "" where it does.
    """

    ops: tuple[OpCost, ...]
    fixed_us: float
    band: float | None
    notes: tuple[str, ...] = ()
    energy_uj: float | None = None
    no_energy: str = ""

    @property
    def latency_ms(self) -> float:
        """Of one inference."""
        return (self.fixed_us + sum(op.latency_us for op in self.ops)) / 1000.0


class Known(dict[OpWork, _T]):
    """What was found of operations before: a growing network brings the same ones again and again.

    Args:
        work_out: Finds it of one operation, the same whatever network that stands in.
        most: Operations that are remembered; one more, and all are forgotten.
    """

    def __init__(self, work_out: Callable[[OpWork], _T], most: int = MOST_KNOWN) -> None:
        super().__init__()
        self._work_out, self._most = work_out, most

    def __missing__(self, op: OpWork) -> _T:
        """Found now, and remembered."""
        found = self._work_out(op)
        if len(self) >= self._most:
            self.clear()
        self[op] = found
        return found


class SimulationLayer(ABC):
    """One kind of hardware, with the numbers of one profile. Pure: equal arguments give equal results.

    Args:
        profile: Its ``kind`` is the layer's.

    Raises:
        InputError: The profile lacks a number that this layer needs; the message names the key.
    """

    kind: ClassVar[str]

    def __init__(self, profile: HardwareProfile) -> None:
        if profile.kind != self.kind:
            raise InputError(f"profile {profile.name}: kind is {profile.kind}, {type(self).__name__} takes {self.kind}")
        self.profile = profile

    @abstractmethod
    def costs(self, workload: Workload) -> Costs:
        """Time of every operation.

        Raises:
            InputError: No estimate can be made: the profile has neither anchors nor coefficients.
        """
