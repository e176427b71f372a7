"""`SupervisedEngine`: an accelerator that may hang, crash, lie or vanish, and the CPU twin that answers for it.

The accelerator runs in a worker process under a deadline; the twin is loaded and warm in this one. What a caller gets:

- An answer within `SupervisorRules.gap_ms`, whatever the accelerator does, as long as the twin alone can.
- Never an old answer for a new frame: calls are numbered, and one is out at a time.
- No wrong answer while every frame is compared (``verify_every=1``, probation, models with state). Between two
  comparisons answers that are numbers are believed: when the accelerator begins to answer wrongly, at most
  ``canary_every`` wrong answers get through if it is wrong on the known vectors too, else at most ``verify_every - 1``
  (without a bound where a twin slower than the gap is not asked: ``verify_every`` is 0 then).

Models with state: the engine here holds it, the worker's and the twin's engine hold none, so that the twin goes on from
the last accepted answer and nothing has to be reset. Because one wrong state would spoil all that follows, every frame
of such a model is compared unless ``verify_every`` says otherwise. A model that keeps state in variables of its own
cannot be served this way.
"""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile, ModelTensor
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.accelerator.channel import WorkerSpec, as_stateless
from kasmina_edge.engines.accelerator.device import Reset, no_reset, reset_edgetpu
from kasmina_edge.engines.accelerator.events import AcceleratorCounters, AcceleratorEvent
from kasmina_edge.engines.accelerator.keeper import Keeper, WrongAnswerError, judge
from kasmina_edge.engines.accelerator.known import KnownAnswers, known_answers
from kasmina_edge.engines.accelerator.link import WorkerFailedError, WorkerGoneError, WorkerLink
from kasmina_edge.engines.accelerator.rules import SupervisorRules
from kasmina_edge.engines.accelerator.twins import check_twin
from kasmina_edge.engines.engine import Engine, EngineCheck, LoadedTensor
from kasmina_edge.errors import EngineError

Array = npt.NDArray[Any]
Call = Callable[[list[Array]], list[Array]]
Listener = Callable[[AcceleratorEvent], None]
_DETAIL = 160


