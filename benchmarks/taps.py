"""What looking into seed sites costs: processor time a look, share of a core, memory, and what the app feels of it.

Two networks with two grafts each, exported by the product's own route with random weights: time and memory do not ask
what was learned. The app is a loop around LiteRT that offers a frame every 10 ms, as the recorder does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.bundle import Bundle, read_file
from kasmina_edge.bundle import pack as pack_bundle
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines import open_engine
from kasmina_edge.engines.shadow import Shadow
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.taps import SHARE, SiteTaps
from kasmina_trainer.export import export_bundle
from kasmina_trainer.hosts import DigitsHost, SeparableBlock
from kasmina_trainer.seeds import attach_seeds

Array = npt.NDArray[Any]
OFFER_EVERY_S = 0.01
_SEED = 0


class Wide(nn.Module):
    """A separable network of 96x96 colour images, 0.4 M parameters."""

    input_shape = (3, 96, 96)
    seed_sites = ("a", "c")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.a, self.b = SeparableBlock(32, 64, 1), SeparableBlock(64, 128, 2)
        self.c, self.d = SeparableBlock(128, 256, 2), SeparableBlock(256, 512, 2)
        self.e = SeparableBlock(512, 512, 1)
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 96, 96) to (N, 10)."""
        x = self.e(self.d(self.c(self.b(self.a(self.stem(x))))))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Every figure, of the small and of the wide network."""
    found: list[dict[str, Any]] = []
    for name, host in (("small", DigitsHost), ("wide", Wide)):
        bundle, frames = grafted(host)
        found += looks(name, bundle, frames, 40 if quick else 400)
        found.append(share(name, bundle, frames, 4.0 if quick else 30.0))
        found.append(memory(name, bundle))
        found += felt(name, bundle, frames, pairs=5 if quick else 15, seconds=0.5 if quick else 1.5)
    return found


def grafted(host: Callable[[], nn.Module]) -> tuple[Bundle, Array]:
    """The network with grafts at its first two sites, and frames.  # (N, H, W, C)"""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        bare = host()
        for module in bare.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.1)  # equal biases would share one tensor
        network = attach_seeds(bare)
        parts = export_of(network)
        for site in network.sites[:2]:
            network.graft(site, "depthwise")
        for parameter in network.graft_parameters():
            nn.init.normal_(parameter.data, std=0.05)
        return export_of(network, parts[0], version="1.1.0", grafts=network.grafts), parts[1]


def export_of(network: Any, parent: Bundle | None = None, version: str = "1.0.0", **more: Any) -> Any:
    """A bundle of a network that learned nothing; with its frames where it has no parent."""
    channels, height, width = network.body.input_shape
    frames = np.random.default_rng(_SEED).random((32, height, width, channels), np.float32)
    bundle = export_bundle(
        network, "bench", version=version, profile="x86-cpu", calibration=frames,
        held_out=(frames, np.zeros(len(frames), np.int64)), labels=[str(i) for i in range(10)], domains={},
        parent=parent, minimum_agreement=0.0, **more,
    )  # fmt: skip
    return bundle if parent is not None else (bundle, frames)


def quantized(bundle: Bundle, frames: Array) -> Array:
    """Frames in the model's own numbers.  # (N, H, W, C) int8"""
    tensor = bundle.model_for("litert").inputs[0]
    assert tensor.scale is not None and tensor.zero_point is not None
    return np.asarray(np.clip(np.rint(frames / tensor.scale) + tensor.zero_point, -128, 127), np.int8)


def looks(name: str, bundle: Bundle, frames: Array, count: int) -> list[dict[str, Any]]:
    """Processor time of a look with all that belongs to it, and of the shadow's kernels over XNNPACK's."""
    model = bundle.model_for("litert")
    data, inputs = bundle.read(model.file), quantized(bundle, frames)
    timer, spent = [0], [0]

    def spent_ns() -> int:
        spent.append(time.thread_time_ns())
        return spent[-1]

    taps = SiteTaps(bundle.manifest, model, data, timer_ns=lambda: timer[0], spent_ns=spent_ns)
    for i in range(count):
        timer[0] += 10**13
        taps.offer([inputs[i % len(inputs)][None]])
        taps.wait(60.0)
    taps.close()
    costs_us = np.diff(spent[1:])[::2] / 1000.0
    engine = open_engine(bundle, load_profile("x86-cpu"), engine="litert")
    shadow = Shadow(model, data)
    run = engine.hot_path()
    pairs = []
    for i in range(count):
        frame = inputs[i % len(inputs)][None]
        times = []
        for call in (lambda f=frame: run([f]), lambda f=frame: shadow.look([f])):
            began = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - began) / 1000.0)
        pairs.append(times)
    engine.close()
    bare, seen = np.median(np.array(pairs), axis=0)
    return [
        _row(
            f"taps.{name}_look", None, float(costs_us.mean()), "us", True,
            f"mean processor time of {len(costs_us)} looks with counterfactuals; median {np.median(costs_us):.0f}, "
            f"longest {costs_us.max():.0f}; {len(model.sites)} sites, file of {len(data)} B",
        ),
        _row(
            f"taps.{name}_shadow_ratio", None, float(seen / bare), "x engine", True,
            f"one frame through the shadow with all sites read {seen:.0f} us, through the engine {bare:.0f} us",
        ),
    ]  # fmt: skip


