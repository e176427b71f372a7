"""Taps: seed statistics of the bundle that runs here, taken on sampled frames by a thread of their own.

The frames that the recorder has anyway are offered with `SiteTaps.look`, which never waits: it keeps a frame only when
a look is due. The thread holds no lock of the runtime, and rests after each look for as long as makes its processor
time a fixed share of one core.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import BundleManifest, ModelFile
from kasmina_edge.contracts.record import HardwareContext, SeedTelemetry
from kasmina_edge.engines.shadow import Shadow, ShadowLook, why_not
from kasmina_edge.engines.tensors import InputConverter
from kasmina_edge.errors import InputError, KasminaError
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.site_measures import SiteMeasures, contribution
from kasmina_edge.telemetry.site_report import WHOLE, SiteContext, every_site, report

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
SHARE = 0.01
"""Of one core, for everything that taps do."""
LEAST_INTERVAL_S = 0.25
HARDWARE_INTERVAL_S = 30.0
SILENCE_EVERY = 4
"""Every fourth look also runs the network with one graft silenced."""
TURN = 4
"""So many counterfactual looks at one graft before the next: each turn loads a file."""
CLOSE_WAIT_S = 2.0


class SiteTaps:
    """Measures the seed sites of one bundle; safe for several threads.

    Args:
        manifest: Of the bundle that answers.
        model: Its file that answers.
        data: That file's bytes; not copied, and dropped again where there is nothing to look into.
        context: What the runtime knows; `tell` brings news.
        share: Most processor time that taps take, of one core.
        clock: Wall clock, seconds since 1970 UTC.
        timer_ns: Monotonic nanoseconds.
        spent_ns: Processor time of the calling thread, nanoseconds.
        hardware: Reads the hardware; None: not measured.

    Raises:
        InputError: ``share`` is not above 0 and at most 1.
    """

    def __init__(
        self,
        manifest: BundleManifest,
        model: ModelFile,
        data: bytes,
        *,
        context: SiteContext | None = None,
        share: float = SHARE,
        clock: Callable[[], float] = time.time,
        timer_ns: Callable[[], int] = time.monotonic_ns,
        spent_ns: Callable[[], int] = time.thread_time_ns,
        hardware: HardwareReader | None = None,
    ) -> None:
        if not 0.0 < share <= 1.0:
            raise InputError(f"taps: share {share} of a core: expected above 0, at most 1")
        self._manifest, self._model, self._data = manifest, model, data
        self._context = context or SiteContext()
        self._share, self._clock, self._timer_ns, self._spent_ns = share, clock, timer_ns, spent_ns
        self._reader = hardware
        self._reason = why_not(model)
        self._sites = every_site(manifest, model)
        self._lock = threading.Condition()
        self._frame: list[Array] | None = None
        self._next_ns = -(2**62)
        self._busy = self._closed = False
        self._thread: threading.Thread | None = None
        self._probe: _Probe | None = None
        self._measures: dict[str, SiteMeasures] = {}
        self._hardware: HardwareContext | None = None
        self._hardware_at_ns = -(2**62)
        self.looks = 0

    def look(self, model_inputs: list[Array]) -> None:
        """Offer a frame, as `offer` does."""
        self.offer(model_inputs)

    def offer(self, model_inputs: Sequence[Array]) -> bool:
        """Offer a frame; never waits.

        Args:
            model_inputs: One array an app input, in the manifest's order: the model's own numbers, or the app's float32
                as the manifest describes it. They must not change afterwards.

        Returns:
            Whether it will be looked at; most are not, because no look is due.
        """
        if self._timer_ns() < self._next_ns or self._busy or self._closed:
            return False
        with self._lock:
            if self._timer_ns() < self._next_ns or self._busy or self._closed:
                return False
            self._busy = True
            self._frame = list(model_inputs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kasmina-taps", daemon=True)
                self._thread.start()
            self._lock.notify_all()
        return True

    def tell(self, context: SiteContext) -> None:
        """Replace what the runtime knows."""
        self._context = context

    @property
    def context(self) -> SiteContext:
        """What the runtime said last."""
        return self._context

    def hardware(self) -> HardwareContext | None:
        """As last read by the taps' thread; None before that."""
        return self._hardware

    def take(self, latency_us: float | None = None) -> list[SeedTelemetry]:
        """The whole model, then every seed site in the manifest's order, measured since the last take.

        Args:
            latency_us: Median latency, for what the change plan leaves of its ceiling.
        """
        with self._lock:
            figures = {site: measures.take() for site, measures in self._measures.items()}
        return report(
            self._manifest, self._sites, figures, self._context, now_s=self._clock(), latency_us=latency_us,
            reason=self._reason,
        )  # fmt: skip

    def wait(self, wait_s: float) -> bool:
        """Wait until the frame that was offered last has been looked at; whether that came to pass."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._busy, wait_s)

    def close(self) -> None:
        """End the thread; a look that is under way is waited for, `CLOSE_WAIT_S` seconds at most."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._frame is not None or self._closed)
                if self._closed:
                    self._busy = False
                    self._probe = None
                    return
                frame, self._frame = self._frame, None
            assert frame is not None
            began_ns = self._spent_ns()
            try:
                self._measure(frame)
            except InputError as exc:
                log.debug("taps: a frame was left out: %s", exc.message)
            except KasminaError as exc:
                self._give_up(exc.message)
            except Exception as exc:  # whatever an inference library raises, the app goes on
                log.exception("taps: this bundle is not looked into any more")
                self._give_up(type(exc).__name__)
            cost_ns = max(0, self._spent_ns() - began_ns)
            with self._lock:
                self._next_ns = self._timer_ns() + max(int(LEAST_INTERVAL_S * 1e9), int(cost_ns / self._share))
                self._busy = False
                self._lock.notify_all()

    def _measure(self, frame: list[Array]) -> None:
        now_ns = self._timer_ns()
        if self._reader is not None and now_ns - self._hardware_at_ns >= HARDWARE_INTERVAL_S * 1e9:
            self._hardware_at_ns = now_ns
            self._hardware = self._reader.read()
        if self._reason:
            return
        if self._probe is None:
            self._probe = _Probe(self._manifest, self._model, self._data)
            with self._lock:
                self._measures = self._probe.begin()
        found = self._probe.look(frame)
        with self._lock:
            found.into(self._measures)
            self.looks += 1

    def _give_up(self, reason: str) -> None:
        log.info("taps: %s is not looked into: %s", self._manifest.id, reason)
        with self._lock:
            self._reason, self._probe, self._measures, self._data = reason or "failed", None, {}, b""


