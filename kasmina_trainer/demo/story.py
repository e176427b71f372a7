"""The story of ``make demo``, step by step: every step is the product's own code on real digits, nothing is acted.

`Story` holds the table of steps; what each measured goes into a `Findings` value, from which the closing table and the
HTML page are made. The cameras' lens is the only thing that is switched by hand.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kasmina_edge.bundle import Bundle, pack, read_file
from kasmina_edge.cli.output import size_text
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.record import Reported
from kasmina_edge.errors import KasminaError
from kasmina_edge.fleet.captures import export_labelled, read_annotations
from kasmina_edge.fleet.folder import FleetFolder, Limits, default_folder
from kasmina_edge.fleet.monitor import fleet_alerts
from kasmina_edge.fleet.repository import Published, Repository
from kasmina_edge.runtime import Runtime
from kasmina_edge.storage import write_durable
from kasmina_edge.updates.delta import make_delta
from kasmina_trainer.demo.findings import Findings, Step
from kasmina_trainer.demo.processes import Processes
from kasmina_trainer.demo.rivals import unsigned_path

CAMERAS = ("cam-1", "cam-2", "cam-3")
DRIFTING = "cam-2"
CAPTURED_SAMPLES = 240
CAPTURE_BUDGET = 900
SETTLING_S = 3.0
CORRUPTION = "blur"
TARGET = "out-of-focus"
STEP_TIMEOUT_S = 90.0


Progress = Callable[[str, float | None], None]


class Story:
    """The demo over one output folder.

    Args:
        out: Output folder; its earlier content is removed.
        seed: Seeds splits, training, cameras and growth.
        progress: Called with a step's text and the share done (None: it begins).
        finished: Called with each step that ended.
        clock: Wall clock.
    """

    def __init__(
        self,
        out: Path,
        *,
        seed: int = 0,
        progress: Progress,
        finished: Callable[[Step], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.out = out
        self.seed = seed
        self.clock = clock
        self.progress = progress
        self.finished = finished
        self.found = Findings(seed)
        self._office: FleetFolder | None = None
        self._bundles: dict[str, Bundle] = {}

    def run(self) -> Findings:
        """Tell the whole story; every process is ended whatever happens.

        Raises:
            KasminaError: A step did not come to its end; the message names it.
        """
        from kasmina_trainer.demo.growing import Grower

        fleet = default_folder().with_name("demo-fleet")
        offline = default_folder().with_name("demo-fleet-offline-keys")
        for folder in (self.out, fleet, offline):
            shutil.rmtree(folder, ignore_errors=True)
        self.out.mkdir(parents=True)
        began = time.monotonic()
        with Processes(self.out / "logs") as processes:
            with self._step("Train the host on real digits") as step:
                grower = Grower(self.out, seed=self.seed, progress=self.progress)
                step.note = grower.train_host()
            with self._step("Quantize to int8, export TFLite and ONNX, sign with the desk key") as step:
                self._keep("host", grower.export_host())
                step.note = self._parity("host")
            with self._step("Make a fleet, enrol three cameras") as step:
                self._office = FleetFolder.init(fleet, offline_keys=offline, clock=self.clock)
                for camera in CAMERAS:
                    self._office.enroll(camera, self.out / camera)
                step.note = f"keys in {fleet.parent}, root 2 of 3, targets 2 of 2"
            with self._step("Start broker, controller, three agents, three cameras") as step:
                self._start(processes, grower.scenes())
                step.note = f"{2 * len(CAMERAS) + 1} processes, MQTT 5 at {self._office.config.address}"
            with self._step("Publish host and change plan, deploy to all cameras") as step:
                self._publish_host(offline)
                reports = [self._until_reported(c, "committed", processes) for c in CAMERAS]
                step.note = f"{len(reports)} devices committed {self._bundles['host'].manifest.id}"
            with self._step("Stream from sharp cameras") as step:
                accuracy, drift = self._stream(processes, frames=120)
                step.note = f"check frames {100 * accuracy:.0f} %, drift {drift:.2f} (alarm at 1)"
                self.found.facts["check_accuracy_clean"] = accuracy
            drifted_at = self.clock()
            with self._step(f"{DRIFTING} goes out of focus; the monitor watches") as step:
                self._lens(CORRUPTION)
                step.note = self._until_drift(processes)
            with self._step(f"Collect {CAPTURED_SAMPLES} sealed inputs, join the annotator's labels") as step:
                captured = self._collect(processes, drifted_at + SETTLING_S)
                step.note = f"{len(captured.y)} labelled inputs, opened with the controller's key only"
            with self._step("Grow a graft from those inputs and the clean set") as step:
                self._start_rivals(processes, captured)
                self._keep("graft", grower.release("graft", captured.x, captured.y, captured.batches))
                step.note = self._acceptance("graft")
            with self._step("Publish the graft; the device applies the delta, tries, commits") as step:
                began_update = time.monotonic()
                self._publish("graft")
                report = self._until_reported(DRIFTING, "committed", processes, version="1.1.0")
                received = dict(report.update_bytes or {})
                self.found.update_bytes = received
                self.found.facts["update_seconds"] = time.monotonic() - began_update
                self.found.facts["drift_to_committed_s"] = self.clock() - drifted_at
                parts = ", ".join(f"{k} {size_text(v)}" for k, v in received.items() if v and k != "total")
                step.note = f"{size_text(received['total'])} received ({parts}); {report.reason}"
            with self._step("The camera recovers on its check frames") as step:
                accuracy, drift = self._stream(processes, frames=120)
                self.found.facts["check_accuracy_recovered"] = accuracy
                step.note = f"check frames {100 * accuracy:.0f} %, drift {drift:.2f}"
            with self._step("Beside it, grown meanwhile: a scale/BN retune from the same inputs") as step:
                self._await_rival("retune", processes)
                step.note = self._acceptance("retune")
            with self._step("Grown meanwhile: a harmful graft, from the captured inputs alone") as step:
                self._await_rival("harmful", processes)
                step.note = self._acceptance("harmful")
            with self._step("It is correctly signed and inside the plan; the device takes it back") as step:
                published_at = self.clock()
                self._publish("harmful", accept_anyway=True)
                report = self._until_reported(DRIFTING, "rolled_back", processes)
                self.found.facts["harmful_seconds"] = self.clock() - published_at
                self.found.facts["harmful_reason"] = report.reason.removeprefix("digits 1.2.0: ")
                step.note = report.reason
            with self._step("A forged update is refused") as step:
                report = self._forge(processes)
                self.found.facts["forged_reason"] = report.reason
                step.note = report.reason
            with self._step("Remove the graft") as step:
                step.note = self._remove(grower, processes)
            with self._step("Measure every bundle's deployed int8 file on held-out digits") as step:
                self._measure(grower)
                step.note = f"{self.found.facts['test_samples']} digits that nothing was trained on"
            self.found.drift = self._drift_curve()
        self.found.facts["seconds"] = time.monotonic() - began
        write_durable(self.out / "findings.json", json.dumps(self.found.__dict__, default=_plain, indent=1).encode())
        return self.found

    @contextmanager
    def _step(self, name: str) -> Any:
        step = Step(name)
        began = time.monotonic()
        self.progress(name, None)
        try:
            yield step
        except KasminaError as exc:
            raise type(exc)(f"{name}: {exc.message}", exc.next_step) from exc
        step.seconds = time.monotonic() - began
        self.found.steps.append(step)
        self.found.events.append({"at_s": self.clock(), "name": name, "note": step.note})
        self.finished(step)

    @property
    def office(self) -> FleetFolder:
        """The demo's fleet."""
        assert self._office is not None
        return self._office

    def _keep(self, kind: str, bundle: Bundle) -> None:
        """Sign with the desk key and write where `kasmina-edge deploy` looks (what is harmful goes elsewhere)."""
        signed = Repository.desk(clock=self.clock).sign_bundle(bundle)
        self._bundles[kind] = signed
        write_durable(self.path(kind), pack(signed))

    def path(self, kind: str) -> Path:
        """The bundle file of one kind."""
        manifest = self._bundles[kind].manifest
        folder = self.out if kind in ("host", "graft") else self.out / "compared" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{manifest.name}-{manifest.version}.kasmina"

    def _start(self, processes: Processes, scenes: dict[str, np.ndarray]) -> None:
        ready = self.out / "controller.ready"
        write_durable(self.out / "scenes.npz", pack_arrays(scenes))
        self._launch(
            processes,
            "controller",
            ["kasmina_edge", "controller", "--fleet", str(self.office.folder), "--ready-file", str(ready)],
        )
        self._until(lambda: ready.exists(), "the controller to serve", processes)
        for i, camera in enumerate(CAMERAS):
            self._launch(processes, f"agent-{camera}", ["kasmina_edge", "run", "--data", str(self.out / camera)])
            (self.out / f"{camera}.lens").write_text("sharp")
            self._launch(
                processes,
                f"camera-{camera}",
                [
                    "kasmina_trainer.demo.camera",
                    "--data",
                    str(self.out / camera),
                    "--scenes",
                    str(self.out / "scenes.npz"),
                    "--lens",
                    str(self.out / f"{camera}.lens"),
                    "--annotations",
                    str(self.out / f"{camera}.annotations.csv"),
                    "--seed",
                    str(self.seed + i),
                ],
            )
        self._until(lambda: len(self._online()) == len(CAMERAS), "three devices to come online", processes)

    def _launch(self, processes: Processes, name: str, arguments: list[str], *, finite: bool = False) -> None:
        """Start one process, and keep its id for whoever wants to see that it ended."""
        self.found.facts.setdefault("pids", []).append(processes.start(name, arguments, finite=finite))

    def _online(self) -> list[str]:
        return [v.device for v in self.office.store().devices() if v.online]

    def _publish_host(self, offline: Path) -> None:
        host = self._bundles["host"]
        limits = Limits(
            blueprints={"depthwise": (1,), "no-op": (1,)},
            sites=tuple(host.manifest.models[0].sites),
            minimum_accuracy=0.93,
            maximum_loss=0.03,
            live_frames=40,
            capture_frames=CAPTURE_BUDGET,
            capture_bytes=2_000_000,
        )
        plan = self.office.draft_plan(host.manifest, limits)
        self.office.publish(host, to=["@all"], offline_keys=offline, plan=plan)

    def _publish(self, kind: str, *, accept_anyway: bool = False) -> Published:
        return self.office.publish(self._bundles[kind], to=[DRIFTING], accept_anyway=accept_anyway)

    def _until_reported(
        self, camera: str, status: str, processes: Processes, *, version: str | None = None, reason: str = ""
    ) -> Reported:
        found: list[Reported] = []

        def reported() -> bool:
            view = next((v for v in self.office.store().devices() if v.device == camera), None)
            if view is None or view.reported is None:
                return False
            fits = view.reported.status == status and version in (None, view.reported.version)
            if fits and reason in view.reported.reason:
                found.append(view.reported)
            return bool(found)

        self._until(reported, f"{camera} to report {status} {version or ''}".rstrip(), processes)
        return found[-1]

    def _stream(self, processes: Processes, *, frames: int) -> tuple[float, float]:
        """Accuracy on check frames and last drift of the drifting camera over its next ``frames`` frames."""
        since = self.clock()
        window: list[Any] = []

        def enough() -> bool:
            window[:] = [r for r in self.office.store().telemetry(DRIFTING, since) if r.started_s >= since]
            return sum(r.frames for r in window) >= frames and window[-1].drift is not None

        self._until(enough, f"{frames} frames of {DRIFTING}", processes)
        checks = sum(r.check_frames for r in window)
        correct = sum(r.check_correct for r in window)
        return correct / max(checks, 1), float(window[-1].drift)

    def _lens(self, kind: str) -> None:
        write_durable(self.out / f"{DRIFTING}.lens", kind.encode())

    def _until_drift(self, processes: Processes) -> str:
        """Wait for what an operator would wait for: the monitor's alerts."""
        began, seen = time.monotonic(), dict[str, float]()

        def alarmed() -> bool:
            views = [v for v in self.office.store().devices() if v.device == DRIFTING]
            for alert in fleet_alerts(views, now=self.clock()):
                seen.setdefault(alert.kind, time.monotonic() - began)
            return {"drift", "accuracy"} <= set(seen)

        self._until(alarmed, f"the monitor's drift and accuracy alerts for {DRIFTING}", processes)
        accuracy, drift = self._stream(processes, frames=60)
        self.found.facts["check_accuracy_drifted"] = accuracy
        self.found.facts["alarm_seconds"] = seen
        return (
            f"alerts: drift after {seen['drift']:.1f} s, accuracy after {seen['accuracy']:.1f} s; "
            f"check frames {100 * accuracy:.0f} %, drift {drift:.1f} (alarm at 1)"
        )

    def _collect(self, processes: Processes, since_s: float) -> Any:
        """What the camera captured since the lens went out of focus, opened and joined with the annotator's labels."""
        labels = self.out / f"{DRIFTING}.annotations.csv"
        store = self.office.store()

        def enough() -> bool:
            count = sum(c.received_s >= since_s for c in store.captures(DRIFTING))
            self.progress("", min(1.0, count / CAPTURED_SAMPLES))
            return count >= CAPTURED_SAMPLES

        self._until(enough, f"{CAPTURED_SAMPLES} captures", processes, every_s=0.5)
        device = next(d for d in self.office.config.devices if d.id == DRIFTING)
        keys = {DRIFTING: device.public_key}
        found = read_annotations(labels)
        return export_labelled(store, self.office.sealing_key(), keys, found, since_s=since_s)

    def _start_rivals(self, processes: Processes, captured: Any) -> None:
        path = self.out / "captured.npz"
        write_durable(path, pack_arrays({"x": captured.x, "y": captured.y}))
        arguments = ["--out", str(self.out), "--host", str(self.path("host")), "--captured", str(path)]
        arguments += ["--batches", ",".join(captured.batches), "--seed", str(self.seed)]
        self._launch(processes, "rivals", ["kasmina_trainer.demo.rivals", *arguments], finite=True)

    def _await_rival(self, kind: str, processes: Processes) -> None:
        path = unsigned_path(self.out, kind)
        self._until(path.exists, f"the {kind} bundle", processes)
        self._keep(kind, read_file(path))

    def _forge(self, processes: Processes) -> Reported:
        from kasmina_trainer.demo.forger import forge

        forge(self.office.config.address, DRIFTING, self.office.topics, self._bundles["harmful"], clock=self.clock)
        return self._until_reported(DRIFTING, "refused", processes, reason="signature")

    def _remove(self, grower: Any, processes: Processes) -> str:
        published = self.office.withdraw(self._bundles["host"].manifest.name, to=[DRIFTING])
        self._until_reported(DRIFTING, "committed", processes, version=published.manifest.version)
        report = next(v.reported for v in self.office.store().devices() if v.device == DRIFTING)
        if report is None or report.release != published.release:
            raise KasminaError(f"{DRIFTING} reports release {report and report.release}, expected {published.release}")
        same = self._identical_outputs(grower)
        self.found.facts["identical_outputs"] = same
        if not same:
            raise KasminaError(f"{DRIFTING} does not answer as the host does after the graft was removed")
        return f"release {published.release}; {same} outputs identical to 1.0.0 bit for bit"

    def _identical_outputs(self, grower: Any) -> int:
        """How many held-out digits the device's slot answers exactly as the host's bundle does; 0 when one differs."""
        probes = grower.splits.test.nhwc()
        with (
            Runtime.open(self.out / DRIFTING, telemetry=None) as device,
            Runtime.open(self.path("host"), telemetry=None) as host,
        ):
            pairs = [(device.infer(x).outputs, host.infer(x).outputs) for x in probes]
        equal = all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairs)
        return len(pairs) if equal else 0

    def _measure(self, grower: Any) -> None:
        """The closing table: one row for each bundle or event, accuracy of the int8 file on the test part."""
        facts, parts = self.found.facts, self.found.update_bytes
        shares = {kind: grower.measure(bundle, CORRUPTION) for kind, bundle in self._bundles.items()}
        model = self._bundles["host"].manifest.models[0]
        graft = self._bundles["graft"].manifest
        retune_delta = len(make_delta(self._model("host"), self._model("retune")))
        retuned = self._bundles["retune"].manifest.acceptance
        assert retuned is not None
        sites = ",".join(g.site for g in graft.grafts)
        self._row(f"host 1.0.0 (device {DRIFTING})", shares["host"])
        self._row(
            f"+ graft {graft.grafts[0].blueprint}@{sites} {graft.version}",
            shares["graft"],
            f"{size_text(parts['total'])} over MQTT, of it {size_text(parts['model delta'])} model delta "
            f"(whole model {size_text(model.file.size_bytes)}); {facts['drift_to_committed_s']:.0f} s from drift to "
            "committed",
        )
        self._row(
            "BN retune instead (mergeable)",
            shares["retune"],
            f"{size_text(retune_delta)}; undone only by restoring the parent; its acceptance: "
            + ("accepted" if retuned.accepted else "; ".join(retuned.reasons)),
        )
        self._row(
            "harmful graft 1.2.0",
            None,
            f"rolled back in {facts['harmful_seconds']:.1f} s: {facts['harmful_reason']}; quarantined",
        )
        self._row("forged update", None, f"refused: {facts['forged_reason']}")
        self._row(
            "graft removed", shares["host"], f"{facts['identical_outputs']} outputs identical to 1.0.0 bit for bit"
        )
        self.found.grafts = [g.model_dump(mode="json") for g in graft.grafts]
        facts.update(
            test_samples=len(grower.splits.test),
            model_bytes=model.file.size_bytes,
            device=DRIFTING,
            sites=list(grower.seeds.sites),
            network=grower.outline(),
            harmful_accuracy=shares["harmful"],
            retune_delta_bytes=retune_delta,
        )

    def _row(self, name: str, shares: tuple[float, float] | None, note: str = "") -> None:
        clean, target = shares or (None, None)
        self.found.rows.append({"name": name, "clean": clean, "target": target, "note": note})

    def _model(self, kind: str) -> bytes:
        bundle = self._bundles[kind]
        return bundle.files[bundle.manifest.models[0].file.path]

    def _parity(self, kind: str) -> str:
        model = self._bundles[kind].manifest.models[0]
        assert model.parity is not None, "the trainer measures it"
        return (
            f"{model.file.size_bytes} B int8, top-1 agreement with float {100 * model.parity.top1_agreement:.1f} % "
            f"of {model.parity.samples}"
        )

    def _acceptance(self, kind: str) -> str:
        a = self._bundles[kind].manifest.acceptance
        assert a is not None
        return (
            f"gain {100 * a.gain_low:.1f} to {100 * a.gain_high:.1f} points (95 %), clean {100 * a.clean_before:.1f} "
            f"-> {100 * a.clean_after:.1f} %: {'accepted' if a.accepted else 'NOT accepted'}"
        )

    def _drift_curve(self) -> list[dict[str, Any]]:
        return [
            {
                "at_s": r.started_s,
                "drift": r.drift,
                "release": r.release,
                "score": r.score.mean if r.score else None,
                "check": r.check_correct / r.check_frames if r.check_frames else None,
            }
            for r in self.office.store().telemetry(DRIFTING, 0.0)
        ]

    def _until(self, condition: Callable[[], bool], what: str, processes: Processes, *, every_s: float = 0.1) -> None:
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not condition():
            processes.require_alive()
            if time.monotonic() > deadline:
                raise KasminaError(f"waited {STEP_TIMEOUT_S:.0f} s for {what}", f"See the logs in {self.out / 'logs'}.")
            time.sleep(every_s)


def _plain(value: Any) -> Any:
    return value.__dict__ if isinstance(value, Step) else str(value)
