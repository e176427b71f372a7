"""Estimates say what they know and how they know it; events are functions of time and a seed; timelines add up."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.bundles import GOLDEN, make_profile

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator import Estimate, HardwareContext, OpWork, Workload, arena_bytes, read_workload
from kasmina_edge.hardware_simulator.context import LAYERS, layer_of
from kasmina_edge.hardware_simulator.events import (
    AllCourses,
    Contention,
    Effect,
    Event,
    MemoryPressure,
    ThermalCourse,
    ThermalThrottling,
)
from kasmina_edge.hardware_simulator.layer import Costs, Known, OpCost, SimulationLayer
from kasmina_edge.hardware_simulator.networks import table
from kasmina_edge.hardware_simulator.tflm_structures import structure_bytes
from kasmina_edge.hardware_simulator.timeline import Roof, roof_of, roofline, timeline

DIGITS = read_workload((GOLDEN / "digits.tflite").read_bytes(), "digits")
ANCHOR = {"network": "somewhere", "latency_ms": 1.0, "source": "tests"}


class TenPerOp(SimulationLayer):
    """10 us an operation and 5 us beside them."""

    kind: ClassVar[str] = "cpu"

    def __init__(self, profile: Any, energy_uj: float | None = None) -> None:
        super().__init__(profile)
        self._energy_uj = energy_uj

    def costs(self, workload: Workload) -> Costs:
        ops = tuple(OpCost(10.0, "cpu", "compute") for _ in workload.ops)
        return Costs(ops, 5.0, 0.2, ("a note",), self._energy_uj)


def estimate(energy_uj: float | None = None, **changes: Any) -> Estimate:
    profile = make_profile(**{"anchors": [ANCHOR], **changes})
    return HardwareContext(profile, layer=TenPerOp(profile, energy_uj)).estimate(DIGITS)


# ---- estimates


def test_an_estimate_is_the_layers_costs_with_memory_and_band() -> None:
    found = estimate()
    assert found.latency_ms == pytest.approx(0.095) and len(found.ops) == len(DIGITS.ops) == 9
    assert (found.band, found.band_text, found.fixed_us) == (0.2, "± 20 %", 5.0)
    assert (found.arena_bytes, found.constant_bytes) == (arena_bytes(DIGITS), DIGITS.constant_bytes)
    assert found.notes == ("a note",) and found.fits and (found.network, found.profile) == ("digits", "test-cpu")


def test_without_anchors_and_coefficients_nothing_is_estimated() -> None:
    with pytest.raises(InputError, match="no anchors and no coefficients") as caught:
        HardwareContext(make_profile())
    assert "kasmina-edge profile calibrate" in caught.value.next_step


def test_without_anchors_the_band_is_unknown_and_said_to_be() -> None:
    found = estimate(anchors=[], coefficients={"something_us": 1.0})
    assert found.band is None and found.band_text == "band unknown"
    assert any("no anchors" in note for note in found.notes)


def test_multiplications_that_nobody_counts_leave_no_band() -> None:
    profile = make_profile(anchors=[ANCHOR])
    context = HardwareContext(profile, layer=TenPerOp(profile))
    product = OpWork("einsum", ((100, 300), (100, 300)), ((100, 100),), "float32", place="op 0 Einsum")
    found = context.estimate(Workload("products", (product,)))
    assert found.band is None and "op 0 Einsum are not counted: the estimate is too low" in " ".join(found.notes)
    plain = context.estimate(Workload("plain", (OpWork("relu", ((1, 8),), ((1, 8),), "float32"),)))
    assert plain.band == 0.2 and "not counted" not in " ".join(plain.notes)


def test_a_layer_refuses_a_profile_of_another_kind() -> None:
    with pytest.raises(InputError, match="kind is cpu"):
        type("Other", (TenPerOp,), {"kind": "npu"})(make_profile())


@pytest.mark.parametrize(
    ("given_uj", "changes", "energy_uj", "how"),
    [
        (7.0, {"energy_pj_per_mac": 10.0}, 7.0, "profile: energy of its anchors"),
        (None, {"energy_pj_per_mac": 10.0, "idle_power_w": 0.1, "power_w": 9.0}, 0.26096 + 9.5,
         "profile: pJ per MAC + idle power"),
        (None, {"energy_pj_per_mac": 10.0}, 0.26096, "profile: pJ per MAC; idle power unknown"),
        (None, {"power_w": 2.0}, 190.0, "power x time"),
        (None, {}, None, "unknown: the profile gives neither pJ per MAC nor power"),
    ],
)  # fmt: skip
def test_energy_says_where_it_comes_from(
    given_uj: float | None, changes: dict[str, Any], energy_uj: float | None, how: str
) -> None:
    found = estimate(given_uj, **changes)
    assert found.energy_how == how
    assert found.energy_uj == (None if energy_uj is None else pytest.approx(energy_uj))


def test_memory_is_told_with_both_numbers() -> None:
    arena, constants = arena_bytes(DIGITS), DIGITS.constant_bytes
    one = estimate(ram_bytes=arena + constants)
    assert one.fits and [(m.memory, m.needed_bytes, m.there_bytes) for m in one.memory] == [
        ("RAM", arena + constants, arena + constants)
    ]
    short = estimate(ram_bytes=arena + constants - 1)
    assert not short.fits and f"RAM: {arena + constants} bytes needed, {arena + constants - 1} there" in short.notes
    flash = estimate(ram_bytes=arena, flash_bytes=constants)
    assert flash.fits and [m.memory for m in flash.memory] == ["RAM", "flash"]
    assert not estimate(ram_bytes=arena, flash_bytes=constants - 1).fits
    streams = estimate(parameter_sram_bytes=100)
    assert streams.fits and not streams.memory[-1].ok, "parameters beyond the SRAM stream"


def test_a_microcontroller_s_runtime_takes_memory_of_its_own() -> None:
    class OnMcu(TenPerOp):
        kind: ClassVar[str] = "mcu"

    def needed(runtime: str) -> tuple[int, tuple[str, ...]]:
        profile = make_profile(anchors=[ANCHOR], kind="mcu", runtime=runtime, flash_bytes=10**6)
        found = HardwareContext(profile, layer=OnMcu(profile)).estimate(DIGITS)
        return found.memory[0].needed_bytes, found.notes

    packed = arena_bytes(DIGITS, planner="tflm")
    assert needed("TFLite Micro with CMSIS-NN")[0] == packed + structure_bytes(DIGITS, 4)
    assert needed("X-CUBE-AI") == (
        packed,
        ("a note", "the arena is packed as TFLite Micro does it; X-CUBE-AI may need less"),
    )


def test_what_was_found_of_an_operation_is_remembered_until_there_are_too_many() -> None:
    asked: list[str] = []

    def work_out(op: OpWork) -> int:
        asked.append(op.kind)
        return len(asked)

    add, mul, sub = (OpWork(kind, ((1, 8),), ((1, 8),), "int8") for kind in ("add", "mul", "sub"))
    known = Known(work_out, most=2)
    assert [known[op] for op in (add, mul, add, OpWork("add", ((1, 8),), ((1, 8),), "int8", place="elsewhere"))] == [
        1, 2, 1, 1,
    ]  # fmt: skip
    assert [known[sub], known[sub], known[mul], known[add]] == [3, 3, 4, 5]
    assert len(known) <= 2


@pytest.mark.parametrize("name", ["coral-usb", "stm32l4r5", "raspberry-pi-4"])
def test_what_was_asked_before_changes_no_estimate(name: str) -> None:
    networks = [table(n) for n in ("mobilenet-v1", "vgg16", "mlperf-tiny-kws", "mobilenet-v2-ssd")]
    context = HardwareContext(load_profile(name))
    for _ in range(2):
        assert [context.estimate(n) for n in networks] == [
            HardwareContext(load_profile(name)).estimate(n) for n in networks
        ]


def test_every_kind_of_profile_has_a_layer() -> None:
    assert set(LAYERS) == {"cpu", "edgetpu", "mcu", "npu"}
    found = HardwareContext(load_profile("coral-usb")).estimate(table("mobilenet-v1"))
    assert found.latency_ms > 0 and found.band is not None and {op.where for op in found.ops} == {"edgetpu"}
    assert layer_of(load_profile("coral-usb")).kind == "edgetpu"


# ---- events

HEAT = ThermalThrottling(busy_w=4.0, idle_w=1.0, resistance_k_per_w=20.0, time_constant_s=30.0, clock_share=0.4)


def factors(event: Event, seed: int, times: list[float], busy: float = 1.0) -> list[Effect]:
    course, last, found = event.begin(random.Random(seed)), 0.0, []
    for now in times:
        found.append(course.step(now, (now - last) * busy))
        last = now
    return found


def heated(event: ThermalThrottling, busy: float, seconds: int = 600) -> tuple[float, list[bool]]:
    course, slowed = event.begin(random.Random(0)), []
    assert isinstance(course, ThermalCourse)
    for now in range(1, seconds + 1):
        slowed.append(course.step(float(now), busy).latency_factor > 1)
    return course.temperature_c, slowed


times_strategy = st.lists(st.floats(0, 500, allow_nan=False), min_size=1, max_size=30).map(sorted)


@given(times_strategy, st.integers(0, 1000))
def test_one_seed_gives_one_course(times: list[float], seed: int) -> None:
    for event in (HEAT, Contention(5.0, 2.0), MemoryPressure(5.0, 2.0, taken_bytes=10**6)):
        assert factors(event, seed, times) == factors(event, seed, times)
        assert all(effect.latency_factor >= 1.0 and effect.taken_bytes >= 0 for effect in factors(event, seed, times))


@given(times_strategy, times_strategy, st.integers(0, 1000))
def test_how_often_one_asks_changes_nothing(times: list[float], more: list[float], seed: int) -> None:
    event = Contention(5.0, 2.0)
    alone = dict(zip(times, factors(event, seed, times), strict=True))
    among = dict(zip(sorted([*times, *more]), factors(event, seed, sorted([*times, *more])), strict=True))
    assert all(among[t] == effect for t, effect in alone.items())


def test_another_seed_gives_another_course() -> None:
    """Negative control."""
    times = [float(t) for t in range(200)]
    assert factors(Contention(5.0, 2.0), 1, times) != factors(Contention(5.0, 2.0), 2, times)


def test_neighbours_are_there_as_long_as_they_say() -> None:
    found = factors(Contention(mean_pause_s=6.0, mean_length_s=2.0, share=0.75), 0, [i / 4 for i in range(80_000)])
    there = [effect.latency_factor for effect in found if effect.causes]
    assert len(there) / len(found) == pytest.approx(2 / 8, abs=0.03)
    assert set(there) == {4.0}


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_work_is_never_cooler(one: float, other: float) -> None:
    less, more = sorted((one, other))
    free = ThermalThrottling(busy_w=4.0, trip_c=1000.0, recover_c=999.0)
    assert heated(free, less, 60)[0] <= heated(free, more, 60)[0] + 1e-9


def test_heat_ends_where_power_times_resistance_says_and_throttles_on_the_way() -> None:
    never = ThermalThrottling(busy_w=4.0, idle_w=1.0, trip_c=500.0, recover_c=400.0, time_constant_s=30.0)
    assert heated(never, 1.0)[0] == pytest.approx(25.0 + 4.0 * 20.0, abs=1e-3)
    assert heated(never, 0.0)[0] == pytest.approx(25.0 + 1.0 * 20.0, abs=1e-3)
    temperature, slowed = heated(HEAT, 1.0)
    assert HEAT.recover_c - 1 < temperature < HEAT.trip_c + 1
    first = slowed.index(True)
    assert first > 10 and not all(slowed[first:]), "it cools while it is slowed, and speeds up again"
    assert not any(heated(HEAT, 0.3)[1]), "a third of the work never gets there"
    hot = ThermalThrottling(busy_w=4.0, idle_w=1.0, time_constant_s=30.0, clock_share=0.4, ambient_c=40.0)
    assert heated(hot, 1.0)[1].index(True) < first, "a hot day throttles sooner"


def test_time_goes_forward_and_holds_what_was_computed() -> None:
    course = HEAT.begin(random.Random(0))
    course.step(10.0, 5.0)
    with pytest.raises(InputError, match="back"):
        course.step(9.0)
    with pytest.raises(InputError, match="were computed"):
        course.step(11.0, 2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ThermalThrottling(busy_w=1.0, clock_share=1.0),
        lambda: ThermalThrottling(busy_w=1.0, recover_c=90.0),
        lambda: ThermalThrottling(busy_w=1.0, idle_w=2.0),
        lambda: Contention(0.0, 1.0),
        lambda: Contention(1.0, 1.0, share=1.0),
        lambda: MemoryPressure(1.0, 1.0, taken_bytes=-1),
        lambda: MemoryPressure(1.0, 1.0, latency_factor=0.5),
    ],
)
def test_events_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        wrong()


def test_several_events_multiply_and_one_more_changes_no_other() -> None:
    times = [float(t) for t in range(100)]

    def run(*events: Event) -> list[Effect]:
        course, found, last = AllCourses(events, 7), [], 0.0
        for now in times:
            found.append(course.step(now, now - last))
            last = now
        return found

    alone, both = run(Contention(5.0, 5.0)), run(Contention(5.0, 5.0), MemoryPressure(5.0, 5.0, 100, 3.0))
    assert all(b.latency_factor in (a.latency_factor, 3 * a.latency_factor) for a, b in zip(alone, both, strict=True))
    assert any(b.taken_bytes and len(b.causes) == 2 for b in both) and any(not b.causes for b in both)


# ---- timelines


def test_a_timeline_adds_up_to_the_estimate() -> None:
    found = estimate()
    slices = timeline(DIGITS, found)
    assert slices[0].begin_us == 5.0 and slices[-1].begin_us + slices[-1].latency_us == pytest.approx(95.0)
    assert [s.place for s in slices][:2] == ["op 0 PAD", "op 1 DEPTHWISE_CONV_2D"]
    assert sum(s.macs for s in slices) == DIGITS.macs
    assert max(s.live_bytes for s in slices) <= found.arena_bytes


def test_a_roofline_is_bytes_and_peak() -> None:
    profile = make_profile(anchors=[ANCHOR], peak_int8_tops=4.0, memory_bytes_per_s=1e9)
    points = roofline(DIGITS, HardwareContext(profile, layer=TenPerOp(profile)).estimate(DIGITS), profile)
    assert len(points) == sum(op.macs > 0 for op in DIGITS.ops) == 6
    op = DIGITS.ops[1]
    assert points[0].intensity == op.macs / (op.input_bytes + op.output_bytes + op.constant_bytes)
    assert points[0].achieved_gmacs == pytest.approx(op.macs / 10e-6 / 1e9)
    assert points[0].roof_gmacs == pytest.approx(points[0].intensity), "1 GB/s: the memory is the roof"
    assert roof_of(profile).at(1e9) == 2000.0, "4 TOPS are 2,000 billion multiply-accumulates"
    assert Roof(None, None).at(1.0) is None


def test_an_estimate_of_another_workload_is_refused() -> None:
    with pytest.raises(InputError, match="9 operations"):
        timeline(Workload("other", (OpWork("relu", ((1, 2),), ((1, 2),), "int8"),)), estimate())
