"""The taps' manners: their share of a core, their queue of one, their thread; and what they say without a shadow."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from worlds.bundles import compiled_bundle, make_bundle, make_frames, make_graft
from worlds.telemetry import NOW, Clock, make_plan

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile, SiteTensors
from kasmina_edge.contracts.record import SafetyScores
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.settings import Settings
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.site_report import SiteContext
from kasmina_edge.telemetry.taps import LEAST_INTERVAL_S, SiteTaps, open_taps

FRAMES = make_frames(8)  # (N, 1, 16, 16, 1)
SITES = {"s1": SiteTensors(input_index=16, output_index=16), "s2": SiteTensors(input_index=18, output_index=20)}


def with_sites(bundle: Bundle, **changes: Any) -> tuple[Bundle, ModelFile]:
    model = bundle.model_for("litert").model_copy(update={"sites": SITES, **changes})
    return Bundle(bundle.manifest.model_copy(update={"models": (model,)}), bundle.files), model


class Hand:
    """Nanoseconds moved by hand."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Costly:
    """Processor time that rises by as much with every second reading: what one look costs."""

    def __init__(self, cost_ns: int) -> None:
        self.cost_ns, self.readings = cost_ns, 0

    def __call__(self) -> int:
        self.readings += 1
        return self.readings // 2 * self.cost_ns


@pytest.fixture
def opened() -> Iterator[list[SiteTaps]]:
    taps: list[SiteTaps] = []
    yield taps
    for one in taps:
        one.close()


def open_on(opened: list[SiteTaps], **changes: Any) -> SiteTaps:
    bundle, model = with_sites(make_bundle())
    taps = SiteTaps(bundle.manifest, model, bundle.read(model.file), **changes)
    opened.append(taps)
    return taps


@pytest.mark.parametrize("cost_ms", [0.1, 5.0, 400.0])
def test_the_share_of_a_core_is_kept_whatever_a_look_costs(opened: list[SiteTaps], cost_ms: float) -> None:
    timer, spent = Hand(), Costly(int(cost_ms * 1e6))
    taps = open_on(opened, timer_ns=timer, spent_ns=spent, share=0.01)
    end_ns, step_ns = int(120e9), int(0.05e9)
    while timer.now < end_ns:
        if taps.offer([FRAMES[0]]):
            assert taps.wait(10.0)
        timer.now += step_ns
    assert taps.looks * cost_ms * 1e6 <= 0.01 * end_ns + cost_ms * 1e6  # the first look comes before its rest
    assert taps.looks * max(cost_ms * 1e8, LEAST_INTERVAL_S * 1e9) >= 0.8 * end_ns  # and no needless rest
    assert 2 <= taps.looks <= 120 / LEAST_INTERVAL_S + 1


def test_real_looks_cost_what_they_may(opened: list[SiteTaps]) -> None:
    """Against the clock of the process: offering as fast as can be, the thread's own time stays within its share."""
    spent: list[int] = []

    def spent_ns() -> int:
        spent.append(__import__("time").thread_time_ns())
        return spent[-1]

    timer = Hand()
    taps = open_on(opened, spent_ns=spent_ns, timer_ns=timer)
    for _ in range(400):
        timer.now += int(0.05e9)
        taps.offer([FRAMES[0]])
        assert taps.wait(10.0)
    costs = np.diff(spent)[::2]
    assert len(costs) == taps.looks > 10 and costs.sum() <= 0.01 * timer.now + costs[0]


def test_offering_never_waits_and_holds_one_frame(opened: list[SiteTaps]) -> None:
    """The thread is stopped in the middle of a look: offers are refused at once, nothing piles up."""
    inside, go_on = threading.Event(), threading.Event()

    def spent_ns() -> int:
        inside.set()
        assert go_on.wait(20.0)
        return 0

    timer = Hand()
    taps = open_on(opened, timer_ns=timer, spent_ns=spent_ns)
    assert taps.offer([FRAMES[0]]) and inside.wait(20.0)
    held = [np.array(FRAMES[1]) for _ in range(50)]
    gone = [weakref.ref(array) for array in held]
    timer.now += 10**12
    assert not any(taps.offer([array]) for array in held)
    taps.take()
    del held
    gc.collect()
    assert all(ref() is None for ref in gone)
    go_on.set()
    assert taps.wait(20.0) and taps.looks == 1


def test_the_thread_has_the_app_s_rank(opened: list[SiteTaps]) -> None:
    """A thread of low rank is starved by its neighbours, and starves the app while it holds Python's lock."""
    ranks: list[int] = []

    def spent_ns() -> int:
        ranks.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return 0

    taps = open_on(opened, spent_ns=spent_ns)
    assert taps.offer([FRAMES[0]]) and taps.wait(20.0)
    assert ranks[0] == os.getpriority(os.PRIO_PROCESS, 0)


def test_nothing_runs_before_the_first_frame_and_nothing_after_close(opened: list[SiteTaps]) -> None:
    threads = threading.active_count()
    taps = open_on(opened)
    assert threading.active_count() == threads and taps.take()[0].looks == 0
    assert taps.offer([FRAMES[0]]) and taps.wait(20.0)
    taps.close()
    taps.close()
    assert threading.active_count() == threads and not taps.offer([FRAMES[0]])
    assert taps.take()[0].looks == 1


