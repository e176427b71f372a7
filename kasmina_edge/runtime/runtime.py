"""`Runtime`: the whole API that most device apps need."""

from __future__ import annotations

import logging
import operator
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kasmina_edge.bundle import Bundle, read_file
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.runtime.asynchronous import AsyncLane
from kasmina_edge.runtime.channel import Channel, Stream
from kasmina_edge.runtime.energy_account import energy_account
from kasmina_edge.runtime.field_capture import FieldCapture
from kasmina_edge.runtime.follow import LOCK_WAIT_S, Follower, Signature, open_serving, record_paths, signature
from kasmina_edge.runtime.recorder import Emit, Recorder, Taps
from kasmina_edge.runtime.result import Result
from kasmina_edge.runtime.serving import Loading, Serving
from kasmina_edge.settings import Settings
from kasmina_edge.slots import SlotStore
from kasmina_edge.verdict import read_verdict

if TYPE_CHECKING:
    from kasmina_edge.telemetry.capture import CaptureStore
    from kasmina_edge.telemetry.site_report import SiteContext

log = logging.getLogger(__name__)
Verify = Callable[[Bundle], object]


class Runtime(Channel):
    """A bundle in service; make one with `Runtime.open`, as many as you like in a process, and use it in a ``with``.

    Safe for several threads and for asyncio: inferences of one runtime run one after another (inference libraries hold
    one set of buffers), a swap waits for the one that is running and no inference waits for a load. Every answer comes
    from one whole bundle, the one that ``Result.bundle`` names. After `close` open another; closing twice is harmless.

    A forked child may infer with the bundle that was in service when it was forked, on an engine with one thread; it
    follows no update and keeps no telemetry. For these open a runtime in the child.
    """

    def __init__(self, serving: Serving) -> None:
        super().__init__(serving)
        self._follower: Follower | None = None
        self._data_folder: Path | None = None
        self._device = "local"
        self._clock: Callable[[], float] = time.time
        self._captures: tuple[tuple[str, Signature], CaptureStore | None] | None = None
        self._changing = threading.Lock()  # held while streams come, go and swap
        self._streams: set[Stream] = set()
        self._async: AsyncLane | None = None
        self.swaps = 0
        _LIVE.add(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        profile: str | HardwareProfile | None = None,
        engine: str | None = None,
        telemetry: Literal["auto"] | Emit | None = "auto",
        clock: Callable[[], float] = time.time,
        verify: Verify | None = None,
        pinned_root: bytes | None = None,
        require_accelerator: bool = False,
        taps: Taps | Literal["auto"] | None = "auto",
    ) -> Runtime:
        """Open a device's data folder, or a bare `.kasmina` file.

        A data folder needs no agent: the slot that its boot record names is loaded and followed from then on. What is
        installed was verified when it came; its digests are checked again. A bare file's signatures are verified here,
        offline; that they are fresh is the installing agent's business, so an app does not stop on an expiry date.

        Args:
            path: A folder or a file.
            profile: Name, alias or TOML path of the hardware target; by default the data folder's
                ``device.profile`` setting, or the profile that a bare bundle was built for.
            engine: The one engine to use, e.g. ``litert``; "auto" measures those that are here and takes the fastest
                that passes the bundle's self-test; "" takes the profile's order. By default the data folder's
                ``device.engine`` setting, or the profile's order for a bare bundle.
            telemetry: ``"auto"``: into the data folder's outbox, and off for a bare bundle; None: off; or a function
                that takes each record, on a thread of the runtime.
            clock: Wall clock, seconds since 1970 UTC, for telemetry and captures.
            verify: Used in place of the signature check of a bare bundle; raises to refuse.
            pinned_root: The fleet's root that a bare bundle is held against; without it only a desk key is accepted.
            require_accelerator: Refuse to fall back to the CPU, now and at every swap.
            taps: Look into the seed sites of sampled frames; "auto": as the ``telemetry.taps`` setting says. See
                `Recorder`.

        Raises:
            InputError: Neither a folder nor a file, no such profile, or ``telemetry`` is none of the three.
            BundleError: Truncated, tampered, not a bundle, or nothing is committed in the folder.
            TrustError: A bare bundle whose signatures do not hold.
            EngineError: This machine cannot run it.
            LockedError: The slot is being replaced right now.
        """
        if telemetry is not None and telemetry != "auto" and not callable(telemetry):
            raise InputError(f"telemetry: expected 'auto', None or a function, got {telemetry!r:.60}")
        place = Path(path)
        if not place.is_dir() and not place.is_file():
            raise InputError(f"{place}: no such file or folder", "Pass a data folder or a .kasmina file.")
        folder = place if place.is_dir() else None
        if folder is not None and not (folder / "slots").is_dir():
            raise InputError(
                f"{folder}: not a data folder (it has no slots)", "Deploy a bundle with `kasmina-edge deploy`."
            )
        settings = Settings.read(folder)
        if folder is None:
            bundle = _verified(place, verify, pinned_root, clock)
            how = Loading(_profile(profile or bundle.manifest.profile, settings), require_accelerator, engine or "")
            runtime, boot = cls(Serving(bundle, how)), 0
        else:
            how = Loading(
                _profile(profile or settings["device.profile"], settings),
                require_accelerator,
                settings["device.engine"] if engine is None else engine,
                verdicts=folder,
            )
            runtime, boot = cls._following(folder, how, clock)
        runtime._clock, runtime._device = clock, settings["device.id"]
        try:
            recorder = None
            if telemetry is not None and (folder is not None or telemetry != "auto"):
                recorder = Recorder(
                    runtime._serving,
                    emit=None if telemetry == "auto" else telemetry,
                    data_folder=folder,
                    settings=settings,
                    boot=boot,
                    clock=clock,
                    taps=_taps(taps, settings, clock, runtime._site_context),
                    picks=FieldCapture(runtime._capture_store, random.Random()) if folder is not None else None,
                    collect=runtime._collect_all,
                    energy=energy_account(lambda: runtime._serving, how.profile),
                )
            follower = runtime._follower
            runtime._record(recorder, follower.look if follower is not None else None)
            if follower is not None:
                follower.start()
        except BaseException:
            runtime.close()
            raise
        return runtime

    @classmethod
    def _following(cls, folder: Path, how: Loading, clock: Callable[[], float]) -> tuple[Runtime, int]:
        """A runtime that will follow a data folder once its follower is started, and the device's boot counter."""
        store = SlotStore(folder, clock=clock)
        seen = signature(record_paths(folder))
        serving, record = open_serving(store, how, wait_s=LOCK_WAIT_S)
        runtime = cls(serving)
        runtime._data_folder = folder
        runtime._follower = Follower(
            folder, store, how, current=lambda: runtime._serving, hand_over=runtime._take_over, seen=seen
        )
        return runtime, record.boot

    def stream(self) -> Stream:
        """A sequence of frames with state of its own, beside the runtime's and every other stream's.

        For a model with state this loads the bundle once more (some milliseconds, and its memory); for others it costs
        nothing. Close it, or use it in a ``with``.

        Raises:
            EngineError: The runtime is closed, or this machine cannot load the bundle again; or this thread is in the
                middle of another call.
        """
        self._refuse_inside()
        with self._changing:
            serving = self._serving
            self._refuse_if_closed(serving)
            stream = Stream(
                serving.twin() if serving.stateful else serving,
                owned=serving.stateful,
                lane=self._lane,
                parts=self._parts,
            )
            stream._record(self._recorder, self._look)
            stream._on_close = self._forget_stream
            self._streams.add(stream)
            return stream

    def check(self, x: Any, expected_index: int) -> Result:
        """Answer a check frame: a known scene that came through the device's own sensor path; telemetry counts it.

        Args:
            x: As `infer`.
            expected_index: Index of the right class.

        Raises:
            InputError: As `infer`; or the bundle does not classify, or ``expected_index`` is no integer or no class.
        """
        serving = self._serving
        if serving.manifest.head != "classification":
            raise InputError(f"{serving.id}: does not classify, so no check frame can be judged")
        expected = _class_index(expected_index)
        if expected is None or not 0 <= expected < serving.classes:
            raise InputError(f"{serving.id}: has classes 0 to {serving.classes - 1}, got {expected_index!r:.60}")
        result = self.infer(x)
        if self._recorder is not None:
            self._recorder.check(result.label_index == expected)
        return result

    def capture(self, x: Any) -> bool:
        """Offer a frame for learning; it is kept, sealed to the controller's key, only if the change plan allows it.

        Returns:
            Whether it was kept. Without a data folder, a plan, or budget left, nothing is.

        Raises:
            InputError: As `infer`, or the bundle has several inputs.
            StorageError: The disk refused.
            EngineError: The runtime is closed.
        """
        serving = self._serving
        self._refuse_if_closed(serving)
        if len(serving.manifest.inputs) != 1:
            raise InputError(f"{serving.id}: has {len(serving.manifest.inputs)} inputs; one can be captured")
        serving.check(x)
        store = self._capture_store(serving.manifest.name)
        if store is None:
            return False
        frame = next(iter(x.values())) if isinstance(x, Mapping) else x
        return store.keep(np.asarray(frame), bundle=serving.digest) is not None

    def flush(self, wait_s: float = 5.0) -> bool:
        """Hand over the telemetry that was collected so far; whether that was done within ``wait_s`` seconds."""
        self._collect_all(wait=True)
        return self._recorder is None or self._recorder.flush(wait_s)

    def refresh(self) -> str:
        """Look at the boot record now, and serve what it says before returning; the bundle's ``NAME VERSION``.

        Needed only by callers who cannot wait for the next look (10 ms while inferring, a quarter second otherwise), or
        for the next try after one that failed (see ``last_swap_error``).

        Raises:
            EngineError: The runtime is closed, or this thread is in the middle of another call.
        """
        self._refuse_if_closed(self._serving)
        self._refuse_inside()
        if self._follower is not None:
            self._follower.follow(now=True)
        return self._serving.id

    @property
    def manifest(self) -> BundleManifest:
        """Of the bundle in service."""
        return self._serving.manifest

    @property
    def bundle(self) -> str:
        """``NAME VERSION`` in service."""
        return self._serving.id

    @property
    def slot(self) -> str:
        """``a`` or ``b``; ``-`` for a bare bundle."""
        return self._serving.slot

    @property
    def trial(self) -> bool:
        """Whether the bundle in service is on trial."""
        return self._serving.trial

    @property
    def runs_on(self) -> str:
        """What computes, e.g. ``LiteRT CPU`` or ``Edge TPU``."""
        return self._serving.engine.runs_on

    @property
    def accelerator(self) -> str:
        """What became of the accelerator that the profile asks for; empty when it asks for none."""
        return self._serving.engine.accelerator

    @property
    def last_swap_error(self) -> KasminaError | None:
        """Why the last change of the boot record could not be followed; None when it was."""
        return self._follower.last_error if self._follower is not None else None

    def _end(self) -> None:
        """Write out telemetry, free the engine and let go of the slot; async calls that wait are an `EngineError`."""
        if self._follower is not None and self._follower.started:
            self._follower.close()
        with self._changing:  # a swap that is going on ends; from here on there is none, nor another stream
            streams = list(self._streams)
        for stream in streams:
            if not stream._closed:
                stream._closed = True
                stream._end()
        self._serving.retire()
        self._hand_in()
        if self._async is not None:
            self._async.close()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _parts(self) -> list[object]:
        return [self, self._follower or self, self._recorder or self, self._async or self, *self._streams]

    def _refuse_inside(self) -> None:
        if self._inside(sys._getframe(2)):
            raise self._serving.in_the_middle()

    def _forked(self) -> None:
        """In a forked child, which has none of the threads: see the class."""
        _PARENTS.extend((self._follower, self._recorder, self._async))
        self._changing = threading.Lock()
        self._follower = self._async = self._ending = None
        servings = {channel._serving for channel in (self, *self._streams)}
        for channel in (self, *self._streams):
            channel._record(None, None)
        for serving in servings:
            serving.forked()

    def _take_over(self, serving: Serving, trial: bool) -> None:
        """Put a bundle into service; called by the follower's thread, waits for the inferences that are running.

        Everything that takes time is done before the first lock is taken: an engine for every stream, and one for
        batches where the old bundle had one.
        """
        old = self._serving
        if old is serving:
            with self._changing, ExitStack() as held:
                self._refuse_if_closed(old)
                for each in {old, *(stream._serving for stream in self._streams)}:
                    held.enter_context(each.guard)
                self._enter_service(serving, trial)
            return
        if old.batches:
            serving.prepare_batches()
        with self._changing:
            self._refuse_if_closed(old)
            followers = {s: serving.twin() if serving.stateful else serving for s in self._streams}
            before = {old, *(stream._serving for stream in followers)}
            with ExitStack() as held:
                for each in before:
                    held.enter_context(each.guard)
                self._enter_service(serving, trial)
                for stream, its in followers.items():
                    stream._serving, stream._owned = its, serving.stateful
                for each in before:
                    each.retired = True
        self.swaps += 1
        for each in before:
            each.retire()
        log.info("%s replaced %s, slot %s", serving.id, old.id, serving.slot)

    def _enter_service(self, serving: Serving, trial: bool) -> None:
        """From here on this is served, and counted; the guards of what is served now are held."""
        for channel in (self, *self._streams):
            channel._hand_in()
        serving.trial = trial
        if self._recorder is not None:
            self._recorder.switch(serving, trial=trial)
            self._recorder.listen(serving)
        self._serving = serving

    def _collect_all(self, *, wait: bool = False) -> None:
        for channel in (self, *self._streams):
            channel._collect(wait=wait)

    def _forget_stream(self, stream: Stream) -> None:
        with self._changing:
            self._streams.discard(stream)

    def _lane(self) -> AsyncLane:
        lane = self._async
        if lane is None:
            with self._changing:
                self._refuse_if_closed(self._serving)
                lane = self._async = self._async or AsyncLane()
        return lane

    def _capture_store(self, name: str) -> CaptureStore | None:
        """The store under the verified plan for bundle ``name``; None without one.

        The plan is read again when the bundle or one of its files changed. The floor is one of them: it is written
        after the plan, and until then it does not know the plan.
        """
        if self._data_folder is None:
            return None
        trust = self._data_folder / "trust"
        seen = name, signature([str(trust / "plan.json"), str(trust / "floor")])
        known = self._captures  # another thread may capture for another bundle meanwhile
        if known is None or known[0] != seen:
            self._captures = known = seen, None if seen[1][0] is None else self._read_plan(trust, name)
        return known[1]

    def _site_context(self, serving: Serving) -> SiteContext:
        """What this device knows of a bundle in service and no tap can see."""
        from kasmina_edge.telemetry.site_report import SiteContext

        if self._data_folder is None:
            return SiteContext()
        verdict = read_verdict(self._data_folder, serving.manifest.content_digest())
        store = self._capture_store(serving.manifest.name)
        return SiteContext(
            committed_s=None if verdict is None or serving.trial else verdict.at_s,
            plan=store.plan if store is not None else None,
            captured=store.spent() if store is not None else None,
            self_test=verdict.self_test if verdict is not None else None,
            probe_accuracy=verdict.probe_accuracy if verdict is not None else None,
        )

    def _read_plan(self, trust: Path, name: str) -> CaptureStore | None:
        from kasmina_edge.telemetry.capture import CaptureStore
        from kasmina_edge.updates.trust import TrustStore

        try:
            plan = TrustStore(trust, clock=self._clock).plan(name)
        except KasminaError as exc:
            log.warning("nothing is captured: %s", exc.message)
            return None
        if plan is None:
            log.warning("nothing is captured: %s is not a verified plan for %s", trust / "plan.json", name)
            return None
        return CaptureStore(trust.parent / "capture", plan, self._device, clock=self._clock)


