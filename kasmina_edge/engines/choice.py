"""Which engine runs a bundle here: the profile's order, the files that are there, and what each engine checks."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import BundleManifest, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import Engine, EngineCheck
from kasmina_edge.engines.litert import DEFAULT_DELEGATE
from kasmina_edge.engines.tensors import same_layout
from kasmina_edge.errors import BundleError, EngineError

_ACCELERATORS = {"edgetpu": "the Edge TPU"}


@cache
def engine_types() -> dict[str, type[Engine]]:
    """Every engine by the name that manifests and profiles use."""
    from kasmina_edge.engines.litert import LitertEngine
    from kasmina_edge.engines.onnx import OnnxEngine

    return {engine.name: engine for engine in (LitertEngine, OnnxEngine)}


def choose_engine(
    manifest: BundleManifest,
    profile: HardwareProfile,
    *,
    require_accelerator: bool = False,
    present: Collection[str] | None = None,
) -> tuple[type[Engine], ModelFile, EngineCheck]:
    """The first engine of the profile that can run one of the bundle's files here; compiled files are tried first.

    Args:
        manifest: The bundle's manifest.
        profile: The hardware target.
        require_accelerator: Refuse to fall back to the CPU.
        present: Paths of the files that are there; None means all of them.

    Returns:
        The engine's class, the model file, and what the engine's check says (``runs_on`` and ``accelerator`` are text
        for people).

    Raises:
        EngineError: No engine can, or none on the accelerator when that is required.
    """
    if require_accelerator and profile.accelerator is None:
        raise EngineError(f"profile {profile.name} has no accelerator to require", "Leave out --require-accelerator.")
    reasons: list[str] = []
    accelerator = ""
    for name in profile.engines:
        models = [m for m in manifest.models if m.engine == name and (present is None or m.file.path in present)]
        if not models:
            reasons.append(f"{name}: the bundle has no file for it")
        for model in sorted(models, key=lambda m: m.compiled_for is None or m.compiled_for != profile.accelerator):
            engine = engine_types()[name]
            check = engine.check(profile, model)
            accelerator = accelerator or check.accelerator
            on_accelerator = check.ok and model.compiled_for is not None
            if on_accelerator or (check.ok and not require_accelerator):
                text = check.accelerator if on_accelerator else _first(accelerator, check.accelerator)
                return engine, model, EngineCheck(True, check.runs_on, check.reason, text)
            if not check.ok:
                reasons.append(f"{name}: {check.reason}")
    if require_accelerator:
        raise _no_accelerator(profile, accelerator)
    raise EngineError(f"{manifest.id} cannot run under profile {profile.name}: {'; '.join(reasons)}")


def open_engine(bundle: Bundle, profile: HardwareProfile, *, require_accelerator: bool = False) -> Engine:
    """Load the engine that `choose_engine` picks among the files this copy of the bundle holds.

    Where a compiled file passes the check and the delegate then refuses it, the plain file is loaded, and
    ``accelerator`` says why.

    Raises:
        EngineError: No engine can run it here.
        BundleError: The file does not load, or its tensors differ from the manifest.
    """
    check_layout(bundle.manifest)
    present = set(bundle.files)
    why = ""
    while True:
        kind, model, check = choose_engine(
            bundle.manifest, profile, require_accelerator=require_accelerator, present=present
        )
        try:
            engine = kind(model, bundle.read(model.file), profile)
        except EngineError as exc:
            if model.compiled_for is None or require_accelerator:
                raise
            why = exc.message
            present.discard(model.file.path)
            continue
        engine.accelerator = engine.accelerator or why or check.accelerator
        return engine


def check_layout(manifest: BundleManifest) -> None:
    """Refuse a manifest whose model tensors cannot hold what the app passes.

    Raises:
        BundleError: Shapes differ by more than axes of length 1.
    """
    for model in manifest.models:
        for side in ("inputs", "outputs"):
            for i, (io, tensor) in enumerate(zip(getattr(manifest, side), getattr(model, side), strict=True)):
                if not same_layout(tensor.shape, io.shape):
                    raise BundleError(
                        f"{manifest.id}: {side}[{i}].shape is {tuple(io.shape)}, "
                        f"{model.file.path} has {tuple(tensor.shape)}"
                    )


def _first(*texts: str) -> str:
    return next((text for text in texts if text), "")


def _no_accelerator(profile: HardwareProfile, why: str) -> EngineError:
    what = _ACCELERATORS[profile.accelerator or "edgetpu"]
    library = profile.delegate_library or DEFAULT_DELEGATE
    short = library.split(".so")[0]
    if why == f"{library} not found":
        return EngineError(
            f"profile {profile.name} asks for {what}, and {library} was not found on this machine.",
            f"Install {short} and plug the accelerator in, or leave out --require-accelerator to run on the CPU.",
        )
    if why.endswith("bundle not compiled: CPU"):
        return EngineError(
            f"profile {profile.name} asks for {what}, and the bundle holds no file compiled for it.",
            "Export the bundle where edgetpu_compiler is on the PATH, or leave out --require-accelerator.",
        )
    return EngineError(
        f"profile {profile.name} asks for {what}: {why or 'no engine reaches it'}.",
        "Plug the accelerator in and check its driver, or leave out --require-accelerator to run on the CPU.",
    )
