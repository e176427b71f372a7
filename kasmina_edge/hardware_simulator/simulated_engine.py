"""An engine that answers with the real CPU engine's bits and takes the time that a profile predicts.

So a device can be rehearsed before anybody owns it: everything above an engine runs as it will, on a target that is
slower, hotter or shorter of memory than this machine. It says "simulated" wherever an engine says what it is, and
"auto" never chooses it. It cannot answer faster than the machine that it runs on: where the target would be faster, it
answers as soon as it can, and counts how often that was.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from kasmina_edge.contracts.manifest import EngineName, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import Engine, EngineCheck, LoadedTensor
from kasmina_edge.engines.litert import LitertEngine
from kasmina_edge.engines.onnx import OnnxEngine
from kasmina_edge.errors import EngineError, KasminaError

if TYPE_CHECKING:
    from kasmina_edge.hardware_simulator.context import Estimate
    from kasmina_edge.hardware_simulator.events import Effect, Event

Array = npt.NDArray[Any]
_SPIN_S = 0.0002  # sleep() wakes up to this much too late; the rest is waited for with open eyes


class Clock(ABC):
    """Where simulated time comes from."""

    @abstractmethod
    def now_s(self) -> float:
        """Seconds since some beginning."""

    @abstractmethod
    def spend(self, began_s: float, wanted_s: float) -> bool:
        """Let an inference that began at ``began_s`` have taken ``wanted_s`` seconds.

        Returns:
            Whether it was to be had; False where more time had passed already.
        """


class RealClock(Clock):
    """Sleeps until the predicted time has passed on this machine."""

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return time.perf_counter()

    def spend(self, began_s: float, wanted_s: float) -> bool:
        """See `Clock.spend`."""
        until_s = began_s + wanted_s
        left_s = until_s - time.perf_counter()
        if left_s < 0.0:
            return False
        if left_s > _SPIN_S:
            time.sleep(left_s - _SPIN_S)
        while time.perf_counter() < until_s:
            pass
        return True


class VirtualClock(Clock):
    """Counts: nothing sleeps, and only inferences and `pass_s` take time. Safe for several threads."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return self._now_s

    def pass_s(self, seconds: float) -> None:
        """Time in which nothing is inferred."""
        with self._lock:
            self._now_s += seconds

    def spend(self, began_s: float, wanted_s: float) -> bool:
        """See `Clock.spend`."""
        self.pass_s(wanted_s)
        return True


class Rehearsal:
    """One device for all simulated engines of a process: their clock, and what happens to it. Safe for several threads.

    Args:
        clock: Where time comes from; None sleeps.
        events: What happens to the device, from now on.
        seed: Of the events.
    """

    def __init__(self, clock: Clock | None = None, events: Sequence[Event] = (), seed: int = 0) -> None:
        from kasmina_edge.hardware_simulator.events import AllCourses

        self.clock = clock or RealClock()
        self._course = AllCourses(events, seed)
        self._began_s = self.clock.now_s()
        self._last_s = self._busy_s = 0.0
        self._lock = threading.Lock()

    def effect(self) -> Effect:
        """What the device suffers now."""
        with self._lock:
            now_s = max(self.clock.now_s() - self._began_s, self._last_s)
            busy_s = min(self._busy_s, now_s - self._last_s)
            self._last_s, self._busy_s = now_s, 0.0
            return self._course.step(now_s, busy_s)

    def spend(self, began_s: float, wanted_s: float) -> bool:
        """Let an inference have taken its time, as `Clock.spend`, and warm the device by it."""
        with self._lock:
            self._busy_s += wanted_s
        return self.clock.spend(began_s, wanted_s)


_now: Rehearsal | None = None


@contextmanager
def rehearse(*, clock: Clock | None = None, events: Sequence[Event] = (), seed: int = 0) -> Iterator[Rehearsal]:
    """Simulated engines that are loaded meanwhile share one device, in all threads; without it they sleep, no more.

    Args:
        clock: Where time comes from; None sleeps.
        events: What happens to the device, from now on.
        seed: Of the events.
    """
    global _now
    before, _now = _now, Rehearsal(clock, events, seed)
    try:
        yield _now
    finally:
        _now = before


