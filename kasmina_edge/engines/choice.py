"""Which engine runs a bundle here: the profile's order, the files that are there, and what each engine checks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kasmina_edge.contracts.manifest import BundleManifest, ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.edgetpu import DEFAULT_DELEGATE
from kasmina_edge.engines.engine import Engine, EngineCheck
from kasmina_edge.engines.registry import AUTO as AUTO
from kasmina_edge.engines.registry import OURS, engine_type, engine_types
from kasmina_edge.engines.tensors import same_layout
from kasmina_edge.errors import BundleError, EngineError

STAND_INS = {"litert": ("tflite-runtime",)}
"""Tried where the engine of that name is not installed; not when an engine is asked for by name."""
_LONGEST = 200
Candidate = tuple[type[Engine], ModelFile, EngineCheck]

_ACCELERATORS = {"edgetpu": "the Edge TPU"}


def choose_engine(
    manifest: BundleManifest,
    profile: HardwareProfile,
    *,
    require_accelerator: bool = False,
    present: Collection[str] | None = None,
    engine: str = "",
) -> Candidate:
    """The first engine of the profile that can run one of the bundle's files here; compiled files are tried first.

    Args:
        manifest: The bundle's manifest.
        profile: The hardware target.
        require_accelerator: Refuse to fall back to the CPU.
        present: Paths of the files that are there; None means all of them.
        engine: The one engine to use; "" takes the profile's order, "auto" every engine there is.

    Returns:
        The engine's class, the model file, and what the engine's check says (``runs_on`` and ``accelerator`` are text
        for people).

    Raises:
        EngineError: No engine can, or none on the accelerator when that is required.
    """
    candidates = Candidates(manifest, profile, require_accelerator=require_accelerator, present=present, engine=engine)
    for candidate in candidates:
        return candidate
    raise candidates.error()


def engine_names(profile: HardwareProfile, engine: str = "") -> list[str]:
    """Names of the engines to try, in order; "auto" is replaced by every engine that may be measured."""
    names: list[str] = []
    for name in (engine,) if engine else profile.engines:
        names += [n for n, kind in engine_types().items() if kind.measured] if name == AUTO else [name]
    return list(dict.fromkeys(names))


class Candidates:
    """Every engine that can run one of the bundle's files here, best first; arguments as for `choose_engine`.

    Attributes:
        reasons: Why not the others, as far as they were asked.
    """

    def __init__(
        self,
        manifest: BundleManifest,
        profile: HardwareProfile,
        *,
        require_accelerator: bool = False,
        present: Collection[str] | None = None,
        engine: str = "",
    ) -> None:
        if require_accelerator and profile.accelerator is None:
            raise EngineError(
                f"profile {profile.name} has no accelerator to require", "Leave out --require-accelerator."
            )
        self.reasons: list[str] = []
        self._manifest, self._profile, self._present = manifest, profile, present
        self._require, self._forced = require_accelerator, bool(engine)
        self._names = engine_names(profile, engine)
        self._accelerator = ""

    def __iter__(self) -> Iterator[Candidate]:
        for name in self._names:
            yield from self._of(name, note=True)
            for other in () if self._forced else STAND_INS.get(name, ()):
                if other not in self._names:
                    yield from self._of(other, note=False)

    def error(self) -> EngineError:
        """What to say when none of them will do."""
        if self._require:
            return _no_accelerator(self._profile, self._accelerator)
        what = f"{self._manifest.id} cannot run under profile {self._profile.name}"
        return EngineError(f"{what}: {'; '.join(self.reasons)}")

    def _of(self, name: str, *, note: bool) -> Iterator[Candidate]:
        try:
            kind = engine_type(name)
        except EngineError as exc:
            self.reasons.append(f"{name}: {exc.message}")
            return
        here = self._present
        models = [m for m in self._manifest.models if m.engine == kind.takes and (here is None or m.file.path in here)]
        if not models and note:
            self.reasons.append(f"{name}: the bundle has no file for it")
        wanted = self._profile.accelerator
        for model in sorted(models, key=lambda m: m.compiled_for is None or m.compiled_for != wanted):
            check = checked(kind, self._profile, model)
            self._accelerator = self._accelerator or check.accelerator
            on_accelerator = check.ok and model.compiled_for is not None
            if on_accelerator or (check.ok and not self._require):
                text = check.accelerator if on_accelerator else _first((self._accelerator, check.accelerator))
                yield kind, model, EngineCheck(True, check.runs_on, check.reason, text)
            elif not check.ok and note:
                self.reasons.append(f"{name}: {check.reason}")


def checked(kind: type[Engine], profile: HardwareProfile, model: ModelFile) -> EngineCheck:
    """`Engine.check`, and whatever a stranger's engine raises there as a reason."""
    try:
        found: object = kind.check(profile, model)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # sys.exit() too
        if kind.name in OURS:
            raise
        return EngineCheck(False, "", f"its check fails ({type(exc).__name__}: {exc})"[:_LONGEST])
    if isinstance(found, EngineCheck):
        return found
    return EngineCheck(False, "", f"its check gives {found!r}, which is no EngineCheck"[:_LONGEST])


def check_layout(manifest: BundleManifest) -> None:
    """Refuse a manifest whose model tensors cannot hold what the app passes.

    Raises:
        BundleError: Shapes differ by more than axes of length 1.
    """
    for model in manifest.models:
        sides = (("inputs", manifest.inputs, model.app_inputs), ("outputs", manifest.outputs, model.app_outputs))
        for side, ios, tensors in sides:
            for i, (io, tensor) in enumerate(zip(ios, tensors, strict=True)):
                if not same_layout(tensor.shape, io.shape):
                    raise BundleError(
                        f"{manifest.id}: {side}[{i}].shape is {tuple(io.shape)}, "
                        f"{model.file.path} has {tuple(tensor.shape)}"
                    )


def _first(texts: Sequence[str]) -> str:
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