def supervise(
    bundle: Bundle,
    profile: HardwareProfile,
    primary: tuple[type[Engine], ModelFile],
    twin: tuple[type[Engine], ModelFile],
    *,
    label: str = "Edge TPU",
    required: bool = False,
    rules: SupervisorRules | None = None,
    reset: Reset | None = None,
    on_change: Listener | None = None,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> SupervisedEngine:
    """Serve ``primary`` from a worker process, with ``twin`` to answer in its place.

    Returns when the worker is up, or has failed for the first time; the twin answers until it is.

    Args:
        bundle: Holds both files and the self-test's vectors.
        profile: The hardware target, for both.
        primary: The accelerator's engine class and model file. The class has to be importable by module and name.
        twin: The engine class and model file that answer in its place: same tensors, and no accelerator.
        label: What people call the accelerator.
        required: Raise when the first start fails.
        rules: The limits; by default those of `SupervisorRules`.
        reset: Resets the device; by default by the profile's accelerator.
        on_change: Told of every event, on a thread of the engine's.
        clock: Wall clock, seconds since 1970 UTC.
        timer: Monotonic seconds.
        rng: Varies the waits between starts.

    Raises:
        BundleError: A file does not load on the twin, or the two files' tensors differ.
        EngineError: The twin cannot run here or fails its self-test; the model keeps state in variables of its own; or
            ``required`` and the accelerator did not start.
    """
    rules = rules or SupervisorRules()
    (kind, model), (twin_kind, twin_model) = primary, twin
    check_twin(bundle.id, model, twin_model)
    stand_in = twin_kind(as_stateless(twin_model), bundle.read(twin_model.file), profile)
    try:
        engine = SupervisedEngine(
            model,
            bundle.read(model.file),
            profile,
            engine=f"{kind.__module__}:{kind.__qualname__}",
            twin=stand_in,
            known=known_answers(bundle, model, twin_model, stand_in.hot_path(), timer),
            label=label,
            rules=rules,
            reset=reset or (reset_edgetpu if profile.accelerator == "edgetpu" else no_reset),
            on_change=on_change,
            clock=clock,
            timer=timer,
            rng=rng or random.Random(),
        )
    except BaseException:
        stand_in.close()
        raise
    if required and not engine.started(rules.start_timeout_s):
        detail = engine.accelerator
        engine.close()
        raise EngineError(f"{model.file.path}: {detail}", "Plug the accelerator in and check its driver.")
    return engine


class SupervisedEngine(Engine):
    """Made by `supervise`. ``runs_on`` says who answered the last frame.

    Attributes:
        on_change: Told of every event, on a thread of the engine's.
    """

    name: ClassVar[str] = "supervised"
    measured: ClassVar[bool] = False

    def __init__(
        self,
        model: ModelFile,
        data: bytes,
        profile: HardwareProfile,
        *,
        engine: str,
        twin: Engine,
        known: KnownAnswers,
        label: str,
        rules: SupervisorRules,
        reset: Reset,
        on_change: Listener | None,
        clock: Callable[[], float],
        timer: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._twin_engine, self._known, self._label = twin, known, label
        self._rules, self._timer = rules, timer
        self._twin = twin.hot_path()
        self._owner = os.getpid()
        self._frames = self._by_twin_frames = self._compared = self._late = self._canaries = 0
        spec = WorkerSpec(engine, as_stateless(model), data, profile, model.stateful)
        self._keeper = Keeper(spec, known, rules, reset=reset, clock=clock, timer=timer, rng=rng, changed=self._changed)
        self._twin_text = twin.runs_on
        self._probation_text = f"{twin.runs_on} ({label}: on probation)"
        self._late_text = f"{twin.runs_on} ({label}: late)"
        self._own_text = label
        super().__init__(model, data, profile)
        self._keeper.on_change = on_change
        self._changed()
        try:
            self._keeper.start(rules.open_wait_s)
        except BaseException:
            self._keeper.close()
            raise
        self.runs_on = self._twin_text if self._keeper.link is None else self._probation_text
        _alive.add(self)

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        """It wraps an engine that was checked; nobody chooses it by name."""
        return EngineCheck(False, "", f"made by supervise(), not chosen for {model.file.path}")

    @property
    def on_change(self) -> Listener | None:
        """Told of every event, on a thread of the engine's."""
        return self._keeper.on_change

    @on_change.setter
    def on_change(self, listener: Listener | None) -> None:
        self._keeper.on_change = listener

    def started(self, wait_s: float) -> bool:
        """Wait for the end of the first start, at most ``wait_s`` seconds; whether the accelerator is there now."""
        return self._keeper.wait(wait_s)

    def counters(self) -> AcceleratorCounters:
        """How it went so far; any thread may ask."""
        keeper, link = self._keeper, self._keeper.link
        in_service = link is not None and link.in_service_at is not None
        return AcceleratorCounters(
            in_service=in_service,
            cause="" if in_service else keeper.cause,
            frames=self._frames,
            by_twin=self._by_twin_frames,
            compared=self._compared,
            late=self._late,
            canaries=self._canaries,
            starts=keeper.starts,
            fallbacks=dict(keeper.fallbacks),
            deadline_ms=link.deadline_s * 1000.0 if link is not None else None,
            verify_every=link.verify_every if link is not None else None,
        )

    def __enter__(self) -> Self:
        return self

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        return [_described(t) for t in self.model.inputs], [_described(t) for t in self.model.outputs]

    def _run(self, inputs: list[Array]) -> list[Array]:
        self._frames += 1
        link = self._keeper.link
        if link is not None:
            return self._supervised(link, inputs)
        self._by_twin_frames += 1
        self.runs_on = self._twin_text
        return self._twin(inputs)

    def _supervised(self, link: WorkerLink, inputs: list[Array]) -> list[Array]:
        """Ask the worker; the twin answers where it does not, or not rightly."""
        kept: list[Array] | None = None
        text = ""
        with link.lock:
            try:
                if link.closed:
                    raise WorkerGoneError("taken out")
                began = self._timer() if link.out else 0.0
                if link.out and not self._settle(link):
                    text = self._late_text
                else:
                    allowed = link.deadline_s - (self._timer() - began if began else 0.0)
                    link.check_in -= 1
                    link.overdue = False
                    link.ask(inputs)
                    if link.probation or link.check_in == 0:
                        link.check_in = link.verify_every
                        kept = self._twin(inputs)
                        answers = link.answer(max(allowed - (self._timer() - link.asked_at), 0.0))
                        self._compared += 1
                    else:
                        answers = link.answer(allowed)
                    judge(answers, kept, self._known.tolerance, "a frame")
                    self._canary(link)
                    if not link.probation:
                        self.runs_on = self._own_text
                        return answers
                    link.probation -= 1
                    if not link.probation:
                        self._keeper.proven(link)
                    text = self._probation_text
            except TimeoutError:
                self._count_late(link)
                text = self._late_text
            except WorkerFailedError as exc:
                self._keeper.report(link, "gone", str(exc))
            except WorkerGoneError as exc:
                self._keeper.report(link, "crash", str(exc))
            except WrongAnswerError as exc:
                self._keeper.report(link, "wrong", str(exc))
        self._by_twin_frames += 1
        self.runs_on = text if text and self._keeper.link is link else self._twin_text
        return self._twin(inputs) if kept is None else kept

    def _settle(self, link: WorkerLink) -> bool:
        """Take the answer to a canary or to a late call; False while it is still out."""
        canary = link.canary
        left_s = link.deadline_s - (self._timer() - link.asked_at) if canary >= 0 else 0.0
        try:
            answers = link.answer(max(left_s, 0.0))
        except TimeoutError:
            out_s = self._timer() - link.asked_at
            if not link.overdue:
                self._count_late(link)
            if out_s * 1000.0 > self._rules.hang_ms:
                self._keeper.report(link, "hang", f"no answer for {out_s:.1f} s")
            return False
        if canary >= 0:
            judge(answers, self._known.frames[canary][1], self._known.tolerance, f"known vector {canary}")
        return True

    def _canary(self, link: WorkerLink) -> None:
        """Ask for a known answer in the time between two frames; it is looked at before the next frame is asked."""
        link.canary_in -= 1
        if link.canary_in > 0 or not self._rules.canary_every:
            return
        frames = self._known.frames
        link.canary_in = self._rules.canary_every
        link.next_canary = (link.next_canary + 1) % len(frames)
        self._canaries += 1
        try:
            link.ask(frames[link.next_canary][0], canary=link.next_canary)
        except WorkerGoneError as exc:
            self._keeper.report(link, "crash", str(exc))

    def _count_late(self, link: WorkerLink) -> None:
        link.overdue = True
        self._late += 1
        if link.late.late(link.calls):
            rules = self._rules
            what = f"{rules.late_limit} of {rules.late_window} calls took longer than {link.deadline_s * 1000:.0f} ms"
            self._keeper.report(link, "slow", what)

    def _changed(self) -> str:
        keeper, link = self._keeper, self._keeper.link
        twin = self._twin_engine.runs_on
        if link is None:
            why = keeper.cause or "starting"
            self._twin_text = f"{twin} ({self._label}: {why})"
            seen = f" ({keeper.detail[:_DETAIL]})" if keeper.detail else ""
            self.accelerator = f"{self._label}: {why}{seen}, {twin} answers"
            return self._twin_text
        self._own_text = self.accelerator = link.runs_on or self._label
        return self._own_text if link.in_service_at is not None else self._probation_text

    def _close(self) -> None:
        _alive.discard(self)
        if self._owner == os.getpid():
            self._keeper.close()
            for other in list(_alive):  # after a swap the next bundle waits for this one's device
                other._keeper.hurry()
        self._twin = _closed
        self._twin_engine.close()


def _closed(inputs: list[Array]) -> list[Array]:
    raise RuntimeError("closed")


def _described(tensor: ModelTensor) -> LoadedTensor:
    return LoadedTensor(None, tuple(tensor.shape), tensor.dtype, tensor.scale, tensor.zero_point)


_alive: weakref.WeakSet[SupervisedEngine] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked copy of the app has no keeper, and its parent's worker is not its own: its twin answers."""
    for engine in list(_alive):
        engine._keeper.link = None
        engine._keeper.cause, engine._keeper.detail = "forked", ""
        engine._changed()


os.register_at_fork(after_in_child=_after_fork)