class Pacer:
    """How long each inference takes: the estimate, times what the events do to it.

    Args:
        latency_s: The estimate.
        device: Whose clock and events count.

    Attributes:
        calls: Inferences so far.
        late: How many of them this machine was too slow for.
        virtual_s: Predicted seconds of all of them.
    """

    def __init__(self, latency_s: float, device: Rehearsal) -> None:
        self._latency_s, self._device = latency_s, device
        self.calls = self.late = 0
        self.virtual_s = 0.0
        self._lock = threading.Lock()

    def paced(self, call: Callable[[list[Array]], list[Array]]) -> Callable[[list[Array]], list[Array]]:
        """``call``, in the target's time."""
        now_s = self._device.clock.now_s

        def run(arrays: list[Array]) -> list[Array]:
            began_s = now_s()
            answers = call(arrays)
            self._spend(began_s)
            return answers

        return run

    def _spend(self, began_s: float) -> None:
        wanted_s = self._latency_s * self._device.effect().latency_factor
        late = not self._device.spend(began_s, wanted_s)
        with self._lock:
            self.calls += 1
            self.virtual_s += wanted_s
            self.late += late


class _Simulated(Engine):
    """What the simulated engines add to the real ones whose bits they answer with.

    Attributes:
        estimate: Of the loaded file on the profile's target.
        pacer: What was spent.
    """

    measured: ClassVar[bool] = False
    simulated: ClassVar[bool] = True

    estimate: Estimate
    pacer: Pacer

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """See `Engine.check`; besides the library, the profile must have something to predict from."""
        from kasmina_edge.hardware_simulator.context import HardwareContext

        real = super().check(_plain(profile), model)
        if not real.ok:
            return real
        try:
            HardwareContext(profile)
        except KasminaError as exc:
            return EngineCheck(False, "", f"{exc.message}. {exc.next_step}".strip())
        accelerator = "simulated, none is used" if profile.accelerator else ""
        return EngineCheck(True, _runs_on(profile), f"{real.reason}, in the time of {profile.name}", accelerator)

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        from kasmina_edge.hardware_simulator.context import HardwareContext
        from kasmina_edge.hardware_simulator.reading import read_workload

        found = super()._load(data, _plain(profile))  # type: ignore[safe-super]
        path, device = self.model.file.path, _now or Rehearsal()
        shapes = {t.name: tuple(t.shape) for t in self.model.inputs}
        same = {t.name: t.constant for t in self.model.inputs if t.constant is not None}
        workload = read_workload(data, path, shapes, same)
        self.estimate = HardwareContext(profile).estimate(workload)
        taken = device.effect().taken_bytes
        for fit in self.estimate.memory:
            free = fit.there_bytes - (taken if fit.memory == "RAM" else 0)
            if fit.must and fit.needed_bytes > free:
                raise EngineError(
                    f"{path}: simulated {profile.name}: {fit.memory}: {fit.needed_bytes} bytes needed, {free} free"
                )
        fed = [tensor for tensor in workload.tensors if tensor.first < 0]
        one = fed[0].shape[0] if fed and fed[0].shape else 1
        frames = self.model.inputs[0].shape[0] if self.model.inputs[0].shape else 1
        latency_s = self.estimate.latency_ms / 1000.0 * max(1.0, frames / max(one, 1))
        self.pacer = Pacer(latency_s, device)
        if not isinstance(device.clock, RealClock):
            self.timer_ns = lambda: round(1e9 * device.clock.now_s())
        self.runs_on, self.accelerator = _runs_on(profile), ""
        return found

    def _call(self) -> Callable[[list[Array]], list[Array]]:
        return self.pacer.paced(super()._call())


class SimulatedEngine(_Simulated, LitertEngine):
    """``.tflite`` files: LiteRT's answers in the profile's time."""

    name: ClassVar[str] = "simulated"
    takes: ClassVar[EngineName] = "litert"


class SimulatedOnnxEngine(_Simulated, OnnxEngine):
    """``.onnx`` files: ONNX Runtime's answers in the profile's time."""

    name: ClassVar[str] = "simulated-onnx"
    takes: ClassVar[EngineName] = "onnxruntime"


def _plain(profile: HardwareProfile) -> HardwareProfile:
    """The same without its accelerator: whoever answers is this machine's processor."""
    return profile.model_copy(update={"accelerator": None, "accelerator_device": "", "delegate_library": None})


def _runs_on(profile: HardwareProfile) -> str:
    return f"simulated {profile.name}"
