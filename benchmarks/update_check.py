"""How long "is there any update?" takes over MQTT on loopback: a verified refresh with nothing new, and a cold one.

Warm is what a device does at every check: `UpdateSession.refresh` with everything cached, a fetcher of its own as in
the agent. Cold starts with the pinned root alone and also reads what is wanted here: the director's metadata and the
manifest, a small retained target. Broker and controller are the product's own, on this machine; the controller runs
in this process.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import (
    BundleManifest,
    FileEntry,
    ModelFile,
    ModelIO,
    ModelTensor,
    Parity,
    SelfTest,
)
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.fleet.controller import Controller
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.fleet.store import FleetStore
from kasmina_edge.transport.broker import BrokerProcess, start_embedded, start_mosquitto
from kasmina_edge.transport.mqtt import MqttTransport
from kasmina_edge.transport.transport import Transport
from kasmina_edge.updates.mqtt_fetcher import MqttFetcher
from kasmina_edge.updates.trust import TrustStore

TARGET_MS = 20.0
DEVICE = "cam-1"
MODEL_BYTES = 1_000_000
TOPICS = Topics(site="bench")
BROKERS: dict[str, Callable[[], BrokerProcess]] = {"mosquitto": start_mosquitto, "iotcore": start_embedded}


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Warm check on mosquitto against its target; the rest stands beside it and has none of its own."""
    repeats = 20 if quick else 200
    measured: list[dict[str, Any]] = []
    for kind, start in BROKERS.items():
        with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder, start() as broker:
            found = _measure(Path(folder), broker.address, repeats)
        where = f"over {kind}, MQTT 5, loopback"
        measured += [
            _row(f"warm update check, {kind}", TARGET_MS, found.warm_ms, f"median of {repeats} refreshes {where}"),
            _row(
                f"cold check with manifest, {kind}", None, found.cold_ms,
                f"median of {max(5, repeats // 10)}, from the pinned root alone {where}",
            ),
            _row(
                f"whole model of 1 MB, {kind}", None, found.model_ms,
                f"median of 5 downloads in chunks of 128 KiB {where}",
            ),
        ]  # fmt: skip
    return measured


@dataclass(frozen=True)
class _Found:
    warm_ms: float
    cold_ms: float
    model_ms: float


def _measure(folder: Path, address: str, repeats: int) -> _Found:
    repository = Repository.init(folder / "repository", offline_keys=folder / "offline", clock=time.time)
    repository.publish(_bundle(), to=[DEVICE], offline_keys=folder / "offline")
    model = next(p for p in repository.target_sizes() if p.endswith(".tflite"))
    with ExitStack() as stack:
        stack.enter_context(_serving(repository, folder, address))
        device = MqttTransport(address, DEVICE)
        stack.callback(device.close)
        device.connect()
        cold = [_cold(folder / f"trust-{i}", repository, device) for i in range(max(5, repeats // 10))]
        trust = TrustStore(folder / "trust-0", clock=time.time)
        warm = [_timed(lambda: trust.session(MqttFetcher(device, TOPICS, DEVICE)).refresh()) for _ in range(repeats)]
        fetcher = MqttFetcher(device, TOPICS, DEVICE)
        url = f"kasmina://repository/targets/{model}"
        whole = [_timed(lambda: fetcher.download_bytes(url, MODEL_BYTES)) for _ in range(5)]
    return _Found(*(statistics.median(times) for times in (warm, cold, whole)))


def _cold(folder: Path, repository: Repository, device: Transport) -> float:
    trust = TrustStore(folder, clock=time.time)
    trust.pin(repository.root_bytes())

    def look() -> None:
        session = trust.session(MqttFetcher(device, TOPICS, DEVICE))
        session.refresh()
        if session.desired(DEVICE, ()) is None:
            raise RuntimeError("nothing is wanted here: the benchmark's repository is wrong")

    return _timed(look)


@contextmanager
def _serving(repository: Repository, folder: Path, address: str) -> Iterator[None]:
    transport = MqttTransport(address, "controller", clean_start=False)
    store = FleetStore(folder / "fleet.db")
    controller = Controller(repository.folder, transport, TOPICS, store, time.time)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), kwargs={"ready": ready})
    thread.start()
    try:
        if not ready.wait(30.0):
            raise RuntimeError(f"the controller published nothing at {address} within 30 s")
        yield
    finally:
        stop.set()
        thread.join()
        transport.close()
        store.close()


def _bundle() -> Bundle:
    """A host whose model is long and whose manifest is short; nothing here is ever run."""
    tensor = ModelTensor(name="x", shape=(1, 8), dtype="float32")
    files = {"model.tflite": bytes(MODEL_BYTES), "selftest.npz": bytes(100)}
    model = ModelFile(
        file=FileEntry.of("model.tflite", files["model.tflite"]),
        engine="litert",
        inputs=(tensor,),
        outputs=(tensor,),
        selftest=SelfTest(file=FileEntry.of("selftest.npz", files["selftest.npz"]), samples=1, tolerance=1.0),
        parity=Parity(samples=1, top1_agreement=1.0, max_abs_difference=0.0),
    )
    side = ModelIO(name="x", shape=(1, 8))
    manifest = BundleManifest(
        name="bench", version="1.0.0", release=1, profile="x86-cpu", inputs=(side,), outputs=(side,), models=(model,)
    )
    return Bundle(manifest, files, {})


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e3


def _row(name: str, target_ms: float | None, measured_ms: float, how: str) -> dict[str, Any]:
    binding = target_ms is not None and name.endswith("mosquitto")
    return {
        "name": name,
        "target": target_ms if binding else "-",
        "measured": round(measured_ms, 2),
        "unit": "ms",
        "ok": not binding or measured_ms <= TARGET_MS,
        "how": how,
    }
