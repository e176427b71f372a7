"""Seed figures of real exports: they are what PyTorch computes, and each moves when its cause is moved."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn
from worlds import exports
from worlds.telemetry import NOW, Clock, make_plan, make_record

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_edge.engines.shadow import Shadow
from kasmina_edge.engines.tflite_graph import TfliteGraph
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.seed_rows import completed
from kasmina_edge.telemetry.seed_telemetry import Collector
from kasmina_edge.telemetry.site_measures import interface_drift
from kasmina_edge.telemetry.site_report import SiteContext
from kasmina_edge.telemetry.taps import SiteTaps
from kasmina_trainer.datasets.digits import DigitSplits
from kasmina_trainer.export import flatbuffer, parity, tflite
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.sites import find_sites, flow_through
from kasmina_trainer.quantization import QuantizeConfig, prepare
from kasmina_trainer.seeds import SeededNetwork, attach_seeds

Array = npt.NDArray[Any]
LOOKS = 64


class Timer:
    """Monotonic nanoseconds that jump ahead at every look, so that a look is always due."""

    now = 0

    def __call__(self) -> int:
        Timer.now += 10**13
        return Timer.now


@pytest.fixture(scope="session")
def frames(parts: DigitSplits) -> dict[str, Array]:
    """Held-out frames as a camera in focus sees them, and one out of focus."""
    mixed = exports.frames(parts)["held_out_mixed"][0]
    return {"clean": mixed[: len(mixed) // 2][:LOOKS], "blurred": mixed[-LOOKS:]}


def taps_of(bundle: Bundle, data: bytes | None = None, **changes: Any) -> SiteTaps:
    model = bundle.model_for("litert")
    return SiteTaps(
        bundle.manifest, model, bundle.files[model.file.path] if data is None else data, timer_ns=Timer(), **changes
    )


def rows_of(bundle: Bundle, shown: Array, data: bytes | None = None) -> dict[str, SeedTelemetry]:
    """Seed rows after looking at every frame."""
    taps = taps_of(bundle, data)
    try:
        for frame in shown:
            assert taps.offer([frame[None]]) and taps.wait(10.0)
        return {row.site: row for row in taps.take()}
    finally:
        taps.close()


@pytest.fixture(scope="session")
def rows(graft: Bundle, frames: dict[str, Array]) -> dict[str, dict[str, SeedTelemetry]]:
    """The graft's rows, on clean and on blurred frames."""
    return {name: rows_of(graft, shown) for name, shown in frames.items()}


def silenced(bundle: Bundle, *sites: str) -> bytes:
    """The bundle's file with grafts that add nothing."""
    model = bundle.model_for("litert")
    data = bundle.files[model.file.path]
    graph, tree = TfliteGraph(data), flatbuffer.parse(data)
    branches = [graph.branch(model.sites[s].input_index, model.sites[s].output_index) for s in sites]
    schemes = {i: flatbuffer.scale_and_zero(tree, i) for i in range(len(graph.buffers))}
    zeros = {i: scheme[1] for i, scheme in schemes.items() if scheme is not None}
    quiet = graph.silenced([branch for branch in branches if branch is not None], zeros)
    assert quiet is not None
    assert sum(a != b for a, b in zip(data, quiet, strict=True)) == len(sites)  # the byte of each gate
    return quiet


