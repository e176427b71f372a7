"""What `Runtime.infer` costs over the bare inference library doing the same work, telemetry on, on both engines.

Three networks, exported by the product's own route: some 25 us, just over 1 ms and some 5 ms an inference. Bare means:
set, invoke, get by the library's own API, and for float input the same numpy quantization and de-quantization in
buffers that are allocated once; no check of the frame, no lock, no telemetry. The app's side reads what the bare side
reads: the raw answer for int8 input, de-quantized outputs for float input. Both sides run in one process that has never
seen PyTorch, in short blocks that take turns; a figure is the median over pairs of blocks of the ratio of their
medians, so that a busy neighbour hits both sides alike.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import _models
from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines.tensors import to_model
from kasmina_edge.runtime import Runtime

Array = npt.NDArray[Any]
Call = Callable[[Array], object]
Row = dict[str, Any]
FAST, SLOW = 1.15, 1.01
OPEN_MS = 150.0
OPENINGS = 7
PLACES = 5


def rows(quick: bool = False) -> list[Row]:
    """Ratios for int8 and float input, small and large model, and the time from opening to the first answer."""
    for name in ("digits", "wide", "wider"):
        _models.bundle_path(name)
    found: list[Row] = json.loads(_child("measure", str(int(quick))))
    return [*found, *openings(3 if quick else OPENINGS)]


def measure(quick: bool) -> list[Row]:
    """The rows that are ratios; to be run in a process that has not imported PyTorch."""
    small = _models.read("digits")
    few = 5 if quick else 1
    found = []
    with _opened(small, "litert") as runtime:
        found += _both("litert", small, runtime, FAST, block=100, pairs=400 // few)
        found.append(_scored(small, runtime, pairs=200 // few))
        found.append(_batched(small, runtime, pairs=200 // few))
        found.append(_asynchronous(small, runtime, calls=4000 // few))
    found += _placed("litert_large", _models.read("wide"), pairs=100 // few)
    found += _placed("litert_larger", _models.read("wider"), pairs=30 // few)
    with _opened(small, "onnxruntime") as runtime:
        found.append(
            _ratio("onnxruntime_float", bare_onnx(small), _real(runtime), _floats(small), None, 50, 200 // few)
        )
    return found


def bare_litert(bundle: Bundle, *, floats: bool, runtime: Runtime | None = None) -> Call:
    """Set, invoke and get by LiteRT's own API, on an interpreter of its own or on that of a runtime."""
    from ai_edge_litert.interpreter import Interpreter

    model = bundle.model_for("litert")
    interpreter = _shared(runtime) if runtime is not None else None
    if interpreter is None:
        threads = load_profile(_models.PROFILE).threads
        interpreter = Interpreter(model_content=bundle.read(model.file), num_threads=threads)
        interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def invoke(q: Array) -> Array:
        interpreter.set_tensor(source, q)
        interpreter.invoke()
        answer: Array = interpreter.get_tensor(sink)
        return answer

    return _quantized(model, bundle, invoke) if floats else invoke


def _shared(runtime: Runtime) -> Any:
    """The library's public API on a runtime's own interpreter: its check for views is done, and its verdict, which is
    against the runtime's view of the input, is left aside.
    """
    from ai_edge_litert.interpreter import Interpreter

    class Shared(Interpreter):  # type: ignore[misc]
        def __init__(self, wrapper: Any) -> None:
            self._interpreter = wrapper

        def _ensure_safe(self) -> None:
            self._safe_to_run()

        def __del__(self) -> None:
            pass

    return Shared(runtime._serving.engine._interpreter._interpreter)  # type: ignore[attr-defined]


def _quantized(model: ModelFile, bundle: Bundle, invoke: Callable[[Array], Array]) -> Call:
    """Quantize, ``invoke``, de-quantize: the runtime's arithmetic, in buffers allocated once."""
    taken, given, pre = model.inputs[0], model.outputs[0], bundle.manifest.preprocessing
    assert taken.scale is not None and taken.zero_point is not None
    assert given.scale is not None and given.zero_point is not None
    factor = np.array(1.0 / (taken.scale * pre.std), np.float32)
    offset = np.array(taken.zero_point - pre.mean / (taken.scale * pre.std), np.float32)
    low, high = (np.array(v, np.float32) for v in (np.iinfo(taken.dtype).min, np.iinfo(taken.dtype).max))
    work, q = np.empty(taken.shape, np.float32), np.empty(taken.shape, taken.dtype)
    values = np.arange(256, dtype=np.uint8).view(given.dtype).astype(np.float64)
    table = ((values - given.zero_point) * given.scale).astype(np.float32)

    def call(x: Array) -> object:
        np.multiply(x, factor, work)
        np.add(work, offset, work)
        np.rint(work, work)
        np.maximum(work, low, out=work)
        np.minimum(work, high, out=work)
        q[...] = work
        return table.take(invoke(q).view(np.uint8))

    return call


