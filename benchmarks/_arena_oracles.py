"""What LiteRT and TFLM themselves take as an arena: the oracles of the simulator's packing.

LiteRT has no getter: where its tensors lie is read through the interpreter's views, the kernels' temporaries included.
TFLM (PyPI ``tflite-micro``, fetched into build/bench/ and run in a process of its own) prints what it allocated.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kasmina_edge.engines.tflite_graph import TfliteGraph

ROOT = Path(__file__).resolve().parent.parent
TFLM = "tflite-micro==0.dev20261023182759"
RESOLVERS = {"litert": "BUILTIN_REF", "litert-plain": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
_ARENA_BYTES = 16 << 20
_CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tflite_micro.python.tflite_micro import runtime
for path in sys.argv[2:]:
    os.write(1, f"\\n=== {path}\\n".encode())
    try:
        runtime.Interpreter.from_file(path, arena_size=ARENA).print_allocations()
    except Exception as exc:
        os.write(1, f"failed: {exc}\\n".encode())
"""


class NotFetchedError(Exception):
    """The index is out of reach, or has no wheel for this Python."""


def litert_arena(data: bytes, planner: str) -> int:
    """Bytes of LiteRT's arena for activations, with the kernels that ``planner`` names (one thread).

    Not for networks with resource variables: what is read of them has no place before the first run.
    """
    from ai_edge_litert import interpreter as litert

    resolver = getattr(litert.OpResolverType, RESOLVERS[planner])
    interpreter = litert.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    graph, wrapper = TfliteGraph(data), interpreter._interpreter
    own, temporary = [], []
    for index in range(wrapper.NumTensors(0)):
        try:
            wrapper.TensorSize(index, 0)  # a view of a temporary that has no shape yet would crash
            view = interpreter.tensor(index)()
        except ValueError:
            continue
        if not isinstance(view, np.ndarray) or not view.nbytes:
            continue
        at = int(view.__array_interface__["data"][0])
        if index >= len(graph.buffers):
            temporary.append((at, at + view.nbytes))
        elif graph.constant(index) is None:
            own.append((at, at + view.nbytes))
    low, high = min(at for at, _ in own), max(end for _, end in own)
    for at, end in sorted(temporary):  # those of the persistent arena lie elsewhere
        if low <= at <= high + 64:
            high = max(high, end)
    return high - low


def tflm_folder() -> Path:
    """The unpacked wheel.

    Raises:
        NotFetchedError: As said; the message is pip's.
    """
    folder = ROOT / "build/bench" / TFLM
    if (folder / "tflite_micro").is_dir():
        return folder
    with tempfile.TemporaryDirectory() as holder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--dest", holder]
        done = subprocess.run([*command, TFLM], capture_output=True, text=True, check=False)
        wheels = list(Path(holder).glob("*.whl"))
        if done.returncode or not wheels:
            raise NotFetchedError(f"pip download {TFLM}: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(folder)
    return folder


def tflm_arenas(nets: Mapping[str, bytes]) -> dict[str, dict[str, int]]:
    """``head`` (activations and scratch), ``tail`` (what stays) and ``total`` of each file that TFLM takes, by name.

    Raises:
        NotFetchedError: As `tflm_folder`.
    """
    folder = tflm_folder()
    with tempfile.TemporaryDirectory() as holder:
        paths = {str(Path(holder) / f"{i}.tflite"): name for i, name in enumerate(nets)}
        for path, name in paths.items():
            Path(path).write_bytes(nets[name])
        command = [sys.executable, "-c", _CHILD.replace("ARENA", str(_ARENA_BYTES)), str(folder), *paths]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    found = {}
    for part in done.stdout.split("\n=== ")[1:]:
        path, _, text = part.partition("\n")
        sizes = {key: int(n) for key, n in re.findall(r"Arena allocation (head|tail|total) (\d+) bytes", text)}
        if sizes:
            found[paths[path]] = sizes
    return found
