"""What a device does that must outlive a power cut, step by step, and the devices that it is done on.

A life is a list of steps, each a word and a call; the word is told once the call has returned. What holds after a cut
of any of it stands in `worlds.promises`. The same lives serve the model of a disk (tests/power/test_power_model.py),
processes killed under strace (test_power_strace.py) and real file systems (test_power_ext4.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from worlds.bundles import make_bundle, make_graft, make_profile
from worlds.telemetry import BUNDLE, NOW, Clock, make_frame, make_plan

from kasmina_edge.bundle import Bundle, write_folder
from kasmina_edge.errors import StorageError
from kasmina_edge.installer import Installer
from kasmina_edge.safety.audit import AuditLog
from kasmina_edge.slots import BootRecord, SlotStore
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.updates.trust import TrustStore

REASON = "reference probes 12.0 %, plan asks 95 %"
TOLD_QUARANTINE = "ab" * 32
RETRIES = 3
PLAN = make_plan("8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f")


def light(version: str, release: int, **kind: Any) -> Bundle:
    """One engine, no probes, a bit of metadata: few files, so that few operations are needed."""
    made = make_bundle(version=version, release=release, probes=0, engines=("litert",), **kind)
    return Bundle(made.manifest, made.files, {"1.root.json": b"{}" * 40})


HOST = light("1.0.0", 1)
GOOD = light("1.1.0", 2, seed=1, grafts=(make_graft(),), parent=HOST)
BAD = light("1.2.0", 3, seed=2, corrupt=True, grafts=(make_graft(),), parent=HOST)
NEXT = light("2.0.0", 9, seed=9)


def digest(bundle: Bundle) -> str:
    return bundle.manifest.content_digest()


class Device:
    """Everything durable of one data folder, as the agent holds it; nothing is opened before it is used."""

    def __init__(
        self, folder: Path, make_store: Callable[[Path], SlotStore] | None = None, outbox: type[Outbox] | None = Outbox
    ) -> None:
        self.folder = folder
        self.store = (make_store or store_at)(folder)
        self.trust = TrustStore(folder / "trust", clock=Clock())
        self.audit = AuditLog(folder / "audit.log", clock=Clock())
        self.installer = Installer(folder, self.store, self.trust, make_profile(), note=self.audit.append)
        self.capture = CaptureStore(folder / "capture", PLAN, "cam-1", Clock())
        self.has_outbox = outbox is not None

    def start(self) -> BootRecord:
        """What the agent does first."""
        record = self.store.recover()
        manifest = self.store.manifest(record.active) if record.active else None
        if manifest is not None:
            self.installer.settle(manifest)
        return record

    def try_bundle(self, bundle: Bundle) -> None:
        """Install and judge; a trial that is on already is judged again, as the agent does after a refusal."""
        trial = self.store.record().trial
        if trial is None:
            self.installer.put_on_trial(bundle, None)
        else:
            self.installer.judge_slot(trial, None)

    def send(self, payload: bytes) -> None:
        """Append to the outbox, when this device has one."""
        if self.has_outbox:
            outbox = Outbox(self.folder / "outbox.db", clock=Clock())
            try:
                outbox.append("event", payload, priority=1)
            finally:
                outbox.close()


def store_at(folder: Path) -> SlotStore:
    return SlotStore(folder, clock=lambda: NOW, lock_wait_s=0.0)


Step = tuple[str, Callable[[], object]]
Life = Callable[[Device], Sequence[Step]]


def run(steps: Iterable[Step], tell: Callable[[str], object], *, stubborn: bool = False) -> None:
    """Do the steps in order, each word told after its call; ``stubborn`` tries a refused step again, as agents do."""
    for word, call in steps:
        for attempt in range(RETRIES if stubborn else 1):
            try:
                call()
                break
            except StorageError:
                if not stubborn or attempt == RETRIES - 1:
                    raise
        tell(word)


# ------------------------------------------------------------------------------------------ lives


def grow(device: Device) -> list[Step]:
    """The slots alone: an update that is good, and one that does harm."""
    store = device.store
    return [
        ("installed", lambda: store.install(GOOD, engine="litert")),
        ("trial", lambda: store.begin_trial("b")),
        ("live", store.go_live),
        ("committed", store.confirm),
        ("installed again", lambda: store.install(BAD, engine="litert")),
        ("trial again", lambda: store.begin_trial("a", tries=2)),
        ("rolled back", lambda: store.roll_back(REASON)),
    ]


def begin(device: Device) -> list[Step]:
    """The first bundle of a new device."""
    store = device.store
    return [
        ("installed", lambda: store.install(HOST, engine="litert")),
        ("trial", lambda: store.begin_trial("a")),
        ("committed", store.confirm),
    ]


def start(device: Device) -> list[Step]:
    """An agent's start."""
    return [("started", device.start)]


