"""Write contracts-1/: one value of every contract as canonical bytes. Run it only before the first release of a format.

After a release its bytes are out in the world: later code must read them, so a later format gets a folder of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kasmina_edge.contracts.canonical import Contract, sha256_hex
from kasmina_edge.contracts.change_plan import CaptureBudget, CaptureSampling, ChangePlan, Erasure, HealthLimits
from kasmina_edge.contracts.manifest import (
    Acceptance,
    BundleManifest,
    DomainStatistics,
    FeatureStatistics,
    FileEntry,
    Graft,
    InputGuard,
    ModelFile,
    ModelIO,
    ModelTensor,
    OutputParity,
    Parity,
    Preprocessing,
    ReferenceProbes,
    SelfTest,
    SiteTensors,
    StatePair,
)
from kasmina_edge.contracts.postprocessing import AnchorLevel, Postprocessing
from kasmina_edge.contracts.presence import ControllerState
from kasmina_edge.contracts.profile import Anchor, HardwareProfile
from kasmina_edge.contracts.record import (
    AcceleratorReport,
    BudgetLeft,
    Desired,
    DeviceAlert,
    DeviceState,
    HardwareContext,
    Reported,
    SafetyScores,
    SeedTelemetry,
    Summary,
    TelemetryRecord,
)
from kasmina_edge.contracts.transfer import ChunkRequest
from kasmina_edge.safety.input_check import InputCheck
from kasmina_edge.telemetry.sketch import LogHistogram

FOLDER = Path(__file__).resolve().parent / "contracts-1"
HOST = sha256_hex(b"host")
PROBES = FileEntry.of("probes.npz", b"probes")


def manifest() -> BundleManifest:
    """A grafted bundle with both engines."""
    outputs = (ModelTensor(name="y", shape=(1, 10), dtype="int8", scale=0.125, zero_point=-3),)
    lite = ModelFile(
        file=FileEntry.of("model.tflite", b"tflite"),
        engine="litert",
        inputs=(ModelTensor(name="x", shape=(1, 16, 16, 1), dtype="int8", scale=1 / 255, zero_point=-128),),
        outputs=outputs,
        selftest=SelfTest(file=FileEntry.of("selftest-litert.npz", b"s1"), samples=32, tolerance=1.0),
        parity=Parity(samples=400, top1_agreement=0.9975, accuracy=0.97, float_accuracy=0.9725, max_abs_difference=0.4),
        sites={"s1": SiteTensors(input_index=4, output_index=7)},
    )
    onnx = ModelFile(
        file=FileEntry.of("model.onnx", b"onnx"),
        engine="onnxruntime",
        inputs=(ModelTensor(name="x", shape=(1, 16, 16, 1), dtype="float32"),),
        outputs=(ModelTensor(name="y", shape=(1, 10), dtype="float32"),),
        selftest=SelfTest(file=FileEntry.of("selftest-onnx.npz", b"s2"), samples=32, tolerance=1e-05),
        parity=Parity(samples=400, top1_agreement=1.0, max_abs_difference=0.25),
    )
    feature = FeatureStatistics(mean=0.25, std=0.0625)
    return BundleManifest(
        name="digits",
        version="1.1.0-rc.1",
        release=7,
        parent=HOST,
        host=HOST,
        profile="coral-usb",
        inputs=(ModelIO(name="x", shape=(1, 16, 16, 1)),),
        outputs=(ModelIO(name="y", shape=(1, 10), labels=tuple("0123456789")),),
        head="classification",
        preprocessing=Preprocessing(mean=0.5, std=0.25, valid_range=(0.0, 1.0)),
        models=(lite, onnx),
        grafts=(
            Graft(
                blueprint="depthwise",
                blueprint_version=1,
                site="s1",
                intensity=1.0,
                parameters=1648,
                capture_batches=("cam-2:1-200",),
            ),
        ),
        domains=(
            DomainStatistics(name="clean", samples=500, window=60, threshold=0.3, features={"mean": feature}),
            DomainStatistics(name="out-of-focus", samples=200, window=60, threshold=0.4, features={}),
        ),
        probes=ReferenceProbes(file=PROBES, samples=200),
        acceptance=Acceptance(
            samples=360,
            clean_before=0.97,
            clean_after=0.969,
            target_before=0.22,
            target_after=0.92,
            gain_low=0.65,
            gain_high=0.75,
            clean_loss_high=0.008,
            accepted=True,
            reasons=("größer",),
        ),
        provenance={"experiment_id": "golden"},
    )


def contracts() -> list[Contract]:
    """One value of every top-level contract."""
    plan = ChangePlan(
        bundle="digits",
        serial=3,
        hosts=(HOST,),
        blueprints={"depthwise": (1,), "scale-bn-retune": (1, 2)},
        sites=("s1", "s2"),
        intensity=(0.25, 1.0),
        maximum_parameters=5000,
        maximum_growth_bytes=30_000,
        maximum_latency_us=500.0,
        health=HealthLimits(probes=PROBES.sha256, minimum_accuracy=0.95),
        capture=CaptureBudget(max_frames=400, max_bytes=1_000_000),
        controller_key="ab" * 32,
    )
    profile = HardwareProfile(
        name="coral-usb",
        aliases=("coral",),
        description="Edge TPU",
        chip="Google Edge TPU",
        clock_mhz=500.0,
        runtime="LiteRT with libedgetpu",
        runtime_version="16.0",
        engines=("litert",),
        accelerator="edgetpu",
        delegate_library="libedgetpu.so.1",
        ram_bytes=2**30,
        peak_int8_tops=4.0,
        power_w=2.0,
        error_band=0.6,
        source="data sheet",
        anchors=(Anchor(network="mobilenet-v2", latency_ms=2.6, energy_uj=5200.0, source="benchmark page"),),
    )
    record = TelemetryRecord(
        device="cam-2",
        bundle="digits 1.0.0",
        release=6,
        slot="a",
        boot=4,
        sequence=12,
        started_s=1_795_000_000.5,
        duration_s=2.0,
        frames=40,
        sampled=20,
        input=Summary(count=20, mean=0.2, variance=0.001, minimum=0.1, maximum=0.3),
        score=Summary(count=20, mean=0.9, variance=0.01, minimum=0.4, maximum=1.0),
        features={"mean": 0.2, "roughness": 0.07},
        latency_us={"p50": 25.0, "p99": 48.0, "max": 300.0},
        labels={"3": 12, "7": 28},
        drift=1.75,
        drift_domain="clean",
        check_frames=4,
        check_correct=1,
    )
    reported = Reported(
        device="cam-2",
        boot=4,
        sequence=2,
        at_s=1_795_000_100.0,
        name="digits",
        version="1.1.0",
        release=7,
        digest=sha256_hex(b"grown"),
        previous=HOST,
        status="committed",
        grafts=("depthwise@s1",),
        update_bytes={"model": 5600},
        update_seconds=1.25,
        engine="LiteRT CPU",
    )
    state = DeviceState(device="cam-2", online=True, boot=4, at_s=1_795_000_000.0)
    request = ChunkRequest(place="targets", path=f"grafts/digits/7/{HOST}.model.tflite", offset=131_072)
    return [manifest(), plan, profile, record, reported, state, Desired(release=7, at_s=1_795_000_000.0), request]


def detailed_record() -> TelemetryRecord:
    """A record with sketches, hardware, seed sites and an accelerator: written since these exist, beside the first."""
    record = next(value for value in contracts() if isinstance(value, TelemetryRecord))
    hardware = HardwareContext(
        latency_us=25.1,
        latency_p99_us=48.2,
        rss_bytes=64_000_000,
        pss_bytes=50_000_000,
        available_bytes=900_000_000,
        temperature_c=61.5,
        accelerator_temperature_c=70.0,
        throttled=True,
        under_voltage=False,
        frequency_share=0.5,
    )
    budget = BudgetLeft(parameters=3352, latency_us=474.9, capture_frames=380, capture_bytes=900_000, capture_days=6.5)
    safety = SafetyScores(drift=1.75, self_test=1.0, probe_accuracy=0.97, check_accuracy=0.25, alert=1)
    seeds = (
        SeedTelemetry(
            looks=40, activation_variance=1.7573, utilization=0.31, age_s=3600.0, budget=budget, safety=safety
        ),
        SeedTelemetry(
            site="s1",
            blueprint="depthwise",
            looks=40,
            activation_variance=0.15068,
            interface_drift=0.014662,
            weights_l1=55.67,
            mean_output=0.073187,
            contribution=0.10317,
            utilization=0.29313,
            age_s=3600.0,
        ),
        SeedTelemetry(site="s2", reason="größer", hardware=hardware),
    )
    return record.model_copy(
        update={
            "latency_sketch": LogHistogram({1180: 3, 1187: 30, 1310: 7}).encode(),
            "score_sketch": LogHistogram({1018: 20}).encode(),
            "hardware": hardware,
            "seeds": seeds,
            "accelerator": AcceleratorReport(runs_on="LiteRT CPU", events={"hang": 2, "back": 1}, cause="late"),
        }
    )


def wrapped_manifest() -> BundleManifest:
    """A third party's model: no parity, a state, a constant, whole numbers for the app."""
    model = ModelFile(
        file=FileEntry.of("model.onnx", b"third party"),
        engine="onnxruntime",
        inputs=(
            ModelTensor(name="ids", shape=(1, 576), dtype="int64"),
            ModelTensor(name="state", shape=(2, 1, 128), dtype="float32"),
            ModelTensor(name="sr", shape=(), dtype="int64", constant=16000.0),
        ),
        outputs=(
            ModelTensor(name="output", shape=(1, 1), dtype="float32"),
            ModelTensor(name="stateN", shape=(2, 1, 128), dtype="float32"),
        ),
        selftest=SelfTest(file=FileEntry.of("selftest.onnxruntime.npz", b"s3"), samples=16, tolerance=1e-05),
        states=(StatePair(input="state", output="stateN"),),
        remembers=True,
    )
    return BundleManifest(
        name="vad",
        version="1.0.0",
        release=0,
        profile="x86-cpu",
        inputs=(ModelIO(name="ids", shape=(1, 576), dtype="int64"),),
        outputs=(ModelIO(name="output", shape=(1, 1)),),
        models=(model,),
        provenance={"wrapped": "vad.onnx"},
    )


