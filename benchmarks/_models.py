"""Bundles that benchmarks run, made by the product's own route and kept in build/bench/ until that route changes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle, pack, read_file
from kasmina_edge.slots import SlotStore

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "x86-cpu"
_WIDER = {"wide": 9, "wider": 18}
NAMES = ("digits", "other", *_WIDER)
"""``other`` is the digits host from another seed; ``wide`` the untrained host on frames of 144x144, just over 1 ms;
``wider`` on 288x288, some 5 ms."""
Frames = list[npt.NDArray[Any]]


def bundle_path(name: str) -> Path:
    """The file of one bundle of `NAMES`; built in a process of its own when it is not there."""
    path = ROOT / "build/bench" / f"{name}-{_key()}.kasmina"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks._models", name, str(path)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def frames_of(bundle: Bundle, count: int = 64) -> Frames:
    """``count`` frames of the bundle's reference probes or, for the wide ones, of its self-test, in the app's units."""
    from kasmina_edge.engines.tensors import from_model

    if bundle.manifest.probes is not None:
        frames = bundle.arrays(bundle.manifest.probes.file)["inputs"]
    else:
        model = bundle.model_for("litert")
        raw = bundle.arrays(model.selftest.file)[f"input_{model.inputs[0].name}"]
        frames = from_model(raw, model.inputs[0].model_copy(update={"shape": raw.shape}))
    shape = bundle.manifest.inputs[0].shape
    flat = np.asarray(frames, np.float32).reshape(-1, *shape)
    return [np.ascontiguousarray(flat[i % len(flat)]) for i in range(count)]


def deploy(data: Path, bundle: Bundle, engine: str) -> None:
    """Install and commit, as an agent does."""
    store = SlotStore(data)
    store.begin_trial(store.install(bundle, engine=engine))
    store.go_live()
    store.confirm()


def read(name: str) -> Bundle:
    """The bundle of `bundle_path`."""
    return read_file(bundle_path(name))


def _key() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "kasmina_trainer").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(name: str) -> Bundle:
    from kasmina_trainer.datasets.digits import split_digits, to_nhwc
    from kasmina_trainer.export import export_bundle
    from kasmina_trainer.hosts import build_host
    from kasmina_trainer.training import train_host

    parts = split_digits(0)
    labels = [str(i) for i in range(10)]
    probes = to_nhwc(parts.probes.x), parts.probes.y
    if name in _WIDER:
        cell = np.ones((1, _WIDER[name], _WIDER[name], 1))
        fine = [np.kron(to_nhwc(x[:24]), cell) for x in (parts.host.x, parts.probes.x)]
        clean, held = (x.astype(np.float32) for x in fine)
        return export_bundle(
            build_host().eval(), name, version="1.0.0", profile=PROFILE, calibration=clean,
            held_out=(held, probes[1][:24]), labels=labels, domains={"clean": clean}, minimum_agreement=0.0,
        )  # fmt: skip
    clean = to_nhwc(parts.host.x)[:300]
    seed = 1 if name == "other" else 0
    return export_bundle(
        train_host(parts.host, seed=seed), "digits", version=f"1.{seed}.0", profile=PROFILE, calibration=clean,
        held_out=probes, labels=labels, domains={"clean": clean}, probes=probes, release=seed + 1,
    )  # fmt: skip


if __name__ == "__main__":
    whole = pack(_make(sys.argv[1]))
    Path(sys.argv[2] + ".part").write_bytes(whole)
    Path(sys.argv[2] + ".part").rename(sys.argv[2])