def share(name: str, bundle: Bundle, frames: Array, seconds: float) -> dict[str, Any]:
    """Of one core, in real time, while an app offers 100 frames a second."""
    model, inputs = bundle.model_for("litert"), quantized(bundle, frames)
    spent: list[int] = []

    def spent_ns() -> int:
        spent.append(time.thread_time_ns())
        return spent[-1]

    taps = SiteTaps(bundle.manifest, model, bundle.read(model.file), spent_ns=spent_ns, hardware=HardwareReader())
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        taps.offer([inputs[0][None]])
        time.sleep(OFFER_EVERY_S)
    taps.wait(60.0)
    taps.close()
    used = (spent[-1] - spent[1]) / 1e9 / seconds  # without the first look, which loads the files
    how = f"{taps.looks} looks in {seconds:.0f} s; the first, with loading, took {(spent[1] - spent[0]) / 1e6:.1f} ms"
    return _row(f"taps.{name}_share", SHARE * 1.05, used, "of a core", used <= SHARE * 1.05, how)


def memory(name: str, bundle: Bundle) -> dict[str, Any]:
    """Unshared memory that the shadow and a silenced copy add, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        path = Path(folder) / "bundle.kasmina"
        path.write_bytes(pack_bundle(bundle))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.taps", str(path)], capture_output=True, text=True, check=True
        )
    before, shadow, both = json.loads(done.stdout.splitlines()[-1])
    return _row(
        f"taps.{name}_memory", None, float(both - before), "KiB", True,
        f"anonymous memory of the process: {shadow - before} KiB for the shadow, {both - shadow} KiB for a silenced "
        f"copy; the file has {bundle.model_for('litert').file.size_bytes // 1024} KiB",
    )  # fmt: skip


def _hold(path: Path) -> list[int]:
    bundle = read_file(path)
    model = bundle.model_for("litert")
    engine = open_engine(bundle, load_profile("x86-cpu"), engine="litert")
    frame = [np.zeros(t.shape, t.dtype) for t in model.inputs]
    engine.hot_path()(frame)
    engine.hot_path()(frame)
    found = [_anonymous_kib()]
    shadow = Shadow(model, bundle.read(model.file))
    shadow.look(frame)
    found.append(_anonymous_kib())
    silent = shadow.silence(shadow.grafted)
    assert silent is not None
    silent.look(frame)
    found.append(_anonymous_kib())
    return found


def _anonymous_kib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def felt(name: str, bundle: Bundle, frames: Array, *, pairs: int, seconds: float) -> list[dict[str, Any]]:
    """Latency of the app's calls with taps over without, blocks in turn."""
    model, inputs = bundle.model_for("litert"), quantized(bundle, frames)
    engine = open_engine(bundle, load_profile("x86-cpu"), engine="litert")
    run = engine.hot_path()
    taps = SiteTaps(bundle.manifest, model, bundle.read(model.file))

    def block(offers: bool) -> Array:
        times: list[int] = []
        next_s, end_s = 0.0, time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s:
            frame = inputs[len(times) % len(inputs)][None]
            began = time.perf_counter_ns()
            run([frame])
            times.append(time.perf_counter_ns() - began)
            if offers and now_s >= next_s:
                next_s = now_s + OFFER_EVERY_S
                taps.offer([frame.copy()])
        return np.array(times) / 1000.0

    block(True)
    taken = [(block(False), block(True)) for _ in range(pairs)]
    taps.close()
    engine.close()
    found = []
    for label, share_ in (("p50", 0.5), ("p999", 0.999)):
        ratios = [float(np.quantile(with_, share_) / np.quantile(without, share_)) for without, with_ in taken]
        middle = statistics.median(ratios)
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        how = f"median of {pairs} pairs of blocks of {seconds:g} s, {taps.looks} looks; {span}"
        found.append(_row(f"taps.{name}_infer_{label}_ratio", None, middle, "x without", True, how))
    return found


def _row(name: str, target: float | None, measured: float, unit: str, ok: bool, how: str) -> dict[str, Any]:
    return {"name": name, "target": target, "measured": measured, "unit": unit, "ok": bool(ok), "how": how}


if __name__ == "__main__":
    print(json.dumps(_hold(Path(sys.argv[1]))))