@pytest.mark.parametrize("which", ["host", "graft"])
def test_sites_of_the_final_file_are_what_pytorch_computes(
    which: str, host: Bundle, graft: Bundle, host_network: SeededNetwork, grafted: SeededNetwork,
    frames: dict[str, Array],
) -> None:  # fmt: skip
    bundle, network = (host, host_network) if which == "host" else (graft, grafted)
    model = bundle.model_for("litert")
    shown = np.concatenate([frames["clean"][:8], frames["blurred"][:8]])
    flow = flow_through(network.module_for_export(), network.sites, shown)
    shadow = Shadow(model, bundle.files[model.file.path])
    assert shadow.grafted == (() if which == "host" else ("s1", "s2"))
    quantized = parity.to_rows(shown, model.inputs[0])
    drifts: dict[str, list[tuple[float, float]]] = {}
    for i, frame in enumerate(quantized):
        look = shadow.look([frame[None]])
        assert set(look.sites) == set(flow) == {"s1", "s2", "s3", "s4"}
        for site, (before, after) in flow.items():
            seen = look.sites[site]
            for ours, theirs in ((seen.entry[0], before[i]), (seen.leave[0], after[i])):
                assert ours.shape == theirs.shape
                assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98, site
                assert np.abs(ours - theirs).mean() < 0.1 * np.abs(theirs).max(), site
            if seen.added is not None:
                assert np.corrcoef(seen.added.ravel(), (after - before)[i].ravel())[0, 1] > 0.95
                ours_d, theirs_d = (
                    interface_drift(seen.entry, seen.entry + seen.added),
                    interface_drift(before[i], after[i]),
                )
                assert ours_d is not None and theirs_d is not None
                drifts.setdefault(site, []).append((ours_d, theirs_d))
    for pairs in drifts.values():
        ours_all, theirs_all = np.array(pairs).T
        assert ours_all.mean() == pytest.approx(theirs_all.mean(), rel=0.15)
    shifted = look.sites["s3"].entry[0]
    wrong = np.corrcoef(np.roll(shifted, 1, axis=-1).ravel(), flow["s3"][0][-1].ravel())[0, 1]
    assert wrong < 0.9  # the comparison can fail


def test_weights_l1_is_pytorch_s(grafted: SeededNetwork, rows: dict[str, dict[str, SeedTelemetry]]) -> None:
    module = fold_norms(grafted.module_for_export())
    for site in ("s1", "s2"):
        place = module.get_submodule(site)
        layers = [p.detach() for p in place.branch.parameters() if p.ndim > 1]  # type: ignore[union-attr, operator]
        expected = float(sum(layer.abs().sum() for layer in layers))
        assert rows["clean"][site].weights_l1 == pytest.approx(expected, rel=0.03)


def test_what_is_measured_of_a_graft_and_of_a_bare_site(
    graft: Bundle, host: Bundle, rows: dict[str, dict[str, SeedTelemetry]], frames: dict[str, Array]
) -> None:
    inside = {"activation_variance", "interface_drift", "weights_l1", "mean_output", "contribution", "utilization"}
    found = rows["blurred"]
    assert list(found) == ["", "s1", "s2", "s3", "s4"]
    for site in ("", "s1", "s2"):
        assert inside == {name for name in SeedTelemetry.BITS if found[site].is_measured(name)}
    for site in ("s3", "s4"):
        assert found[site].measured == 0b11 and found[site].interface_drift == 0.0
        assert found[site].blueprint is None
    assert found["s1"].blueprint == "depthwise" and all(row.reason is None for row in found.values())
    bare = rows_of(host, frames["clean"][:4])
    assert bare[""].measured == 0b1 and all(bare[site].interface_drift == 0.0 for site in ("s1", "s2"))


def test_activation_variance_is_numpy_s(graft: Bundle, frames: dict[str, Array]) -> None:
    model = graft.model_for("litert")
    shadow = Shadow(model, graft.files[model.file.path])
    quantized = parity.to_rows(frames["clean"], model.inputs[0])
    values = np.concatenate([shadow.look([frame[None]]).sites["s2"].leave for frame in quantized])
    expected = values.reshape(-1, values.shape[-1]).astype(np.float64).var(axis=0).mean()
    assert rows_of(graft, frames["clean"])["s2"].activation_variance == pytest.approx(expected, rel=1e-3)


def test_a_flat_picture_has_less_variance(graft: Bundle, rows: dict[str, dict[str, SeedTelemetry]]) -> None:
    flat = rows_of(graft, np.full((8, 16, 16, 1), 0.3, np.float32))
    assert flat["s4"].activation_variance is not None and rows["clean"]["s4"].activation_variance is not None
    assert flat["s4"].activation_variance < 0.7 * rows["clean"]["s4"].activation_variance


def test_another_input_raises_the_drift_of_a_graft_that_was_made_for_it(
    rows: dict[str, dict[str, SeedTelemetry]],
) -> None:
    """Grown for a lens out of focus: there it bends the signal further, and there the answers depend on it."""
    clean, blurred = rows["clean"], rows["blurred"]
    for site in ("s1", "s2"):
        assert (blurred[site].interface_drift or 0.0) > 1.2 * (clean[site].interface_drift or 0.0) > 0.0
    assert (blurred[""].contribution or 0.0) > 2.0 * (clean[""].contribution or 1.0)
    assert (blurred[""].interface_drift or 0.0) > (clean[""].interface_drift or 2.0)