def decide(device: Device) -> list[Step]:
    """Only the decisions about a bundle in the idle slot: short, so that every pair of faults can be tried."""
    return [
        ("trial", lambda: device.store.record().trial or device.store.begin_trial("b", tries=2)),
        ("live", device.installer.go_live),
        ("committed", lambda: device.installer.commit(GOOD.manifest)),
    ]


def refuse(device: Device) -> list[Step]:
    """The end of a trial that did harm."""
    return [("rolled back", lambda: device.installer.take_back(BAD.manifest, REASON))]


def go_back(device: Device) -> list[Step]:
    """What an operator does: return to the previous bundle, and release a quarantine."""
    return [
        ("returned", lambda: device.store.roll_back("operator")),
        ("released", lambda: device.store.release_quarantine(TOLD_QUARANTINE)),
    ]


def listen(device: Device) -> list[Step]:
    """What the trust store keeps: a newer plan, a floor that rises, a plan that was withdrawn."""
    trust = device.trust
    return [
        ("plan", lambda: trust.accept_plan(PLAN.model_copy(update={"serial": 2}))),
        ("floor", lambda: trust.raise_floor("digits", 5)),
        ("withdrawn", lambda: trust.drop_plan("digits")),
    ]


def update(device: Device) -> list[Step]:
    """Everything durable that an agent does: installer, floor, audit log, outbox, a captured frame, the quarantine."""
    return [
        ("audit", lambda: device.audit.append("before")),
        ("sent", lambda: device.send(b"first")),
        ("trial", lambda: device.try_bundle(GOOD)),
        ("live", device.installer.go_live),
        ("committed", lambda: device.installer.commit(GOOD.manifest)),
        ("kept", lambda: device.capture.keep(make_frame(1), bundle=BUNDLE)),
        ("trial again", lambda: device.try_bundle(BAD)),
        ("live again", device.installer.go_live),
        ("rolled back", lambda: device.installer.take_back(BAD.manifest, REASON)),
        ("quarantined", lambda: device.store.quarantine(TOLD_QUARANTINE, "told by the controller")),
        ("sent again", lambda: device.send(b"second")),
        ("audit again", lambda: device.audit.append("after")),
    ]


def hasty(device: Device) -> list[Step]:
    """Negative control: success is told before the commit."""
    steps = list(update(device))
    at = next(i for i, (word, _) in enumerate(steps) if word == "committed")
    _, commit = steps[at]
    steps[at : at + 1] = [("committed", lambda: None), ("really", commit)]
    return steps


# ------------------------------------------------------------------------------------------ devices to begin with


def nothing(folder: Path) -> None:
    """A new device."""
    folder.mkdir(parents=True, exist_ok=True)


def with_host(folder: Path) -> None:
    """A device that runs the host, confirmed."""
    device = Device(folder, outbox=None)
    device.start()
    device.store.begin_trial(device.store.install(HOST, engine="litert"))
    device.installer.commit(HOST.manifest)


def with_good_installed(folder: Path) -> None:
    """As `with_host`, and the graft lies in the idle slot."""
    with_host(folder)
    store_at(folder).install(GOOD, engine="litert")


def with_bad_live(folder: Path) -> None:
    """As `with_host`, and the harmful graft is on a live trial."""
    with_host(folder)
    store = store_at(folder)
    store.begin_trial(store.install(BAD, engine="litert"), tries=2)
    store.go_live()


def interrupted(folder: Path) -> None:
    """A trial without tries left, an installation that stopped, a slot that was not removed, torn temporaries."""
    with_host(folder)
    store = store_at(folder)
    store.begin_trial(store.install(BAD, engine="litert"))
    write_folder(GOOD, folder / "slots/.incoming-77", engine="litert")
    write_folder(GOOD, folder / "slots/.old-b-77", engine="litert")
    for name in (".boot-0.77-1.tmp", "trust/.floor.77-1.tmp", f"hosts/.{digest(HOST)}.json.77-1.tmp"):
        (folder / name).write_bytes(b"torn")


def with_both(folder: Path) -> None:
    """As `with_host`, and the graft was committed after it; something is quarantined."""
    with_good_installed(folder)
    store = store_at(folder)
    store.begin_trial("b")
    store.confirm()
    store.quarantine(TOLD_QUARANTINE, "told by the controller")


def with_rotten_active(folder: Path) -> None:
    """As `with_both`, and the active slot lost its model."""
    with_both(folder)
    (folder / "slots/b/model.tflite").unlink()


def with_plan(folder: Path) -> None:
    """As `with_host`, and a change plan with serial 1 was accepted."""
    with_host(folder)
    Device(folder, outbox=None).trust.accept_plan(PLAN)