def detecting_manifest() -> BundleManifest:
    """A detector: several outputs with parity of their own, post-processing, and papers."""
    sides = {"boxes-8": (8, 8, 8), "scores-8": (8, 8, 4), "boxes-16": (4, 4, 4), "scores-16": (4, 4, 2)}
    scales = (0.03125, 0.0625, 0.046875, 0.109375)
    model = ModelFile(
        file=FileEntry.of("model.tflite", b"detector"),
        engine="litert",
        inputs=(ModelTensor(name="x", shape=(1, 64, 64, 1), dtype="int8", scale=1 / 255, zero_point=-128),),
        outputs=tuple(
            ModelTensor(name=f"output{i}", shape=(1, *shape), dtype="int8", scale=scale, zero_point=-i)
            for i, (shape, scale) in enumerate(zip(sides.values(), scales, strict=True))
        ),
        selftest=SelfTest(file=FileEntry.of("selftest.litert.npz", b"s4"), samples=64, tolerance=2.0),
        parity=Parity(
            samples=600,
            top1_agreement=0.96875,
            accuracy=0.84,
            float_accuracy=0.8425,
            max_abs_difference=0.5,
            outputs=tuple(
                OutputParity(name=name, max_abs_difference=0.5 - 0.125 * i, mean_abs_difference=0.0625)
                for i, name in enumerate(sides)
            ),
        ),
    )
    levels = (
        AnchorLevel(boxes="boxes-8", scores="scores-8", rows=8, columns=8, sizes=((0.25, 0.125), (0.375, 0.25))),
        AnchorLevel(boxes="boxes-16", scores="scores-16", rows=4, columns=4, sizes=((0.5, 0.375),)),
    )
    return BundleManifest(
        name="finder",
        version="1.0.0",
        release=0,
        profile="x86-cpu",
        inputs=(ModelIO(name="frame", shape=(1, 64, 64, 1)),),
        outputs=tuple(ModelIO(name=name, shape=(1, *shape)) for name, shape in sides.items()),
        head="detection",
        models=(model,),
        postprocessing=Postprocessing(
            labels=("größer", "kleiner"),
            levels=levels,
            centre_variance=0.125,
            activation="softmax",
            background=False,
            score_threshold=0.25,
            maximum_detections=20,
        ),
        documents=(FileEntry.of("papers.cdx.json", b"papers"),),
    )


