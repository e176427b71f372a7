"""What one machine answers: raw model outputs on real digits, a deployment, an update, and the conformance suite.

python tests/arm64/inside.py --out ANSWERS.json --work FOLDER [--suite]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import numpy as np  # noqa: E402
import worlds.fleets  # noqa: E402
from worlds.bundles import digits, make_bundle  # noqa: E402
from worlds.fleets import MemoryFleet, grafted, plan_limits  # noqa: E402

from kasmina_edge.bundle import Bundle, pack, read_file  # noqa: E402
from kasmina_edge.contracts.profile import load_profile  # noqa: E402
from kasmina_edge.engines import engine_types, self_test  # noqa: E402
from kasmina_edge.engines.tensors import to_model  # noqa: E402
from kasmina_edge.fleet.repository import Repository  # noqa: E402

PROFILE = "raspberry-pi-4"
UPDATE_WITHIN_S = 240.0  # everything is some twenty times slower under qemu


def answers(bundle: Bundle) -> dict[str, Any]:
    """Raw outputs of both files of an exported digits bundle on 240 digits, and the self-test's verdict."""
    profile = load_profile(PROFILE)
    found: dict[str, Any] = {}
    for name in ("litert", "onnxruntime"):
        model = bundle.model_for(name)
        with engine_types()[name](model, bundle.read(model.file), profile) as engine:
            tested = self_test(engine, bundle, timed_runs=1)
            raw = [
                engine.run(
                    {model.inputs[0].name: to_model(frame[None], model.inputs[0], bundle.manifest.preprocessing)}
                )
                for frame in digits()[0]
            ]
        outputs = np.concatenate([answer[model.outputs[0].name] for answer in raw])
        found[name] = {
            "passed": tested.passed,
            "samples": tested.samples,
            "tolerance": model.selftest.tolerance,
            "dtype": str(outputs.dtype),
            "outputs": outputs.astype(float).tolist(),
        }
    return found


def deployed(exported: Bundle, work: Path) -> dict[str, Any]:
    """``kasmina-edge deploy --profile raspberry-pi-4`` and ``status``, as a person would call them."""
    bundle = Repository.desk(work / "desk", clock=time.time).sign_bundle(exported)
    path = work / bundle.file_name
    path.write_bytes(pack(bundle))
    program = [sys.executable, "-m", "kasmina_edge"]
    data = ["--data", str(work / "data")]
    made = subprocess.run(
        [*program, "deploy", str(path), "--profile", PROFILE, *data, "--json"], capture_output=True, text=True
    )
    if made.returncode:
        raise SystemExit(f"deploy: exit {made.returncode}\n{made.stderr}")
    value: dict[str, Any] = json.loads(made.stdout)
    status = subprocess.run([*program, "status", *data, "--json"], capture_output=True, text=True, check=True)
    return {
        "engine": value["engine"],
        "self_test": {key: value["self_test"][key] for key in ("passed", "samples")},
        "probes": value["probes"],
        "active": json.loads(status.stdout)["active"]["id"],
    }


def updated(work: Path) -> dict[str, Any]:
    """A fleet of one: the host, a graft as a delta, a harmful graft that is rolled back."""
    worlds.fleets.DEADLINE_S = UPDATE_WITHIN_S
    host = make_bundle()
    with ExitStack() as stack:
        fleet = stack.enter_context(MemoryFleet(work / "fleet"))
        fleet.enroll("pi-1")
        fleet.publish_host(host, limits=plan_limits(minimum_accuracy=0.5))
        fleet.start("pi-1")
        _wait(fleet, "committed", "1.0.0")
        fleet.office.publish(grafted(host, "1.1.0"), to=["@all"])
        report = _wait(fleet, "committed", "1.1.0")
        fleet.office.publish(grafted(host, "1.2.0", seed=2, corrupt=True), to=["@all"], accept_anyway=True)
        harmful = _wait(fleet, "rolled_back", "1.1.0")
    return {
        "version": report.version,
        "grafts": list(report.grafts),
        "rolled_back": harmful.reason.split(":")[0],
    }


def _wait(fleet: MemoryFleet, status: str, version: str) -> Any:
    return worlds.fleets.wait_for(
        lambda: (
            view.reported
            if (view := fleet.view("pi-1"))
            and view.reported
            and view.reported.status == status
            and view.reported.version == version
            else None
        ),
        lambda: f"{status} {version}; {fleet.view('pi-1')}",
        deadline_s=UPDATE_WITHIN_S,
    )


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True, help="exported by the trainer, on whatever machine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--suite", action="store_true", help="run the engines' conformance suite here as well")
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    exported = read_file(chosen.bundle)
    found = {"machine": platform.machine(), "models": answers(exported)}
    print(f"{found['machine']}: models answered", flush=True)
    found["deploy"] = deployed(exported, chosen.work.resolve())
    print(f"{found['machine']}: deployed on {found['deploy']['engine']}", flush=True)
    found["update"] = updated(chosen.work)
    print(f"{found['machine']}: updated to {found['update']['version']}, {found['update']['rolled_back']} taken back")
    chosen.out.write_text(json.dumps(found))
    if not chosen.suite:
        return 0
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not soak"]
    return subprocess.run([*suite, "tests/conformance/test_engines.py"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
