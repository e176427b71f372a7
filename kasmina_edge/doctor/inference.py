"""Every engine's own word, those of third parties included."""

from __future__ import annotations

from collections.abc import Mapping

from kasmina_edge.contracts.manifest import FileEntry, ModelFile, ModelTensor, Parity, SelfTest
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.doctor.finding import Finding
from kasmina_edge.engines import Engine, EngineCheck, registered_engines
from kasmina_edge.engines.choice import checked
from kasmina_edge.errors import KasminaError

INSTALLS = {
    "litert": "pip install ai-edge-litert",
    "litert-plain": "pip install ai-edge-litert",
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install onnxruntime-openvino",
}


def check_engines(profile: HardwareProfile, types: Mapping[str, type[Engine]]) -> dict[str, EngineCheck]:
    """What each engine says about a plain model under this profile; one that raises cannot run."""
    found = {}
    for name, engine in types.items():
        try:
            found[name] = checked(engine, profile, any_model(engine))
        except KasminaError as exc:
            found[name] = EngineCheck(False, "", exc.message)
        except Exception as exc:  # a third party's
            found[name] = EngineCheck(False, "", f"its check failed ({type(exc).__name__}: {exc})"[:200])
    return found


def engine_findings(checks: Mapping[str, EngineCheck], profile: HardwareProfile) -> list[Finding]:
    """The same as findings; what the accelerator's delegate says stands with them."""
    findings = []
    for name, check in checks.items():
        if check.ok:
            findings.append(Finding(f"engine.{name}", "engines", "ok", f"{name}: {check.runs_on}", check.reason))
        else:
            step = INSTALLS.get(name, "") if "not installed" in check.reason else ""
            findings.append(Finding(f"engine.{name}", "engines", "absent", f"{name}: no", check.reason, step))
    said = next((c.accelerator for c in checks.values() if c.accelerator), "")
    if profile.accelerator and said:
        reached = said == "Edge TPU" or "present, bundle not compiled" in said
        findings.append(
            Finding(
                "engine.accelerator", "engines", "ok" if reached else "fail",
                f"profile {profile.name} asks for the Edge TPU: {said}",
                "" if reached else "models run on the CPU instead; the lines below say why",
            )
        )  # fmt: skip
    return findings


def broken_engines() -> list[Finding]:
    """Entry points of engines that cannot be used, with the package that brings them."""
    return [
        Finding(
            f"engine.{found.name}", "engines", "warn", f"{found.name} of {found.source} cannot be used", found.reason,
            f"pip install --upgrade {found.source}",
        )
        for found in registered_engines()
        if found.kind is None
    ]  # fmt: skip


def any_model(engine: type[Engine]) -> ModelFile:
    """A model file that stands for any plain one of this engine."""
    entry = FileEntry.of("model", b"")
    tensor = ModelTensor(name="x", shape=(1,), dtype="float32")
    return ModelFile(
        file=entry,
        engine=getattr(engine, "takes", engine.name),
        inputs=(tensor,),
        outputs=(tensor,),
        selftest=SelfTest(file=entry, samples=1, tolerance=0),
        parity=Parity(samples=1, top1_agreement=1, max_abs_difference=0),
    )