def bare_onnx(bundle: Bundle) -> Call:
    """``session.run`` of ONNX Runtime."""
    import onnxruntime

    model = bundle.model_for("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = load_profile(_models.PROFILE).threads
    session = onnxruntime.InferenceSession(bundle.read(model.file), options, providers=["CPUExecutionProvider"])
    source, sink, shape = model.inputs[0].name, [model.outputs[0].name], tuple(model.inputs[0].shape)
    return lambda x: session.run(sink, {source: x.reshape(shape)})[0]


def _both(
    name: str, bundle: Bundle, runtime: Runtime, target: float | None, *, block: int, pairs: int, same: bool = False
) -> list[Row]:
    tensor = bundle.model_for("litert").inputs[0]
    frames = _floats(bundle)
    whole = [to_model(x, tensor, bundle.manifest.preprocessing).copy() for x in frames]
    where = runtime if same else None
    found = []
    for kind, infer, given in (("int8", _raw(runtime), whole), ("float", _real(runtime), frames)):
        bare = bare_litert(bundle, floats=kind == "float", runtime=where)
        found.append(_ratio(f"{name}_{kind}", bare, infer, given, target, block, pairs))
    return found


def _placed(name: str, bundle: Bundle, *, pairs: int) -> list[Row]:
    """`_both` of a large network on the runtime's own interpreter; beside it, two interpreters.

    Where a network's megabytes come to lie moves an interpreter by percents from load to load: more than what is to be
    measured. With one interpreter, both sides run on the same bytes. What two interpreters give is stated, with what
    the bare library says of itself, loaded twice.
    """
    tensor, frames = bundle.model_for("litert").inputs[0], _floats(bundle)
    whole = [to_model(x, tensor, bundle.manifest.preprocessing).copy() for x in frames]
    runs = []
    for _ in range(PLACES):
        with _opened(bundle, "litert") as runtime:
            rows = _both(name, bundle, runtime, SLOW, block=12, pairs=pairs, same=True)
            rows += _both(f"{name}_two_interpreters", bundle, runtime, None, block=12, pairs=pairs // 2)
        again = bare_litert(bundle, floats=False), bare_litert(bundle, floats=False)
        runs.append([*rows, _ratio(f"{name}_int8_bare_again", *again, whole, None, 12, pairs // 2)])
    found = []
    for same in zip(*runs, strict=True):
        shares = sorted(float(row["measured"]) for row in same)
        share = float(np.median(shares))
        how = f"median of {PLACES} times loaded afresh ({shares[0]:.3f} to {shares[-1]:.3f}); of the last: "
        ok = same[-1]["target"] is None or share <= SLOW
        found.append({**same[-1], "measured": share, "ok": ok, "how": how + same[-1]["how"]})
    return found


def _ratio(
    name: str, bare: Call, infer: Call, frames: list[Array], target: float | None, block: int, pairs: int
) -> Row:
    """One row: p50 of ``infer`` over p50 of ``bare``."""
    sides = {"bare": bare, "infer": infer}
    for call in sides.values():
        times(call, frames, block)
    every: dict[str, list[Array]] = {side: [] for side in sides}
    for pair in range(pairs):
        for side in sorted(sides, reverse=bool(pair % 2)):
            every[side].append(times(sides[side], frames, block))
    medians = {side: np.median(np.array(blocks), axis=1) for side, blocks in every.items()}
    share = float(np.median(medians["infer"] / medians["bare"]))
    flat = {side: np.concatenate(blocks) for side, blocks in every.items()}
    tails = ", ".join(
        f"{side} p50 {np.median(medians[side]):.1f} mean {t.mean():.1f} p99.9 {np.percentile(t, 99.9):.0f} us"
        for side, t in flat.items()
    )
    return {
        "name": f"infer.{name}_p50_ratio",
        "target": target,
        "measured": share,
        "unit": "x bare",
        "ok": target is None or share <= target,
        "how": f"{tails}; median of {pairs} pairs of blocks of {block} calls, telemetry into the outbox",
    }


def _scored(bundle: Bundle, runtime: Runtime, *, pairs: int) -> Row:
    """The app reads label and score too, which the runtime works out when they are first asked for."""

    def infer(x: Array) -> object:
        result = runtime.infer(x)
        return result.outputs, result.label, result.score

    row = _ratio("litert_float", bare_litert(bundle, floats=True), infer, _floats(bundle), None, 100, pairs)
    how = f"{row['how']}; label and score are read too, and the bare side does no softmax"
    return {**row, "name": "infer.litert_float_p50_ratio_with_score", "how": how}


def _batched(bundle: Bundle, runtime: Runtime, *, pairs: int) -> Row:
    """Sixteen frames in one `infer_batch` against sixteen `infer`."""
    batch = np.stack(_floats(bundle)[:16])

    def one_by_one(xs: Array) -> object:
        return [runtime.infer(x).outputs for x in xs]

    def together(xs: Array) -> object:
        return [result.outputs for result in runtime.infer_batch(xs)]

    row = _ratio("batch_of_16", one_by_one, together, [batch], None, 5, pairs)
    return {**row, "unit": "x one by one", "how": row["how"].replace("bare", "one by one")}


def _asynchronous(bundle: Bundle, runtime: Runtime, *, calls: int) -> Row:
    """One task that awaits one frame after another."""
    frames = _floats(bundle)

    async def run() -> list[float]:
        found = []
        for i in range(calls):
            began = time.perf_counter_ns()
            await runtime.infer_async(frames[i % len(frames)])
            found.append((time.perf_counter_ns() - began) / 1000.0)
        return found

    found = asyncio.run(run())
    how = f"p50 of {calls} awaited calls in one task, p99.9 {np.percentile(found, 99.9):.0f} us: two thread switches"
    p50 = float(np.median(found))
    return {"name": "infer.async_p50", "target": None, "measured": p50, "unit": "us", "ok": True, "how": how}


def openings(count: int) -> list[Row]:
    """From `Runtime.open` to the first answer, each in a fresh process that has imported what it needs."""
    from kasmina_edge.fleet.repository import Repository

    bundle = _models.read("digits")
    found = []
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        signed = Repository.desk(Path(folder) / "desk", clock=time.time).sign_bundle(bundle)
        path = Path(folder) / signed.file_name
        path.write_bytes(pack(signed))
        data = Path(folder) / "data"
        _models.deploy(data, bundle, "litert")
        for name, what, place in (
            ("file", "bundle file, signatures verified offline", path),
            ("folder", "data folder, digests verified, telemetry into the outbox", data),
        ):
            times_ms = [float(_child("open", str(place))) for _ in range(count)]
            median = float(np.median(times_ms))
            found.append(
                {
                    "name": f"infer.open_{name}_to_first_answer",
                    "target": OPEN_MS,
                    "measured": median,
                    "unit": "ms",
                    "ok": median <= OPEN_MS,
                    "how": f"{what}; median of {count} fresh processes after imports, longest {max(times_ms):.0f} ms",
                }
            )
    return found


def open_once(place: Path) -> float:
    """Milliseconds from opening to the first answer."""
    import ai_edge_litert.interpreter

    import kasmina_edge.updates.trust

    assert ai_edge_litert.interpreter and kasmina_edge.updates.trust
    frame = np.zeros((16, 16, 1), np.float32)
    began = time.perf_counter()
    with Runtime.open(place, profile=_models.PROFILE) as runtime:
        assert runtime.infer(frame).outputs
        return (time.perf_counter() - began) * 1000.0


def times(call: Call, frames: list[Array], calls: int) -> Array:
    """Microseconds of each call."""
    clock = time.perf_counter_ns
    found = np.empty(calls)
    for i in range(calls):
        frame = frames[i % len(frames)]
        began = clock()
        call(frame)
        found[i] = clock() - began
    return found / 1000.0


@contextmanager
def _opened(bundle: Bundle, engine: str) -> Iterator[Runtime]:
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        _models.deploy(Path(folder), bundle, engine)
        with Runtime.open(Path(folder), profile=_models.PROFILE) as runtime:
            yield runtime


def _floats(bundle: Bundle) -> list[Array]:
    return _models.frames_of(bundle)


def _raw(runtime: Runtime) -> Call:
    return lambda x: runtime.infer(x).raw


def _real(runtime: Runtime) -> Call:
    return lambda x: runtime.infer(x).outputs


def _child(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.infer", *arguments]
    done = subprocess.run(command, cwd=_models.ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[2] == "1")) if sys.argv[1] == "measure" else open_once(Path(sys.argv[2])))
