"""An attacker with full access to the broker and keys of their own: the real attempt that devices must refuse."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.record import Desired
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.transport.mqtt import MqttTransport


def forge(address: str, device: str, topics: Topics, bundle: Bundle, *, clock: Callable[[], float]) -> tuple[str, ...]:
    """Sign a whole repository with one's own keys lay its metadata over the fleet's, and nudge the device.

    Returns:
        Names of the metadata files that were overwritten, in the order they were sent.
    """
    with tempfile.TemporaryDirectory(prefix="kasmina-forger-") as folder:
        own = Repository.init(Path(folder) / "repository", offline_keys=Path(folder) / "keys", clock=clock)
        own.publish(bundle, to=[device], accept_anyway=True, offline_keys=Path(folder) / "keys", audit=_keep_quiet)
        files = own.metadata_files()
    transport = MqttTransport(address, "forger")
    transport.connect(10.0)
    try:
        names = sorted((n for n in files if "root" not in n), key=lambda n: n == "timestamp.json")
        for name in names:
            transport.publish(topics.metadata(name), files[name], retain=True, wait_s=5.0)
        nudge = Desired(release=bundle.manifest.release + 1000, at_s=clock())
        transport.publish(topics.desired(device), nudge.to_bytes(), retain=True, wait_s=5.0)
    finally:
        transport.close()
    return tuple(names)


def _keep_quiet(event: str, **fields: object) -> None:
    """A forger keeps no audit log."""
