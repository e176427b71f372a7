"""The one door to a loaded engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.choice import Candidate, Candidates, check_layout, choose_engine
from kasmina_edge.engines.engine import Array, Engine, EngineCheck
from kasmina_edge.engines.measure import chosen_by_measurement
from kasmina_edge.engines.registry import AUTO, OURS
from kasmina_edge.engines.selftest import vectors
from kasmina_edge.errors import EngineError, KasminaError


def open_engine(
    bundle: Bundle,
    profile: HardwareProfile,
    *,
    require_accelerator: bool = False,
    engine: str = "",
    verdicts: Path | None = None,
) -> Engine:
    """Load the first engine of `choose_engine`'s order that takes one of the files this copy of the bundle holds.

    Where an engine refuses a file after its check let it pass (a delegate that does not take a compiled file, numbers
    that a library cannot hold), or a stranger's engine fails, the next one is loaded, and ``accelerator`` says why the
    compiled file is not used. An engine on an accelerator comes with a CPU twin that answers while the accelerator
    cannot, where the bundle has the plain file (`accelerator.supervisor.supervise`).

    Args:
        bundle: The bundle.
        profile: The hardware target.
        require_accelerator: Refuse to fall back to the CPU.
        engine: The one engine to use; "" takes the profile's order, "auto" the fastest that passes the self-test.
        verdicts: Folder where "auto" keeps what it measured.

    Raises:
        EngineError: No engine can run it here; for "auto", none passes the self-test.
        BundleError: The file does not load, or its tensors differ from the manifest.
    """
    check_layout(bundle.manifest)
    wanted = _resolved(bundle, profile, require_accelerator, engine, verdicts)
    candidates = Candidates(
        bundle.manifest, profile, require_accelerator=require_accelerator, present=set(bundle.files), engine=wanted
    )
    refused: KasminaError | None = None
    why = ""
    for kind, model, check in candidates:
        try:
            loaded = _load(bundle, profile, kind, model, check, required=require_accelerator)
        except BaseException as exc:  # a stranger's may end in sys.exit() or a panic
            if isinstance(exc, KeyboardInterrupt):
                raise
            if require_accelerator or not (isinstance(exc, EngineError) or kind.name not in OURS):
                raise
            refused = refused or (exc if isinstance(exc, KasminaError) else EngineError(f"{kind.name}: {exc!r}"))
            why = why or (str(exc) if model.compiled_for is not None else "")
            continue
        loaded.accelerator = loaded.accelerator or why or check.accelerator
        if loaded.resizable:
            entry = model.selftest.file
            loaded.known_frames = partial(_frames, Bundle(bundle.manifest, {entry.path: bundle.read(entry)}), model)
        return loaded
    raise refused or candidates.error()


def choose_for(
    bundle: Bundle,
    profile: HardwareProfile,
    *,
    require_accelerator: bool = False,
    engine: str = "",
    verdicts: Path | None = None,
) -> Candidate:
    """`choose_engine` for a bundle that is at hand: where the choice is "auto", it is measured; arguments as there.

    Raises:
        EngineError: No engine can run it here; for "auto", none passes the self-test.
        BundleError: The manifest does not fit its models.
    """
    wanted = _resolved(bundle, profile, require_accelerator, engine, verdicts)
    return choose_engine(
        bundle.manifest, profile, require_accelerator=require_accelerator, present=set(bundle.files), engine=wanted
    )


def _resolved(bundle: Bundle, profile: HardwareProfile, required: bool, engine: str, verdicts: Path | None) -> str:
    """The engine's name where one is asked for or measured; "" for the profile's order."""
    wanted = engine or (AUTO if AUTO in profile.engines else "")
    if wanted != AUTO:
        return wanted
    if required:  # a required accelerator leaves nothing to measure
        return ""
    name = chosen_by_measurement(bundle, profile, folder=verdicts)
    if not name:
        raise EngineError(f"{bundle.id}: no engine that is here passes its self-test", "See `kasmina-edge doctor`.")
    return name


def _load(
    bundle: Bundle,
    profile: HardwareProfile,
    kind: type[Engine],
    model: ModelFile,
    check: EngineCheck,
    *,
    required: bool,
) -> Engine:
    if model.compiled_for is not None:
        from kasmina_edge.engines.accelerator.twins import find_twin

        twin = find_twin(bundle, profile, model)
        if twin is not None:
            from kasmina_edge.engines.accelerator.supervisor import supervise

            return supervise(bundle, profile, (kind, model), twin, label=check.runs_on, required=required)
    return kind(model, bundle.read(model.file), profile)


def _frames(bundle: Bundle, model: ModelFile) -> list[list[Array]]:
    tensors = model.app_inputs
    return [[frame[t.name] for t in tensors] for frame in vectors(bundle, model)[0]]