@dataclass(frozen=True)
class _Found:
    """One look, ready to be added up."""

    look: ShadowLook
    idle: frozenset[str]
    silenced: str | None = None
    answers: list[Array] | None = None
    classifies: bool = False

    def into(self, measures: dict[str, SiteMeasures]) -> None:
        for site, seen in self.look.sites.items():
            nothing = np.zeros_like(seen.entry) if site in self.idle else None
            measures[site].add(seen.entry, seen.leave, nothing if seen.added is None else seen.added)
            if nothing is not None:
                measures[site].contributed(0.0)
        answer = self.look.answers[0]
        whole = measures[WHOLE]
        if self.silenced is None or self.answers is None:
            whole.add_answer(answer)
            return
        share = contribution(answer, self.answers[0], classifies=self.classifies)
        measures[self.silenced].contributed(share)
        without = self.answers[0] if self.silenced == WHOLE else None
        whole.add_answer(answer, without)


class _Probe:
    """The shadow and its copy with a graft silenced: at most two interpreters at a time."""

    def __init__(self, manifest: BundleManifest, model: ModelFile, data: bytes) -> None:
        self._shadow = Shadow(model, data)
        self._classifies = manifest.head == "classification"
        self._tensors = model.app_inputs
        self._converters = [
            InputConverter(tensor, manifest.preprocessing, io) if io.dtype == "float32" else None
            for tensor, io in zip(model.app_inputs, manifest.inputs, strict=True)
        ]
        grafted = self._shadow.grafted
        self._turns: list[tuple[str, tuple[str, ...]]] = [(site, (site,)) for site in grafted]
        if grafted:
            self._turns.append((WHOLE, grafted))
        grown = {graft.site for graft in manifest.grafts if not graft.mergeable}
        self._idle = frozenset(
            site for site, at in model.sites.items() if site in grown and at.input_index == at.output_index
        )  # an export leaves out a graft whose gate is 0
        self._copy: Shadow | None = None
        self._turn = self._left = 0
        self._looks = 0

    def begin(self) -> dict[str, SiteMeasures]:
        """Empty measures of every site and of the whole."""
        shadow = self._shadow
        weights: dict[str, list[Array]] = {site: [] for site in self._idle}
        weights.update({site: list(shadow.weights(site)) for site in shadow.grafted})
        whole = SiteMeasures([w for layers in weights.values() for w in layers] if weights else None)
        return {WHOLE: whole, **{site: SiteMeasures(weights.get(site)) for site in shadow.model.sites}}

    def look(self, frame: list[Array]) -> _Found:
        """One frame through the shadow, and in turn through a copy with a graft silenced."""
        if len(frame) != len(self._tensors):
            raise InputError(f"{self._shadow.model.file.path}: takes {len(self._tensors)} inputs, got {len(frame)}")
        inputs = [
            array
            if converter is None or str(array.dtype) == tensor.dtype != "float32"
            else converter.convert(converter.check(array)).copy()
            for array, tensor, converter in zip(frame, self._tensors, self._converters, strict=True)
        ]
        look = self._shadow.look(inputs)
        self._looks += 1
        if not self._turns or self._looks % SILENCE_EVERY:
            return _Found(look, self._idle)
        if self._left == 0:
            self._copy = None
            name, sites = self._turns[self._turn % len(self._turns)]
            self._copy = self._shadow.silence(sites)
            self._turn, self._left = self._turn + 1, TURN
        name, _ = self._turns[(self._turn - 1) % len(self._turns)]
        if self._copy is None:  # it cannot be silenced alone: not measured
            self._left = 0
            return _Found(look, self._idle)
        self._left -= 1
        answers: list[Array] = list(self._copy.look(inputs).answers)
        return _Found(look, self._idle, name, answers, self._classifies)


def open_taps(
    bundle: Bundle,
    model: ModelFile,
    settings: Settings,
    *,
    context: SiteContext | None = None,
    clock: Callable[[], float] = time.time,
) -> SiteTaps | None:
    """The taps of a bundle as the settings say; None where ``telemetry.taps`` is off.

    Raises:
        BundleError: This copy of the bundle does not hold the model's file.
    """
    if not settings["telemetry.taps"]:
        return None
    data = b"" if why_not(model) else bundle.read(model.file)
    return SiteTaps(bundle.manifest, model, data, context=context, clock=clock, hardware=HardwareReader())