_LIVE: weakref.WeakSet[Runtime] = weakref.WeakSet()
_PARENTS: list[object] = []
"""What a forked child inherited and must not let go of: freeing it would close the parent's outbox."""


def _forked() -> None:
    for runtime in list(_LIVE):
        try:
            runtime._forked()
        except Exception:  # one that is half open must not leave the others with the parent's locks
            log.exception("a runtime in a forked child")


os.register_at_fork(after_in_child=_forked)


def _class_index(value: object) -> int | None:
    """A whole number of any integer type; None for everything else, truth values too."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _profile(profile: str | HardwareProfile, settings: Settings) -> HardwareProfile:
    target = profile if isinstance(profile, HardwareProfile) else load_profile(profile)
    return target.chosen(accelerator_device=settings["device.accelerator"])


def _verified(place: Path, verify: Verify | None, pinned_root: bytes | None, clock: Callable[[], float]) -> Bundle:
    bundle = read_file(place)
    if verify is not None:
        verify(bundle)
    else:
        from kasmina_edge.updates.trust import verify_bundle

        verify_bundle(bundle, pinned_root=pinned_root, clock=clock, dates=False)
    return bundle


def _taps(
    taps: Taps | Literal["auto"] | None,
    settings: Settings,
    clock: Callable[[], float],
    context: Callable[[Serving], SiteContext],
) -> Taps | None:
    if taps != "auto":
        return taps
    if not settings["telemetry.taps"]:
        return None
    from kasmina_edge.runtime.site_taps import site_taps

    return site_taps(clock, context)
