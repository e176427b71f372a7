"""Small real bundles for tests: a digits classifier that LiteRT and ONNX Runtime run, with probes and self-tests.

    from worlds.bundles import make_bundle
    host = make_bundle()                                             # digits 1.0.0, probes answered rightly
    graft = make_bundle(version="1.1.0", release=2, seed=1, grafts=(make_graft(),), parent=host)
    bad = make_bundle(version="1.2.0", release=3, corrupt=True, grafts=(make_graft(),), parent=host)

``seed`` moves a few classifier weights by one step (other bytes, nearly the same answers); ``corrupt`` turns the
classes round by one, so that nearly every probe is answered wrongly. The probes are the same file for every call with
the same ``probes``: their labels are the answers of the seed-0 model, taken where LiteRT and ONNX Runtime agree by a
margin.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import (
    BundleManifest,
    DomainStatistics,
    FileEntry,
    Graft,
    ModelFile,
    ModelIO,
    ModelTensor,
    Parity,
    Preprocessing,
    ReferenceProbes,
    SelfTest,
)
from kasmina_edge.contracts.profile import HardwareProfile

Array = npt.NDArray[Any]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
LABELS = tuple(str(i) for i in range(10))
SHAPE = (1, 16, 16, 1)
SELFTEST_SAMPLES = 16
LITERT_NAMES = ("args_0", "output_0")
ONNX_NAMES = ("x", "y")


def make_profile(**changes: Any) -> HardwareProfile:
    """A one-thread CPU profile, LiteRT first; ``changes`` replaces fields."""
    fields: dict[str, Any] = {
        "name": "test-cpu", "description": "the machine the tests run on", "chip": "any", "clock_mhz": 1000.0,
        "runtime": "LiteRT", "runtime_version": "2", "engines": ("litert", "onnxruntime"), "threads": 1,
        "ram_bytes": 2**30, "error_band": 0.5, "source": "tests",
    }  # fmt: skip
    return HardwareProfile.parse({**fields, **changes})


def make_graft(**changes: Any) -> Graft:
    """A depthwise graft at s1; ``changes`` replaces fields."""
    fields: dict[str, Any] = {
        "blueprint": "depthwise", "blueprint_version": 1, "site": "s1", "intensity": 1.0, "parameters": 88,
    }  # fmt: skip
    return Graft.parse({**fields, **changes})


@functools.cache
def digits() -> tuple[Array, Array]:
    """240 real digits that the model was not trained on: frames (N, 16, 16, 1) float32 in 0..1 and true labels (N,)."""
    with np.load(GOLDEN / "digits.npz") as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    big = np.kron(images.astype(np.float32), np.ones((1, 2, 2), np.float32)) / 16.0
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        wide = np.pad(big, pad)
        parts = [np.take(wide, range(k, k + 16), axis=axis) for k in range(3)]
        big = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
    return big[..., None].astype(np.float32), labels


def make_frames(count: int, seed: int = 0) -> Array:
    """``count`` frames (N, 1, 16, 16, 1) drawn from `digits` with a little sensor noise."""
    rng = np.random.default_rng(seed)
    frames = digits()[0][rng.integers(0, 240, count)]
    noisy = frames + rng.normal(0, 0.01, frames.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)[:, None]


def make_bundle(
    name: str = "digits",
    version: str = "1.0.0",
    release: int = 1,
    seed: int = 0,
    grafts: tuple[Graft, ...] = (),
    probes: int = 200,
    domains: tuple[DomainStatistics, ...] = (),
    *,
    corrupt: bool = False,
    parent: Bundle | BundleManifest | None = None,
    host: Bundle | BundleManifest | None = None,
    profile: str = "x86-cpu",
    engines: tuple[str, ...] = ("litert", "onnxruntime"),
    provenance: dict[str, str] | None = None,
) -> Bundle:
    """An unsigned bundle that runs.

    Args:
        seed: Which variant of the classifier's weights; 0 is the trained one.
        probes: How many labelled reference probes, at most 220; 0 leaves them out.
        corrupt: Turn the classes round by one.
        parent: What this one was grown from.
        host: The frozen host below all grafts; with grafts it defaults to the parent's host, or the parent, or the
            seed-0 bundle of this name.
    """
    if grafts and host is None:
        above = parent.manifest if isinstance(parent, Bundle) else parent
        host_digest = (above.host or above.content_digest()) if above else None
        host_digest = host_digest or make_bundle(name, domains=domains, probes=probes).manifest.content_digest()
    else:
        host_digest = _digest(host)
    files: dict[str, bytes] = {}
    models = [_model(engine, seed, corrupt, files) for engine in engines]
    reference = None
    if probes:
        files["probes.npz"] = _probes(probes)
        reference = ReferenceProbes(file=FileEntry.of("probes.npz", files["probes.npz"]), samples=probes)
    manifest = BundleManifest(
        name=name,
        version=version,
        release=release,
        parent=_digest(parent),
        host=host_digest,
        profile=profile,
        inputs=(ModelIO(name="image", shape=SHAPE),),
        outputs=(ModelIO(name="logits", shape=(1, 10), labels=LABELS),),
        head="classification",
        preprocessing=Preprocessing(mean=0.0, std=1.0, valid_range=(0.0, 1.0)),
        models=tuple(models),
        grafts=grafts,
        domains=domains,
        probes=reference,
        provenance=provenance or {},
    )
    return Bundle(manifest, files, {})


def model_bytes(engine: str, seed: int = 0, corrupt: bool = False) -> bytes:
    """The model file of `make_bundle` alone."""
    file = {"litert": "digits.tflite", "onnxruntime": "digits.onnx"}[engine]
    data = bytearray((GOLDEN / file).read_bytes())
    rows = json.loads((GOLDEN / "digits.json").read_text())[file]["rows"]
    if seed:
        start, width = rows[0]
        rng = np.random.default_rng(seed)
        for at in rng.choice(width * 10, 12, replace=False):
            step = int.from_bytes(data[start + at : start + at + 1], "little", signed=True)
            step += 1 if step < 0 else -1
            data[start + at : start + at + 1] = step.to_bytes(1, "little", signed=True)
    if corrupt:
        for start, width in rows:
            block = bytes(data[start : start + 10 * width])
            data[start : start + 10 * width] = block[width:] + block[:width]
    return bytes(data)


def compiled_bundle() -> Bundle:
    """Digits with a third file that needs an Edge TPU: its last operation is an ``edgetpu-custom-op``."""
    plain = make_bundle()
    lite = plain.model_for("litert")
    data = _with_custom_op(plain.files[lite.file.path])
    entry = FileEntry.of("model_edgetpu.tflite", data)
    compiled = lite.model_copy(update={"file": entry, "compiled_for": "edgetpu"})
    manifest = plain.manifest.model_copy(update={"models": (*plain.manifest.models, compiled)})
    return Bundle(BundleManifest.parse(manifest.model_dump()), {**plain.files, entry.path: data}, {})


def _with_custom_op(data: bytes) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode, code.version = b"edgetpu-custom-op", 1
    model.operatorCodes.append(code)
    last = model.subgraphs[0].operators[-1]
    last.opcodeIndex, last.builtinOptionsType, last.builtinOptions = len(model.operatorCodes) - 1, 0, None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def answer(engine: str, model: bytes, frames: Array) -> tuple[Array, Array]:
    """Run a model without Kasmina: its raw inputs and outputs, stacked (N, ...), in its own dtypes."""
    return _run_litert(model, frames) if engine == "litert" else _run_onnx(model, frames)


def _digest(of: Bundle | BundleManifest | None) -> str | None:
    manifest = of.manifest if isinstance(of, Bundle) else of
    return manifest.content_digest() if manifest else None


def _model(engine: str, seed: int, corrupt: bool, files: dict[str, bytes]) -> ModelFile:
    path = "model.tflite" if engine == "litert" else "model.onnx"
    selftest_path = f"selftest-{engine}.npz"
    files[path], files[selftest_path] = _made(engine, seed, corrupt)
    inputs, outputs = _tensors(engine)
    return ModelFile.parse(
        {
            "file": FileEntry.of(path, files[path]).model_dump(),
            "engine": engine,
            "inputs": [inputs.model_dump()],
            "outputs": [outputs.model_dump()],
            "selftest": SelfTest(
                file=FileEntry.of(selftest_path, files[selftest_path]),
                samples=SELFTEST_SAMPLES,
                tolerance=1.0 if engine == "litert" else 0.25,
            ).model_dump(),
            "parity": Parity(samples=240, top1_agreement=1.0, max_abs_difference=0.0).model_dump(),
        }
    )


@functools.cache
def _made(engine: str, seed: int, corrupt: bool) -> tuple[bytes, bytes]:
    model = model_bytes(engine, seed, corrupt)
    raw_in, raw_out = answer(engine, model, digits()[0][:SELFTEST_SAMPLES])
    name_in, name_out = LITERT_NAMES if engine == "litert" else ONNX_NAMES
    return model, pack_arrays({f"input_{name_in}": raw_in, f"output_{name_out}": raw_out})


@functools.cache
def _tensors(engine: str) -> tuple[ModelTensor, ModelTensor]:
    if engine == "onnxruntime":
        return (
            ModelTensor(name=ONNX_NAMES[0], shape=SHAPE, dtype="float32"),
            ModelTensor(name=ONNX_NAMES[1], shape=(1, 10), dtype="float32"),
        )
    (scale_in, zero_in), (scale_out, zero_out) = _litert_scales(_interpreter(model_bytes("litert")))
    return (
        ModelTensor(name=LITERT_NAMES[0], shape=SHAPE, dtype="int8", scale=scale_in, zero_point=zero_in),
        ModelTensor(name=LITERT_NAMES[1], shape=(1, 10), dtype="int8", scale=scale_out, zero_point=zero_out),
    )


@functools.cache
def _probes(count: int) -> bytes:
    frames, _ = digits()
    interpreter = _interpreter(model_bytes("litert"))
    scale, zero = _litert_scales(interpreter)[1]
    _, quantized = _run_litert(model_bytes("litert"), frames)
    lite = (quantized.astype(np.float64) - zero) * scale
    _, onnx = _run_onnx(model_bytes("onnxruntime"), frames)
    margins = [np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0] for logits in (lite, onnx)]
    agree = lite.argmax(1) == onnx.argmax(1)
    order = np.argsort(-np.where(agree, np.minimum(*margins), -1.0), kind="stable")[:count]
    order = np.sort(order)
    if len(order) < count or not agree[order].all():
        raise ValueError(f"only {int(agree.sum())} of {len(frames)} frames can be probes, {count} are asked for")
    return pack_arrays({"inputs": frames[order], "labels": lite.argmax(1)[order].astype(np.int64)})


def _interpreter(model: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _litert_scales(interpreter: Any) -> list[tuple[float, int]]:
    details = (interpreter.get_input_details()[0], interpreter.get_output_details()[0])
    return [(float(d["quantization"][0]), int(d["quantization"][1])) for d in details]


def _run_litert(model: bytes, frames: Array) -> tuple[Array, Array]:
    interpreter = _interpreter(model)
    (scale, zero), _ = _litert_scales(interpreter)
    raw = np.clip(np.rint(frames / np.float32(scale)) + zero, -128, 127).astype(np.int8)
    index_in = interpreter.get_input_details()[0]["index"]
    index_out = interpreter.get_output_details()[0]["index"]
    answers = []
    for frame in raw:
        interpreter.set_tensor(index_in, frame[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(index_out)[0])
    return raw, np.stack(answers)


def _run_onnx(model: bytes, frames: Array) -> tuple[Array, Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    answers = [session.run([ONNX_NAMES[1]], {ONNX_NAMES[0]: frame[None]})[0][0] for frame in frames]
    return np.ascontiguousarray(frames), np.stack(answers)