def test_a_killed_graft_is_idle_and_the_other_one_is_not(
    graft: Bundle, rows: dict[str, dict[str, SeedTelemetry]], frames: dict[str, Array]
) -> None:
    before, after = rows["blurred"], rows_of(graft, frames["blurred"], silenced(graft, "s1"))
    dead, alive = after["s1"], after["s2"]
    assert (dead.interface_drift, dead.mean_output, dead.contribution, dead.utilization) == (0.0, 0.0, 0.0, 0.0)
    assert dead.weights_l1 == before["s1"].weights_l1  # only the gate is closed
    assert (before["s1"].utilization or 0.0) > 0.15
    assert alive.weights_l1 == before["s2"].weights_l1 and (alive.utilization or 0.0) > 0.15
    assert 0.0 < (after[""].utilization or 0.0) < (before[""].utilization or 0.0)


def test_the_counterfactual_is_the_silenced_bundle_s_own_answer(graft: Bundle, frames: dict[str, Array]) -> None:
    model = graft.model_for("litert")
    shadow = Shadow(model, graft.files[model.file.path])
    silent = shadow.silence(("s1", "s2"))
    assert silent is not None
    frame = parity.to_rows(frames["blurred"][:1], model.inputs[0])
    answer = parity.litert_logits(silenced(graft, "s1", "s2"), frames["blurred"][:1])
    step = model.outputs[0].scale  # XNNPACK rounds otherwise
    assert step is not None and np.abs(silent.look([frame]).answers[0] - answer).max() < 1.01 * step
    assert np.abs(shadow.look([frame]).answers[0] - answer).max() > 0.5


def test_a_graft_that_the_export_left_out_is_idle(graft: Bundle, frames: dict[str, Array]) -> None:
    """A file of an older exporter, gate at zero: the manifest names a graft, and nothing is computed there."""
    extra = graft.manifest.grafts[0].model_copy(update={"site": "s3"})
    manifest = graft.manifest.model_copy(update={"grafts": (*graft.manifest.grafts, extra)})
    found = rows_of(Bundle(manifest, graft.files), frames["blurred"][:8])
    idle, bare = found["s3"], found["s4"]
    figures = (idle.interface_drift, idle.mean_output, idle.contribution, idle.weights_l1, idle.utilization)
    assert figures == (0.0,) * 5 and idle.blueprint == "depthwise"
    assert bare.utilization is None and (found["s1"].utilization or 0.0) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gate at zero", "newborn"])
def test_sites_of_a_graft_that_adds_nothing(
    how: str, grafted: SeededNetwork, trained_host: nn.Module, frames: dict[str, Array]
) -> None:
    """The branch stays in the file, whatever its gate is and however little it has learned."""
    if how == "newborn":
        network = attach_seeds(trained_host)
        network.graft("s1", "depthwise")
    else:
        network = copy.deepcopy(grafted)
        network.set_intensity("s1", 0.0)
    module = network.module_for_export()
    converted = tflite.convert(fold_norms(module), (1, 16, 16, 1))
    before, after = find_sites(converted, module, network.sites, frames["clean"])["s1"]
    branch = TfliteGraph(converted.data).branch(int(before[1:]), int(after[1:]))
    assert before != after and branch is not None and len(branch) == 3


def test_files_that_cannot_be_looked_into_say_why(graft: Bundle, frames: dict[str, Array]) -> None:
    lite = graft.model_for("litert")
    cases = {
        "onnxruntime shows no tensors": graft.model_for("onnxruntime"),
        "compiled for the edgetpu": lite.model_copy(update={"compiled_for": "edgetpu"}),
        "keeps state": lite.model_copy(update={"remembers": True}),
        "names no seed sites": lite.model_copy(update={"sites": {}}),
    }
    for reason, model in cases.items():
        taps = SiteTaps(graft.manifest, model, b"", timer_ns=Timer(), context=SiteContext(committed_s=1.0))
        assert taps.offer([frames["clean"][:1]]) and taps.wait(5.0)
        whole, one, *_ = taps.take()
        taps.close()
        assert whole.reason is not None and reason in whole.reason
        assert one.site == "s1" and not any(one.is_measured(n) for n in SeedTelemetry.BITS if n != "age_s")
        assert one.is_measured("age_s") and taps.looks == 0