def test_app_frames_and_model_numbers_are_one(opened: list[SiteTaps]) -> None:
    _, model = with_sites(make_bundle())
    tensor = model.inputs[0]
    assert tensor.scale is not None and tensor.zero_point is not None
    quantized = np.clip(np.rint(FRAMES[2] / tensor.scale) + tensor.zero_point, -128, 127).astype(np.int8)
    found = []
    for frame in (FRAMES[2], quantized):
        taps = open_on(opened)
        assert taps.offer([frame]) and taps.wait(20.0)
        found.append(taps.take())
    assert found[0] == found[1] and found[0][2].activation_variance is not None


def test_a_site_that_is_no_sum_has_no_branch_and_one_that_changes_shape_no_drift(opened: list[SiteTaps]) -> None:
    taps = open_on(opened)
    assert taps.offer([FRAMES[0]]) and taps.wait(20.0)
    whole, bare, other = taps.take()
    assert (whole.site, bare.site, other.site) == ("", "s1", "s2") and bare.interface_drift == 0.0
    assert other.weights_l1 is None and other.activation_variance is not None and other.interface_drift is None


def test_one_bad_frame_costs_itself(opened: list[SiteTaps]) -> None:
    timer = Hand()
    taps = open_on(opened, timer_ns=timer)
    for frames in ([np.full((1, 16, 16, 1), np.nan, np.float32)], [FRAMES[0], FRAMES[0]], [np.zeros(3)], [FRAMES[0]]):
        timer.now += 10**12
        assert taps.offer(frames) and taps.wait(20.0)
    assert taps.looks == 1 and taps.take()[0].reason is None


@pytest.mark.parametrize("data", [b"", b"\0" * 100])
def test_a_file_that_does_not_load_is_told_and_left_alone(opened: list[SiteTaps], data: bytes) -> None:
    bundle, model = with_sites(make_bundle())
    timer = Hand()
    taps = SiteTaps(bundle.manifest, model, data, timer_ns=timer)
    opened.append(taps)
    for _ in range(2):
        timer.now += 10**12
        assert taps.offer([FRAMES[0]]) and taps.wait(20.0)
    whole = taps.take()[0]
    assert whole.reason is not None and "TFLite" in whole.reason and whole.measured == 0


def test_sites_that_point_nowhere_are_told(opened: list[SiteTaps]) -> None:
    bundle, model = with_sites(make_bundle(), sites={"s1": SiteTensors(input_index=1, output_index=999)})
    taps = SiteTaps(bundle.manifest, model, bundle.read(model.file))
    opened.append(taps)
    assert taps.offer([FRAMES[0]]) and taps.wait(20.0)
    assert "999" in (taps.take()[0].reason or "")


def test_a_compiled_file_is_not_looked_into_and_the_rest_is_told(opened: list[SiteTaps]) -> None:
    bundle = compiled_bundle()
    model = bundle.model_for("litert", compiled_for="edgetpu")
    clock = Clock()
    context = SiteContext(committed_s=NOW - 60.0, self_test=1.0, probe_accuracy=0.97, plan=make_plan(None))
    taps = open_taps(bundle, model, Settings.read(None, environ={}), context=context, clock=clock)
    assert taps is not None
    opened.append(taps)
    assert taps.offer([FRAMES[0]]) and taps.wait(20.0)
    (whole,) = taps.take(latency_us=30.0)
    assert whole.reason == "compiled for the edgetpu: its inside cannot be read"
    assert whole.age_s == 60.0 and whole.safety == SafetyScores(self_test=1.0, probe_accuracy=0.97)
    assert whole.budget is not None and whole.budget.measured == 0b1  # no ceiling, nothing known of captures
    assert taps.hardware() is not None and taps.looks == 0


def test_what_is_not_known_is_not_measured(opened: list[SiteTaps]) -> None:
    clock = Clock()
    bundle, model = with_sites(make_bundle(version="1.1.0", grafts=(make_graft(),)))
    taps = SiteTaps(bundle.manifest, model, b"", clock=clock)
    assert taps.take()[0].measured == 0
    taps.tell(SiteContext(committed_s=NOW + 5.0))  # the clock was set back since
    assert taps.take()[0].age_s is None
    taps.tell(SiteContext(committed_s=NOW - 5.0))
    rows = taps.take()
    assert [(row.site, row.blueprint, row.age_s) for row in rows] == [
        ("", None, 5.0), ("s1", "depthwise", 5.0), ("s2", None, None),
    ]  # fmt: skip
    assert taps.context.committed_s == NOW - 5.0


def test_capture_days_count_from_the_first_capture(opened: list[SiteTaps]) -> None:
    plan = make_plan("a" * 64)
    assert plan.capture is not None
    plan = plan.model_copy(update={"capture": plan.capture.model_copy(update={"max_days": 7.0})})
    clock = Clock()
    taps = open_on(opened, clock=clock, context=SiteContext(plan=plan, captured=(1, 1000, NOW - 2 * 86_400.0)))
    budget = taps.take()[0].budget
    assert budget is not None and budget.capture_days == pytest.approx(5.0)
    assert (budget.capture_frames, budget.capture_bytes) == (4, 99_000)
    taps.tell(SiteContext(plan=plan, captured=(0, 0, None)))
    budget = taps.take()[0].budget
    assert budget is not None and budget.capture_days == 7.0


def test_settings_turn_them_off_and_a_missing_file_is_told() -> None:
    bundle, model = with_sites(make_bundle())
    assert open_taps(bundle, model, Settings.read(None, environ={"KASMINA_TELEMETRY_TAPS": "false"})) is None
    with pytest.raises(BundleError):
        open_taps(Bundle(bundle.manifest, {}), model, Settings.read(None, environ={}))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="share"):
            SiteTaps(bundle.manifest, model, b"", share=share, hardware=HardwareReader())
