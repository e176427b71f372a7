"""What `Runtime.infer` costs over the bare inference library doing the same work, telemetry on, on both engines.

The demo's host is trained and exported by the product's own route. Bare means: quantize, set, invoke, get, de-quantize,
with the runtime's own conversion code, and nothing else: no check of the frame, no label, no score, no lock, no
telemetry. Both sides run in one process, in blocks that take turns; the figure is the median of the blocks' ratios of
medians, so that a busy neighbour hits both sides alike.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines.tensors import InputConverter, OutputConverter
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import SlotStore
from kasmina_trainer.datasets.digits import split_digits, to_nhwc
from kasmina_trainer.export import export_bundle
from kasmina_trainer.training import train_host

TARGET = 1.25
PROFILE = "x86-cpu"
SWAPS = 8
_SEED = 0
Call = Callable[[npt.NDArray[np.float32]], object]


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The ratio on each engine, and the longest call with and without swaps."""
    bundle, frames = demo_host()
    measured: list[dict[str, Any]] = []
    for engine, bare in (("litert", bare_litert), ("onnxruntime", bare_onnx)):
        with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
            data = Path(folder)
            store = SlotStore(data)
            deploy(store, bundle, engine)
            with Runtime.open(data, profile=PROFILE) as runtime:
                measured.append(ratio(engine, bare(bundle), runtime.infer, frames, pairs=9 if quick else 41))
                if engine == "litert":
                    measured.append(scored(bare(bundle), runtime, frames, pairs=9 if quick else 21))
                    measured.append(swapping(runtime, store, bundle, frames, swaps=2 if quick else SWAPS))
    return measured


def demo_host() -> tuple[Bundle, list[npt.NDArray[np.float32]]]:
    """The digits host as a bundle, and frames it has not seen.  # (1, 16, 16, 1)"""
    parts = split_digits(_SEED)
    clean, unseen = to_nhwc(parts.host.x), to_nhwc(parts.camera.x)
    bundle = export_bundle(
        train_host(parts.host, seed=_SEED),
        "digits",
        version="1.0.0",
        profile=PROFILE,
        calibration=clean[:300],
        held_out=(to_nhwc(parts.probes.x), parts.probes.y),
        labels=[str(i) for i in range(10)],
        domains={"clean": clean[:300]},
        probes=(to_nhwc(parts.probes.x), parts.probes.y),
        seed=_SEED,
    )
    return bundle, [np.ascontiguousarray(x[None], dtype=np.float32) for x in unseen[:64]]


def deploy(store: SlotStore, bundle: Bundle, engine: str) -> None:
    """Install and commit, as an agent does."""
    store.begin_trial(store.install(bundle, engine=engine))
    store.go_live()
    store.confirm()