def accelerated_profile() -> HardwareProfile:
    """A profile that names which of several accelerators, and measures its engines."""
    profile = next(value for value in contracts() if isinstance(value, HardwareProfile))
    return profile.model_copy(update={"accelerator_device": "usb:1", "engines": ("auto",)})


def input_check() -> InputCheck:
    """Three statistics, two directions, two classes."""
    mean, whitening = np.array([0.5, 0.25, 0.125]), np.array([[1.0, 0], [0, 2], [0.5, 0.25]])
    return InputCheck(mean, whitening, np.array([[0.0, 1], [2, 0]]), 2.5)


def guarded_manifest() -> BundleManifest:
    """A classification with statistics as its second output, and a guard that reads them."""
    scales = {"logits": (0.125, -3, (1, 2)), "statistics": (0.0625, -128, (1, 3))}
    model = ModelFile(
        file=FileEntry.of("model.tflite", b"guarded"),
        engine="litert",
        inputs=(ModelTensor(name="x", shape=(1, 28, 28, 1), dtype="int8", scale=1 / 255, zero_point=-128),),
        outputs=tuple(
            ModelTensor(name=f"output{i}", shape=shape, dtype="int8", scale=scale, zero_point=zero)
            for i, (scale, zero, shape) in enumerate(scales.values())
        ),
        selftest=SelfTest(file=FileEntry.of("selftest.litert.npz", b"s5"), samples=64, tolerance=2.0),
    )
    return BundleManifest(
        name="watched",
        version="1.0.0",
        release=0,
        profile="x86-cpu",
        inputs=(ModelIO(name="frame", shape=(1, 28, 28, 1)),),
        outputs=tuple(
            ModelIO(name=name, shape=shape, labels=() if at else ("größer", "kleiner"))
            for at, (name, (_, _, shape)) in enumerate(scales.items())
        ),
        head="classification",
        models=(model,),
        guard=InputGuard(output="statistics", file=FileEntry.of("guard.npz", input_check().to_bytes())),
    )


