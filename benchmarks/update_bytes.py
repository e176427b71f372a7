"""What a device receives for one graft, by part: real signatures, real metadata, the product's own update session."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from kasmina_edge.bundle import Bundle
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.updates.trust import MemoryFetcher, TrustStore
from kasmina_trainer.datasets.corruptions import NHWC_AXES, corrupt
from kasmina_trainer.demo.growing import Grower

CAPTURED = 200
_PARTS = ("model delta", "manifest", "selftest", "metadata", "total")


def rows() -> list[dict[str, Any]]:
    """Publish a host, then a graft; count what a device that holds the host receives for the graft."""
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        out = Path(folder)
        grower = Grower(out, seed=0, progress=lambda *_: None)
        grower.train_host()
        host = grower.export_host()
        camera = grower.splits.camera.take(slice(0, CAPTURED))
        blurred = corrupt(camera.nhwc(), "blur", axes=NHWC_AXES)
        graft = grower.release("graft", blurred, camera.y, ("bench/000000",))
        received = _update(out, host, graft)
    model = next(m for m in graft.manifest.models if m.engine == "litert").file.size_bytes
    story = (
        f"one depthwise graft at two sites, int8 TFLite of {model} B; probes and self-test inputs are reused by digest"
    )
    return [
        {
            "name": f"update_bytes.{part.replace(' ', '_')}",
            "target": None,
            "measured": received[part],
            "unit": "B",
            "ok": True,
            "how": story,
        }
        for part in _PARTS
    ]


def _update(out: Path, host: Bundle, graft: Bundle) -> dict[str, int]:
    """Bytes by part that the second update brings."""
    keys = out / "keys"
    repository = Repository.init(out / "repository", offline_keys=keys, clock=time.time)
    trust = TrustStore(out / "trust", clock=time.time)
    trust.pin(repository.root_bytes())
    held: dict[str, bytes] = {}
    received: dict[str, int] = {}
    for bundle in (host, graft):
        repository.publish(bundle, to=["@all"], offline_keys=keys)
        targets = {path: repository.target_bytes(path) for path in repository.target_sizes()}
        session = trust.session(MemoryFetcher(repository.metadata_files(), targets))
        session.refresh()
        offer = session.desired("device", ["all"])
        assert offer is not None
        model = next(m for m in offer.manifest.models if m.engine == "litert")
        by_digest = {entry.sha256: held[entry.path] for entry in host.manifest.files() if entry.path in held}
        held = dict(session.fetch(offer, model, by_digest.get, held).files)
        received = dict(session.received)
    return received