def bare_litert(bundle: Bundle) -> Call:
    """Set, invoke and get on a LiteRT interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    model = bundle.model_for("litert")
    data, threads = bundle.read(model.file), load_profile(PROFILE).threads
    interpreter = Interpreter(model_content=data, num_threads=threads)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    convert = InputConverter(model.inputs[0], bundle.manifest.preprocessing).convert
    restore = OutputConverter(model.outputs[0]).convert

    def call(x: npt.NDArray[np.float32]) -> object:
        interpreter.set_tensor(source, convert(x))
        interpreter.invoke()
        return restore(interpreter.get_tensor(sink))

    return call


def bare_onnx(bundle: Bundle) -> Call:
    """``session.run`` of ONNX Runtime."""
    import onnxruntime

    model = bundle.model_for("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = load_profile(PROFILE).threads
    session = onnxruntime.InferenceSession(bundle.read(model.file), options, providers=["CPUExecutionProvider"])
    source, sink = model.inputs[0].name, [model.outputs[0].name]
    convert = InputConverter(model.inputs[0], bundle.manifest.preprocessing).convert
    restore = OutputConverter(model.outputs[0]).convert
    return lambda x: restore(session.run(sink, {source: convert(x)})[0])


def ratio(
    engine: str, bare: Call, infer: Call, frames: list[npt.NDArray[np.float32]], *, pairs: int, calls: int = 300
) -> dict[str, Any]:
    """One row: p50 of ``infer`` over p50 of ``bare``."""
    times(bare, frames, calls), times(infer, frames, calls)
    found: list[tuple[float, float, float, float]] = []
    for pair in range(pairs):
        sides = {}
        for name, call in (("bare", bare), ("infer", infer))[:: 1 if pair % 2 else -1]:
            sides[name] = times(call, frames, calls)
        medians = {name: float(np.median(t)) for name, t in sides.items()}
        means = {name: float(np.mean(t)) for name, t in sides.items()}
        found.append(
            (medians["infer"] / medians["bare"], medians["bare"], medians["infer"], means["infer"] / means["bare"])
        )
    share, bare_us, infer_us, mean_share = (statistics.median(column) for column in zip(*found, strict=True))
    return {
        "name": f"infer.{engine}_p50_ratio",
        "target": TARGET,
        "measured": share,
        "unit": "x bare",
        "ok": share <= TARGET,
        "how": (
            f"p50 {infer_us:.1f} us against {bare_us:.1f} us bare, median of {pairs} pairs of blocks of {calls} calls, "
            f"telemetry into the outbox, one frame after another; ratio of means {mean_share:.2f}"
        ),
    }


def scored(bare: Call, runtime: Runtime, frames: list[npt.NDArray[np.float32]], *, pairs: int) -> dict[str, Any]:
    """One row: as `ratio`, and the app reads label and score, which `infer` works out when they are first asked for."""

    def infer(x: npt.NDArray[np.float32]) -> object:
        result = runtime.infer(x)
        return result.label, result.score

    row = ratio("litert", bare, infer, frames, pairs=pairs)
    how = f"{row['how']}; label and score are read too, and the bare side does no softmax"
    return {**row, "name": "infer.litert_p50_ratio_with_score", "target": None, "ok": True, "how": how}


def swapping(
    runtime: Runtime, store: SlotStore, bundle: Bundle, frames: list[npt.NDArray[np.float32]], *, swaps: int
) -> dict[str, Any]:
    """One row: the longest call while bundles are installed and swapped, beside an equal time without."""
    done = threading.Event()
    others = [
        Bundle(bundle.manifest.model_copy(update={"release": release}), bundle.files) for release in range(1, swaps + 1)
    ]
    before = runtime.swaps

    def install() -> None:
        for other in others:
            deploy(store, other, "litert")
            runtime.refresh()
        done.set()

    worker = threading.Thread(target=install)
    began = time.perf_counter()
    worker.start()
    with_swaps = times(runtime.infer, frames, None, until=done.is_set)
    worker.join()
    seconds = time.perf_counter() - began
    quiet = time.perf_counter() + seconds
    without = times(runtime.infer, frames, None, until=lambda: time.perf_counter() >= quiet)
    return {
        "name": "infer.longest_call_while_swapping",
        "target": None,
        "measured": float(max(with_swaps)) / 1000.0,
        "unit": "ms",
        "ok": runtime.swaps - before == swaps,
        "how": (
            f"{swaps} swaps under {len(with_swaps)} calls in {seconds:.1f} s, "
            f"p99.9 {np.percentile(with_swaps, 99.9):.0f} us; "
            f"without swaps, longest {max(without) / 1000.0:.1f} ms and p99.9 {np.percentile(without, 99.9):.0f} us"
        ),
    }


def times(
    call: Call, frames: list[npt.NDArray[np.float32]], calls: int | None, *, until: Callable[[], bool] | None = None
) -> list[float]:
    """Microseconds of each call."""
    clock = time.perf_counter_ns
    found: list[float] = []
    i = 0
    while (calls is None or i < calls) and not (until and until()):
        frame = frames[i % len(frames)]
        began = clock()
        call(frame)
        found.append((clock() - began) / 1000.0)
        i += 1
    return found
