"""Figures of the seed sites while a network trains or answers, in the device's own rows.

A tap at every site hands over what enters, what the branch adds and what leaves. On most passes it hands over nothing:
every ``every``-th pass is looked at, and of its batch a few rows, evenly spaced. The formulas are the device's
(`kasmina_edge.telemetry.site_measures`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.contracts.manifest import DomainStatistics
from kasmina_edge.contracts.record import MAX_SEEDS, HardwareContext, SafetyScores, SeedTelemetry, TelemetryRecord
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.details import short
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.site_measures import SiteMeasures, contribution
from kasmina_edge.telemetry.site_report import WHOLE, SiteContext, report
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.telemetry.gradients import branch_weights, gradient_norms
from kasmina_trainer.telemetry.inputs import InputWindow
from kasmina_trainer.telemetry.looking import PassHook, SiteTap, Thread, frames_of, picked
from kasmina_trainer.telemetry.records import Window, record_of

Array = npt.NDArray[Any]


class SeedCollector:
    """Reads the seed sites of one network; a context manager, and then safe for several threads.

    Outputs and gradients stay what they are, to the bit. Enter and leave it, and grow and remove, while no other
    thread runs the network.

    Args:
        network: What to read; its host is not touched.
        every: Every so many passes, one is looked at.
        frames: Rows looked at of such a pass.
        classifies: The network answers logits; otherwise answers are compared by their distance.
        context: Change plan and scores that are known here; ages count from growth where it says nothing.
        domains: What inputs are expected, for the drift score; `kasmina_edge.safety.drift.domain_statistics` gives it.
        hardware: Reads the machine; None: not measured.
        clock: Wall clock, seconds since 1970 UTC.

    Raises:
        InputError: ``every`` or ``frames`` is below 1.
    """

    def __init__(
        self,
        network: SeededNetwork,
        *,
        every: int = 16,
        frames: int = 8,
        classifies: bool = True,
        context: SiteContext | None = None,
        domains: Sequence[DomainStatistics] = (),
        hardware: HardwareReader | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if min(every, frames) < 1:
            raise InputError(f"seed collector: every {every} passes, {frames} frames: expected at least 1 of each")
        self._network, self._every, self._frames, self._classifies = network, every, frames, classifies
        self._context, self._hardware, self._clock = context or SiteContext(), hardware, clock
        self._sites = network.sites[: MAX_SEEDS - 1]
        self._layouts = {name: port.layout for name, port in network.ports.items()}
        self._lock, self._thread, self._open = threading.Lock(), Thread(), ExitStack()
        self._passes = self._sequence = 0
        self._branches: dict[str, nn.Module | None] = {}
        self._measures: dict[str, SiteMeasures] = {WHOLE: SiteMeasures()}
        self._window = InputWindow(domains, clock())

    def __enter__(self) -> SeedCollector:
        """Begin to look.

        Raises:
            InputError: Another collector looks at this network.
        """
        taken = [name for name in self._sites if self._network.site(name).tap is not None]
        if taken:
            raise InputError(f"sites {', '.join(taken)} are looked at by another collector", "Leave that one first.")
        with ExitStack() as stack:
            stack.enter_context(self._network.watched())
            for name in self._sites:
                site = self._network.site(name)
                site.tap = SiteTap(self._see, name, self._looks)
                stack.callback(setattr, site, "tap", None)
            hooks = (
                self._network.register_forward_pre_hook(PassHook(self._begin)),
                self._network.register_forward_hook(PassHook(self._end), always_call=True),
            )
            for hook in hooks:
                stack.callback(hook.remove)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more; what was measured stays and can be taken."""
        self._open.close()

    def tell(self, context: SiteContext) -> None:
        """Replace what is known besides."""
        self._context = context

    def hardware(self) -> HardwareContext | None:
        """The machine as it is now; None: not measured."""
        return None if self._hardware is None else self._hardware.read()

    def gradient_norms(self) -> dict[str, float]:
        """As `kasmina_trainer.telemetry.gradient_norms`: of the last backward pass, by site."""
        return gradient_norms(self._network)

    def contribution(self, x: torch.Tensor | npt.NDArray[np.float32]) -> dict[str, float]:
        """How far the answers move when each graft is silenced; the rows that `take` gives then say so too.

        Call it from the thread that trains, between two steps.

        Args:
            x: Inputs on the network's device.  # (N, ...)

        Returns:
            Mean over the inputs by site, 0 to 1; all grafts together under "". Inputs whose answer is not finite are
            left out, and a site with no others.
        """
        grown = [name for name in self._network.growths if name in self._sites]
        if not grown:
            return {}
        whole = torch.as_tensor(np.array(x)) if isinstance(x, np.ndarray) else x
        answers = self._answers(whole, ())
        found: dict[str, float] = {}
        for site, silenced in (*((name, (name,)) for name in grown), (WHOLE, tuple(grown))):
            without = self._answers(whole, silenced)
            pairs = zip(answers, without, strict=True)
            shares = [s for a, b in pairs if (s := contribution(a, b, classifies=self._classifies)) is not None]
            with self._lock:
                if shares:
                    found[site] = math.fsum(shares) / len(shares)
                    self._of(site).contributed(found[site])
                if site == WHOLE:
                    for answer, silent in zip(answers, without, strict=True):
                        self._measures[WHOLE].add_answer(answer, silent)
        return found

    def take(self, latency_us: float | None = None) -> list[SeedTelemetry]:
        """The whole model, then every seed site in order of flow, measured since the last take.

        Args:
            latency_us: Median latency, for what the change plan leaves of its ceiling.
        """
        return self._taken(latency_us)[1]

    def record(self, *, bundle: str = "", latency_us: float | None = None) -> TelemetryRecord:
        """One telemetry record of what passed since the last one, as a device sends it.

        Args:
            bundle: What answers; the host's digest when left out.
            latency_us: As in `take`.
        """
        window, rows = self._taken(latency_us)
        named = bundle or self._network.host_hash
        self._sequence += 1
        return record_of(rows, window, bundle=named, sequence=self._sequence - 1, hardware=self.hardware())

    def _taken(self, latency_us: float | None) -> tuple[Window, list[SeedTelemetry]]:
        now_s = self._clock()
        with self._lock:
            window = self._window.take(now_s)
            return window, self._rows(now_s, latency_us, window.drift)

    def _rows(self, now_s: float, latency_us: float | None, drift: float | None) -> list[SeedTelemetry]:
        """The rows of `report`, with what only a trainer knows."""
        network = self._network
        weights = {name: self._weights(name) for name in self._sites}
        for name, layers in weights.items():
            self._of(name).weigh(layers)
        every = [layer for layers in weights.values() for layer in layers or ()]
        self._measures[WHOLE].weigh(every if network.growths else None)
        figures = {name: measures.take() for name, measures in self._measures.items()}
        rows = report(network, self._sites, figures, self._context, now_s=now_s, latency_us=latency_us)
        norms = gradient_norms(network)
        ages = {name: self._age(name, now_s) for name in self._sites}
        known = [age for age in ages.values() if age is not None]
        ages[WHOLE] = max(known, default=None)
        if norms:
            norms[WHOLE] = math.hypot(*norms.values())
        found = []
        for row in rows:
            news: dict[str, Any] = {}
            if row.site in norms:
                news["gradient_norm"] = short(norms[row.site], 5)
            if self._context.committed_s is None:
                news["age_s"] = ages.get(row.site)
            if row.site == WHOLE and drift is not None:
                news["safety"] = (row.safety or SafetyScores()).model_copy(update={"drift": short(drift, 5)})
            found.append(row.model_copy(update=news))
        return found

    def _age(self, site: str, now_s: float) -> float | None:
        born_s = self._network.lifecycle.born_s(site)
        return None if born_s is None or born_s > now_s else round(now_s - born_s, 1)

    def _weights(self, site: str) -> list[Array] | None:
        found = branch_weights(self._network.site(site))
        return [] if found is None and site in self._network.growths else found

    def _of(self, site: str) -> SiteMeasures:
        """The measures of what stands at a site now: another graft begins anew."""
        branch = None if site == WHOLE else self._network.site(site).branch
        if site not in self._measures or self._branches.get(site) is not branch:
            self._measures[site], self._branches[site] = SiteMeasures(), branch
        return self._measures[site]

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...], __: Any = None) -> None:
        """A pass begins."""
        thread = self._thread
        thread.seen = None
        if thread.silenced is not None or not inputs or not isinstance(inputs[0], torch.Tensor):
            return
        batch = inputs[0]
        with self._lock:
            self._passes += 1
            self._window.frames += len(batch)
            looked = self._passes % self._every == 1 or self._every == 1
        if looked:
            thread.seen = []
            thread.inputs = picked(batch, self._frames)

    def _looks(self) -> bool:
        return self._thread.seen is not None or self._thread.silenced is not None

    def _see(self, site: str, entry: torch.Tensor, added: torch.Tensor | None, grown: torch.Tensor) -> torch.Tensor:
        """Something flows through a site."""
        thread = self._thread
        if thread.silenced is not None and site in thread.silenced:
            return entry
        if thread.seen is not None:
            layout = self._layouts[site]
            took = [None if t is None else frames_of(picked(t, self._frames), layout) for t in (entry, added)]
            leave = took[0] if added is None else frames_of(picked(grown, self._frames), layout)
            thread.seen.append((site, took[0], took[1], leave))
        return grown

    def _end(self, _: nn.Module, __: tuple[Any, ...], output: Any = None) -> None:
        """A pass ends, perhaps in an error: then there is no output, and nothing is counted."""
        thread = self._thread
        seen, thread.seen = thread.seen, None
        answer = output[0] if isinstance(output, tuple) and output else output
        if seen is None or not isinstance(answer, torch.Tensor):
            return
        answers = picked(answer, self._frames)
        with self._lock:
            self._window.add(thread.inputs)
            for row in answers:
                self._measures[WHOLE].add_answer(row)
            for site, entry, added, leave in seen:
                measures = self._of(site)
                idle = added is None and site in self._network.growths  # a graft that adds nothing by design
                for row in range(len(entry)):
                    more = np.zeros_like(entry[row]) if idle else None if added is None else added[row]
                    measures.add(entry[row], leave[row], more)

    def _answers(self, x: torch.Tensor, silenced: Collection[str]) -> Array:
        """The first output in evaluation mode with some grafts adding nothing."""
        was_training = self._network.training
        with self._silencing(silenced), torch.no_grad():
            self._network.eval()
            try:
                answer = self._network(x)
            finally:
                self._network.train(was_training)
        first = answer[0] if isinstance(answer, tuple) else answer
        return np.array(first.float().cpu().numpy())

    @contextmanager
    def _silencing(self, sites: Collection[str]) -> Iterator[None]:
        if not all(self._network.site(name).tap is not None for name in self._sites):
            raise InputError("this collector is not looking at its network", "Use it in a with statement.")
        self._thread.silenced = frozenset(sites)
        try:
            yield
        finally:
            self._thread.silenced = None
