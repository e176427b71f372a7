"""A device is rehearsed: the real engine's bits, the target's time, and everywhere it is said to be simulated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds.bundles import digits, make_bundle, make_profile

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.engines import Engine, engine_types, open_engine, self_test
from kasmina_edge.engines.choice import engine_names
from kasmina_edge.errors import EngineError
from kasmina_edge.hardware_simulator import HardwareContext, read_workload
from kasmina_edge.hardware_simulator.events import Contention, MemoryPressure, ThermalThrottling
from kasmina_edge.hardware_simulator.simulated_engine import RealClock, SimulatedEngine, VirtualClock, rehearse
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import SlotStore
from kasmina_edge.wrapping.proof import agreements

CORAL = load_profile("coral-usb")
Deploy = Callable[..., SlotStore]


@pytest.fixture
def bundle() -> Bundle:
    return make_bundle()


def opened(bundle: Bundle, profile: Any = CORAL) -> SimulatedEngine:
    engine = open_engine(bundle, profile, engine="simulated")
    assert isinstance(engine, SimulatedEngine)
    return engine


def frame(bundle: Bundle) -> dict[str, Any]:
    (tensor,) = bundle.model_for("litert").app_inputs
    return {tensor.name: np.zeros(tensor.shape, tensor.dtype)}


def predicted_ms(bundle: Bundle) -> float:
    work = read_workload(bundle.read(bundle.model_for("litert").file))
    return HardwareContext(CORAL).estimate(work).latency_ms


# ---- what it answers, and when


def test_the_answers_are_the_real_engines_bits(bundle: Bundle) -> None:
    with rehearse(clock=VirtualClock()), opened(bundle) as engine, open_engine(bundle, make_profile()) as real:
        (name,) = frame(bundle)
        for x in np.random.default_rng(0).integers(-128, 128, (50, *frame(bundle)[name].shape), np.int8):
            ours, theirs = engine.run({name: x}), real.run({name: x})
            assert all(np.array_equal(ours[k], theirs[k]) for k in theirs)
        assert self_test(engine, bundle).ok


def test_virtual_time_is_the_estimate_to_the_microsecond(bundle: Bundle) -> None:
    clock = VirtualClock()
    with rehearse(clock=clock), opened(bundle) as engine:
        for _ in range(100):
            engine.run(frame(bundle))
        assert clock.now_s() == pytest.approx(100 * predicted_ms(bundle) / 1000, rel=1e-9)
        assert (engine.pacer.calls, engine.pacer.late) == (100, 0)
        assert engine.estimate.latency_ms == predicted_ms(bundle)


def test_real_time_is_not_less_than_the_estimate(bundle: Bundle) -> None:
    """No upper bound: somebody else may have the processor."""
    with opened(bundle) as engine:
        call, array = engine.hot_path(), next(iter(frame(bundle).values()))
        for _ in range(20):
            began = time.perf_counter()
            call([array])
            assert time.perf_counter() - began >= predicted_ms(bundle) / 1000
        assert engine.pacer.calls == 20


def test_a_target_that_is_faster_than_this_machine_is_late_and_counted() -> None:
    clock = RealClock()
    assert clock.spend(clock.now_s() - 1.0, 0.5) is False
    assert clock.spend(clock.now_s(), 0.001) is True


def test_a_batch_takes_its_frames_time() -> None:
    from worlds.tflite_models import open_tflite

    from kasmina_edge.wrapping import WrapPlan, wrap

    made = wrap(open_tflite(), "m.tflite", WrapPlan("m"), make_profile()).bundle
    with rehearse(clock=VirtualClock()), opened(made) as engine:
        batch = engine.batch_of(8)
        assert isinstance(batch, SimulatedEngine)
        with batch:
            single = {t.name: np.zeros(t.shape, t.dtype) for t in engine.model.app_inputs}
            eight = {t.name: np.zeros(t.shape, t.dtype) for t in batch.model.app_inputs}
            spent = [(e.pacer.virtual_s, e.run(x), e.pacer.virtual_s) for e, x in ((engine, single), (batch, eight))]
        alone, together = (after - before for before, _, after in spent)
        assert together == pytest.approx(8 * alone)


# ---- events


def test_heat_slows_it_and_rest_restores_it(bundle: Bundle) -> None:
    heat = ThermalThrottling(busy_w=4.0, resistance_k_per_w=20.0, time_constant_s=0.02, clock_share=0.4)
    clock = VirtualClock()
    with rehearse(clock=clock, events=[heat]), opened(bundle) as engine:
        taken = []
        for _ in range(400):
            before = clock.now_s()
            engine.run(frame(bundle))
            taken.append((clock.now_s() - before) * 1000 / predicted_ms(bundle))
        assert taken[0] == pytest.approx(1.0) and {round(t, 3) for t in taken} == {1.0, 2.5}
        clock.pass_s(1.0)
        engine.run(frame(bundle))
        before = clock.now_s()
        engine.run(frame(bundle))
        assert clock.now_s() - before == pytest.approx(predicted_ms(bundle) / 1000)


def test_one_seed_gives_one_rehearsal_and_another_seed_another(bundle: Bundle) -> None:
    def run(seed: int) -> list[float]:
        clock, found = VirtualClock(), []
        with rehearse(clock=clock, events=[Contention(0.01, 0.01)], seed=seed), opened(bundle) as engine:
            for _ in range(200):
                engine.run(frame(bundle))
                found.append(clock.now_s())
        return found

    assert run(1) == run(1) != run(2)


def test_a_network_that_does_not_fit_is_not_loaded(bundle: Bundle) -> None:
    tight = CORAL.model_copy(update={"ram_bytes": 2000})
    with pytest.raises(EngineError, match=r"RAM: \d+ bytes needed, 2000 free"):
        opened(bundle, tight)


def test_memory_that_others_hold_fails_an_allocation_while_they_hold_it(bundle: Bundle) -> None:
    gone = MemoryPressure(mean_pause_s=10.0, mean_length_s=10.0, taken_bytes=CORAL.ram_bytes)
    clock, found = VirtualClock(), []
    with rehearse(clock=clock, events=[gone]):
        for _ in range(40):
            clock.pass_s(2.0)
            try:
                opened(bundle).close()
                found.append("loaded")
            except EngineError as exc:
                assert ", 0 free" in exc.message
                found.append("refused")
    assert found.count("loaded") > 5 and found.count("refused") > 5 and found[0] == "loaded"


def test_engines_of_one_rehearsal_heat_one_device(bundle: Bundle) -> None:
    heat = ThermalThrottling(busy_w=4.0, resistance_k_per_w=20.0, time_constant_s=0.02, clock_share=0.4)
    clock = VirtualClock()
    with rehearse(clock=clock, events=[heat]):
        with opened(bundle) as first:
            for _ in range(200):
                first.run(frame(bundle))
        with opened(bundle) as second:
            before = clock.now_s()
            second.run(frame(bundle))
    assert clock.now_s() - before == pytest.approx(2.5 * predicted_ms(bundle) / 1000), "it comes to a hot device"


# ---- that it says what it is


def test_it_is_said_to_be_simulated_and_never_chosen_by_itself(bundle: Bundle) -> None:
    for name in ("simulated", "simulated-onnx"):
        kind = engine_types()[name]
        assert kind.simulated and not kind.measured
    assert not any(kind.simulated for name, kind in engine_types().items() if not name.startswith("simulated"))
    assert not {"simulated", "simulated-onnx"} & set(engine_names(make_profile(engines=("auto",))))
    check = SimulatedEngine.check(CORAL, bundle.model_for("litert"))
    assert check.ok and check.runs_on == "simulated coral-usb" and check.accelerator.startswith("simulated")
    with rehearse(clock=VirtualClock()), opened(bundle) as engine:
        assert engine.runs_on == "simulated coral-usb" and "Edge TPU" not in engine.runs_on
        assert not engine.accelerator.startswith("Edge TPU")


def test_a_profile_that_cannot_be_predicted_from_is_refused_with_a_reason(bundle: Bundle) -> None:
    check = SimulatedEngine.check(make_profile(), bundle.model_for("litert"))
    assert not check.ok and "no anchors and no coefficients" in check.reason and "calibrate" in check.reason
    with pytest.raises(EngineError, match="no anchors and no coefficients"):
        open_engine(bundle, make_profile(), engine="simulated")


def test_a_compiled_file_is_not_simulated(bundle: Bundle) -> None:
    compiled = bundle.model_for("litert").model_copy(update={"compiled_for": "edgetpu"})
    check = SimulatedEngine.check(CORAL, compiled)
    assert not check.ok and "compiled for edgetpu" in check.reason


def test_it_proves_nothing_about_a_file(bundle: Bundle) -> None:
    model = bundle.model_for("litert")
    kind: type[Engine] = engine_types()["litert"]
    data, frames = bundle.read(model.file), [frame(bundle)]
    with kind(model, data, make_profile()) as real:
        known = [real.run(frames[0])]
    found = agreements(kind, model, data, CORAL, frames, known)
    assert "litert-reference" in {a.engine for a in found} and "simulated" not in {a.engine for a in found}


# ---- a whole device


def test_a_device_with_a_coral_is_rehearsed_without_one(host: Bundle, deploy: Deploy, tmp_path: Path) -> None:
    deploy(host)
    records: list[TelemetryRecord] = []
    floor_us = 1000 * predicted_ms(host)
    with Runtime.open(tmp_path / "data", profile="coral", engine="simulated", telemetry=records.append) as runtime:
        assert runtime.runs_on == "simulated coral-usb"
        results = [runtime.infer(x) for x in digits()[0][:20]]
    with Runtime.open(tmp_path / "data", profile=make_profile(), telemetry=None) as real:
        assert [r.label for r in results] == [real.infer(x).label for x in digits()[0][:20]]
    assert sum(r.frames for r in records) == 20
    assert {r.simulated for r in records} == {"simulated coral-usb"}
    assert all(r.latency_us is not None and r.latency_us["p50"] >= 0.98 * floor_us for r in records)
    assert b'"simulated":"simulated coral-usb"' in records[0].to_bytes()


def test_where_time_is_counted_every_latency_is_the_predicted_one(host: Bundle, deploy: Deploy, tmp_path: Path) -> None:
    """And not the time that this machine took, under the target's name."""
    deploy(host)
    records: list[TelemetryRecord] = []
    wanted_us = 1000 * predicted_ms(host)
    with rehearse(clock=VirtualClock()), opened(host) as engine:
        tested = self_test(engine, host, timed_runs=20)
    assert tested.p50_us == pytest.approx(wanted_us, rel=0.01) == tested.p99_us
    with rehearse(clock=VirtualClock()):
        open_runtime = Runtime.open(tmp_path / "data", profile="coral", engine="simulated", telemetry=records.append)
        with open_runtime as runtime:
            frames = list(digits()[0][:40])
            results = [runtime.infer(x) for x in frames[:8]] + list(runtime.infer_batch(frames))
    assert [r.latency_us for r in results[:8]] == pytest.approx([wanted_us] * 8, rel=0.01)
    assert all(r.latency_us >= 0.99 * wanted_us for r in results)
    assert sum(r.frames for r in records) == 48
    assert all(r.latency_us is not None and r.latency_us["p50"] == pytest.approx(wanted_us, rel=0.06) for r in records)


def test_records_of_a_real_engine_do_not_speak_of_it(host: Bundle, deploy: Deploy, tmp_path: Path) -> None:
    """Negative control."""
    deploy(host)
    records: list[TelemetryRecord] = []
    with Runtime.open(tmp_path / "data", profile=make_profile(), telemetry=records.append) as runtime:
        runtime.infer(digits()[0][0])
    assert {r.simulated for r in records} == {None} and b"simulated" not in records[0].to_bytes()