def anchored_report() -> Reported:
    """A report of a data folder with a life, the head of its audit log, and the trace of its last update."""
    report = next(value for value in contracts() if isinstance(value, Reported))
    anchor = {"audit_seq": 41, "audit_hash": sha256_hex(b"entry 41"), "trace_id": sha256_hex(b"update")[:32]}
    return report.model_copy(update={"life": "0123456789abcdef", **anchor})


def alert() -> DeviceAlert:
    """A measured alert that was raised."""
    return DeviceAlert(
        device="cam-2",
        life="0123456789abcdef",
        boot=4,
        sequence=3,
        at_s=1_795_000_050.0,
        kind="disk",
        state="raised",
        severity="critical",
        message="free space of the data folder, MB: 10.5, below 64",
        value=10.5,
        limit=64.0,
        trace_id=sha256_hex(b"update")[:32],
    )


def capturing_plan() -> ChangePlan:
    """A plan by which devices pick inputs by themselves for a fortnight, and erase others."""
    plan = next(value for value in contracts() if isinstance(value, ChangePlan))
    sampling = CaptureSampling(window_s=30.0, frames=2, low_score=0.5, low_score_frames=2, drift_frames=3)
    budget = CaptureBudget(max_frames=400, max_bytes=1_000_000, max_days=14.0, sampling=sampling)
    erasures = (
        Erasure(id="dpo-7", device="cam-2", from_s=1_795_000_000.0, to_s=1_795_003_600.5),
        Erasure(id="dpo-8", to_s=1_795_000_000.0),
    )
    return plan.model_copy(update={"capture": budget, "erasures": erasures})


if __name__ == "__main__":
    present = ControllerState(online=True, at_s=1_795_000_000.0)
    second = [
        detailed_record(),
        wrapped_manifest(),
        accelerated_profile(),
        present,
        anchored_report(),
        alert(),
        capturing_plan(),
    ]
    third: list[Contract] = [detecting_manifest()]
    fourth: list[Contract] = [guarded_manifest()]
    for folder, values in (
        (FOLDER, contracts()),
        (FOLDER.with_name("contracts-2"), second),
        (FOLDER.with_name("contracts-3"), third),
        (FOLDER.with_name("contracts-4"), fourth),
    ):
        folder.mkdir(exist_ok=True)
        for value in values:
            (folder / f"{type(value).__name__}.json").write_bytes(value.to_bytes())
    (FOLDER.parent / "input_check_v1.npz").write_bytes(input_check().to_bytes())