def test_from_the_tap_to_the_fleet(graft: Bundle, frames: dict[str, Array], tmp_path: Any) -> None:
    """The whole way: a hot sensor, a committed graft and a plan, through collector and fleet store, to full rows."""
    zone = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("91000\n")
    word = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    word.parent.mkdir(parents=True)
    word.write_text("4\n")
    clock = Clock()
    plan = make_plan("a" * 64, maximum_parameters=3000, maximum_latency_us=100.0)
    context = SiteContext(committed_s=NOW - 3600.0, plan=plan, captured=(2, 60_000, NOW), self_test=1.0, alert=1)
    taps = taps_of(graft, context=context, clock=clock, hardware=HardwareReader(tmp_path, mailbox=None))
    out: list[Any] = []
    collector = Collector(
        device="cam-1", bundle=graft.manifest.digest(), release=2, slot="a", trial=False, source="app", boot=1,
        domains=(), labels=(), clock=clock, emit=out.append, window_frames=10**9, window_s=2.0,
    )  # fmt: skip
    collector.sites(taps)
    for frame in frames["blurred"][:20]:
        taps.look([frame[None]])
        assert taps.wait(10.0)
        clock.now += 0.125
        collector.observe(frame, 25.0, 0.9, 3)
    taps.close()
    collector.flush(details=True)
    store = FleetStore(tmp_path / "fleet.db", clock=clock)
    store.record_telemetry([*out, make_record(99)])
    kept = [record for record in store.telemetry("cam-1") if record.seeds]
    store.close()
    whole, one = completed(kept[-1])[:2]
    assert whole.hardware is not None and one.hardware == whole.hardware
    assert (whole.hardware.temperature_c, whole.hardware.throttled) == (91.0, True)
    assert whole.hardware.latency_us == pytest.approx(25.0, rel=0.02)
    assert one.age_s is not None and 3600.0 <= one.age_s <= 3605.0
    parameters = sum(g.parameters for g in graft.manifest.grafts)
    assert one.budget is not None and one.budget.parameters == 3000 - parameters
    assert one.budget.latency_us == pytest.approx(75.0, abs=0.5)
    assert (one.budget.capture_frames, one.budget.capture_bytes) == (3, 40_000)
    assert one.safety is not None and (one.safety.self_test, one.safety.alert) == (1.0, 1)
    later = replace(context, plan=plan.model_copy(update={"maximum_parameters": 0}))
    taps.tell(later)
    assert (taps.take()[0].budget or one.budget).parameters == -parameters


def test_threads_of_the_app_and_the_taps_do_not_disturb_each_other(graft: Bundle, frames: dict[str, Array]) -> None:
    taps = taps_of(graft)
    taken: list[SeedTelemetry] = []
    errors: list[BaseException] = []

    def offer() -> None:
        try:
            for i in range(20_000):
                taps.offer([frames["clean"][i % LOOKS][None]])
                if i % 500 == 0:
                    taken.extend(taps.take())
                if taps.looks >= 60:
                    return
                if i % 50 == 0:
                    time.sleep(0.0005)
        except BaseException as exc:
            errors.append(exc)

    threads = [Thread(target=offer) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert taps.wait(10.0)
    taken.extend(taps.take())
    taps.close()
    assert not errors
    assert sum(row.looks for row in taken if row.site == "s1") == taps.looks > 5  # none is lost or counted twice
    assert sum(row.looks for row in taken if row.site == "") == taps.looks


def test_sites_are_found_when_quantization_moved_what_flows_through_them(
    seeded: SeededNetwork, parts: DigitSplits
) -> None:
    clean = parts.host.nhwc()[:64]
    config = QuantizeConfig(bias_correction="all", equalize=True, weight_bits=4)
    module = seeded.module_for_export()
    prepared = prepare(module, config, clean, sites=seeded.sites)
    made = tflite.export_tflite(
        module,
        calibration=clean,
        held_out=parts.probes.nhwc()[:64],
        sites=seeded.sites,
        config=config,
        prepared=prepared,
    )
    plain = tflite.export_tflite(module, calibration=clean, held_out=parts.probes.nhwc()[:64], sites=seeded.sites)
    assert set(made.sites) == set(plain.sites) == set(seeded.sites)
    assert len({(s.input_index, s.output_index) for s in made.sites.values()}) == len(seeded.sites)
