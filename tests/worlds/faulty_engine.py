"""An engine that breaks on command, in the worker as in life, and a bundle for it.

    world = FaultyWorld(tmp_path)
    with world.open(hang_ms=200) as engine:
        world.drive(engine, 10)
        world.breaks("hang")           # from the next call on, until `heals`

The engine computes one small matrix product, by numpy. What it shall do wrong stands in a file that it reads at every
load and call: ``hang``, ``crash``, ``exit``, ``forge``, ``slow SECONDS``, ``wrong``, ``wrong-frames`` (right on the
known vectors), ``wrong-sometimes SHARE``, ``nan``, ``off-by-one``, ``gone``, ``hang-load``,
``crash-load``. A leading ``once`` heals it before the fault. As with a USB device, one process at a time can have it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from worlds.bundles import make_profile

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, ModelFile, ModelIO
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.accelerator.channel import DONE, message
from kasmina_edge.engines.accelerator.events import AcceleratorEvent
from kasmina_edge.engines.accelerator.rules import SupervisorRules
from kasmina_edge.engines.accelerator.supervisor import SupervisedEngine, supervise
from kasmina_edge.engines.engine import Engine, EngineCheck, LoadedTensor

Array = np.ndarray
WIDTH, HEIGHT = 16, 8
VECTORS = 6
KNOWN = 100
"""First number of every known vector: by it the engine tells them from frames."""


def weights() -> Array:
    return np.random.default_rng(5).integers(-20, 20, (WIDTH, HEIGHT))


def truth(x: Array) -> Array:
    """The right answer."""
    product = x.astype(np.int64) @ weights()
    if x.dtype == np.float32:
        return (x @ weights().astype(np.float32)).astype(np.float32)
    return np.clip(product >> 4, -128, 127).astype(np.int8)


class ToyEngine(Engine):
    """Healthy; with a state it adds up its answers, modulo 100."""

    name: ClassVar[str] = "toy"

    @classmethod
    def check(cls, profile: HardwareProfile, model: ModelFile) -> EngineCheck:
        return EngineCheck(True, "Toy CPU", "toy 1")

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        self.runs_on = "Toy CPU"
        self.script = json.loads(data)
        sides = (self.model.inputs, self.model.outputs)
        first, second = ([LoadedTensor(t.name, t.shape, t.dtype) for t in side] for side in sides)
        return first, second

    def _run(self, inputs: list[Array]) -> list[Array]:
        answer = truth(inputs[0])
        if len(inputs) == 1:
            return [answer]
        total = (inputs[1] + answer) % 100
        return [total.astype(np.int8), total]


class FaultyEngine(ToyEngine):
    """Breaks as the control file says."""

    name: ClassVar[str] = "faulty"

    def _load(self, data: bytes, profile: HardwareProfile) -> tuple[list[LoadedTensor], list[LoadedTensor]]:
        loaded = super()._load(data, profile)
        self.runs_on = "Toy TPU"
        self._control = Path(self.script["control"])
        self._rng = np.random.default_rng(self.script["seed"])
        self._device = self._control.with_name("device").open("w")
        try:
            fcntl.flock(self._device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("the Toy TPU is taken") from None
        words = self._order()
        if words[0] == "gone":
            raise RuntimeError("no Toy TPU answered")
        if words[0] == "hang-load":
            time.sleep(3600)
        if words[0] == "crash-load":
            os.kill(os.getpid(), signal.SIGSEGV)
        return loaded

    def _order(self) -> list[str]:
        words = self._control.read_text().split() or ["fine"]
        if words[0] == "once":
            self._control.write_text("")
            words = words[1:]
        return words

    def _run(self, inputs: list[Array]) -> list[Array]:
        words = self._order()
        answers = super()._run(inputs)
        known = inputs[0].flat[0] == KNOWN
        match words[0]:
            case "hang":
                time.sleep(3600)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os.write(2, b"libtoy: device lost\nlibtoy: transfer failed\n")
                os._exit(7)
            case "forge":  # an answer to a call that nobody made
                os.write(int(sys.argv[1]), message(DONE, 2**40))
            case "gone":
                raise RuntimeError("no Toy TPU answered")
            case "slow":
                time.sleep(float(words[1]))
            case "wrong":
                answers[0] = answers[0][..., ::-1].copy() + answers[0].dtype.type(9)
            case "wrong-frames" if not known:
                answers[0] = answers[0][..., ::-1].copy() + answers[0].dtype.type(9)
            case "wrong-sometimes" if self._rng.random() < float(words[1]):
                answers[0] = answers[0] ^ np.int8(64)
            case "nan":
                answers[0][...] = np.nan
            case "off-by-one":
                answers[0] = np.where(answers[0] < 127, answers[0] + 1, answers[0]).astype(answers[0].dtype)
        return answers


class SlowTwin(ToyEngine):
    """A healthy CPU that takes its time: 20 ms a frame."""

    name: ClassVar[str] = "slow-toy"

    def _run(self, inputs: list[Array]) -> list[Array]:
        time.sleep(0.02)
        return super()._run(inputs)


@dataclass
class Drive:
    """What an app saw.

    Attributes:
        gaps_ms: How long each frame took.
        wrong: Frames whose answer was not the right one.
        by: Who answered each frame.
    """

    gaps_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    by: list[str] = field(default_factory=list)


class FaultyWorld:
    """A bundle with a plain file and one for the faulty accelerator, and the switch that breaks it.

    Args:
        folder: An empty folder.
        dtype: int8 or float32.
        stateful: The model carries state.
        seed: Of the frames, and of the faults that are drawn.
    """

    def __init__(self, folder: Path, *, dtype: str = "int8", stateful: bool = False, seed: int = 0) -> None:
        self.control = folder / "control"
        self.heals()
        self.events: list[AcceleratorEvent] = []
        self.rng = np.random.default_rng(seed)
        self.dtype, self.stateful, self._total = dtype, stateful, np.zeros((1, HEIGHT), np.int32)
        data = json.dumps({"control": str(self.control), "seed": seed}).encode()
        self.files = {"toy": data, "toy_tpu": data + b" "}
        frames = [self.frame() for _ in range(VECTORS)]
        for frame in frames:
            frame.flat[0] = KNOWN
        answers = [self.right(frame) for frame in frames]
        self._total[...] = 0
        self.files["selftest.npz"] = pack_arrays({"input_x": np.stack(frames), "output_y": np.stack(answers)})
        plain, compiled = self._model("toy", None), self._model("toy_tpu", "edgetpu")
        manifest = BundleManifest(
            name="toy", version="1.0.0", release=1, profile="x86-cpu", models=(plain, compiled),
            inputs=(ModelIO(name="x", shape=(1, WIDTH)),), outputs=(ModelIO(name="y", shape=(1, HEIGHT)),),
        )  # fmt: skip
        self.bundle = Bundle(manifest, self.files, {})

    def _model(self, path: str, compiled_for: str | None) -> ModelFile:
        scale = {"scale": 0.5, "zero_point": 0} if self.dtype == "int8" else {}
        state = {"shape": (1, HEIGHT), "dtype": "int32"}
        inputs = [{"name": "x", "shape": (1, WIDTH), "dtype": self.dtype, **scale}]
        outputs = [{"name": "y", "shape": (1, HEIGHT), "dtype": self.dtype, **scale}]
        if self.stateful:
            inputs.append({"name": "total", **state})
            outputs.append({"name": "total_next", **state})
        return ModelFile.parse(
            {
                "file": FileEntry.of(path, self.files[path]).model_dump(),
                "engine": "toy",
                "inputs": inputs,
                "outputs": outputs,
                "compiled_for": compiled_for,
                "states": [{"input": "total", "output": "total_next"}] if self.stateful else [],
                "selftest": {
                    "file": FileEntry.of("selftest.npz", self.files["selftest.npz"]).model_dump(),
                    "samples": VECTORS,
                    "tolerance": 0.5,
                },
                "parity": {"samples": 1, "top1_agreement": 1.0, "max_abs_difference": 0.0},
            }
        )

    def open(self, *, twin: type[Engine] = ToyEngine, **rules: Any) -> SupervisedEngine:
        """The supervised engine, with waits that suit a test and no limit on late answers but the one asked for."""
        asked = {"required", "reset"}
        limits: dict[str, Any] = {
            "hang_ms": 300.0, "late_limit": 10**9, "probation_frames": 3, "backoff_first_s": 0.05,
            "backoff_max_s": 0.2, "startup_calls": 8, "deadline_factor": 2.0,
            **{k: v for k, v in rules.items() if k not in asked},
        }  # fmt: skip
        plain, compiled = self.bundle.manifest.models
        return supervise(
            self.bundle,
            make_profile(engines=("toy",)),
            (FaultyEngine, compiled),
            (twin, plain),
            label="Toy TPU",
            rules=SupervisorRules(**limits),
            on_change=self.events.append,
            **{k: v for k, v in rules.items() if k in asked},
        )

    def breaks(self, order: str) -> None:
        """From the next call on."""
        beside = self.control.with_suffix(".new")
        beside.write_text(order)
        beside.replace(self.control)

    def heals(self) -> None:
        self.breaks("")

    def frame(self) -> Array:
        """One input that is no known vector."""
        return self.rng.integers(-90, 90, (1, WIDTH)).astype(self.dtype)

    def right(self, frame: Array) -> Array:
        """What it has to be answered with; a model with state moves on."""
        answer = truth(frame)
        if self.stateful:
            self._total = (self._total + answer) % 100
            answer = self._total.astype(np.int8)
        return answer

    def drive(
        self, engine: Engine, frames: int = 1, *, until: Callable[[], bool] | None = None, into: Drive | None = None
    ) -> Drive:
        """Ask as an app does; with ``until``, go on at some 500 frames a second until it holds, at most 30 s."""
        seen, run = into or Drive(), engine.hot_path()
        ends = time.monotonic() + 30.0
        while frames > 0 or (until is not None and not until()):
            if time.monotonic() > ends:
                raise AssertionError(f"nothing happened for 30 s: {self.kinds}, {seen.by[-3:]}")
            frame = self.frame()
            right = self.right(frame)
            began = time.perf_counter()
            (answer,) = run([frame])
            seen.gaps_ms.append((time.perf_counter() - began) * 1000)
            seen.wrong += not np.allclose(answer, right, atol=1e-3)
            seen.by.append(engine.runs_on)
            frames -= 1
            if frames <= 0 and until is not None:
                time.sleep(0.002)
        return seen

    def in_service(self, engine: SupervisedEngine) -> Drive:
        """Drive until the accelerator answers."""
        return self.drive(engine, until=lambda: engine.counters().in_service and engine.runs_on == "Toy TPU")

    @property
    def kinds(self) -> list[str]:
        """Kinds of all events so far."""
        return [event.kind for event in self.events]


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether it comes to hold in time."""
    ends = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
