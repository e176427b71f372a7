"""Engines by entry point: ours and a third party's are found the same way, and a broken one harms nobody.

A distribution that brings an engine says so in its metadata::

    [project.entry-points."kasmina_edge.engines"]
    my-engine = "my_package.my_module:MyEngine"

The class derives from `kasmina_edge.engines.Engine`, is called as its entry point, and passes
`kasmina_edge.engines.conformance`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from kasmina_edge.engines.engine import Engine
from kasmina_edge.errors import EngineError

GROUP = "kasmina_edge.engines"
OURS = {
    "litert": "kasmina_edge.engines.litert:LitertEngine",
    "onnxruntime": "kasmina_edge.engines.onnx:OnnxEngine",
    "openvino": "kasmina_edge.engines.openvino:OpenvinoEngine",
    "litert-plain": "kasmina_edge.engines.litert:PlainLitertEngine",
    "litert-reference": "kasmina_edge.engines.litert:ReferenceLitertEngine",
    "tflite-runtime": "kasmina_edge.engines.litert:TfliteRuntimeEngine",
    "simulated": "kasmina_edge.hardware_simulator.simulated_engine:SimulatedEngine",
    "simulated-onnx": "kasmina_edge.hardware_simulator.simulated_engine:SimulatedOnnxEngine",
}
"""The same lines as in pyproject.toml (a test compares them), for code that runs without its metadata; nobody else's
entry point of these names is taken, and finding one of them reads no other distribution's metadata."""
_SELF = "kasmina"
AUTO = "auto"
"""In place of an engine's name: measure those that are here."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class Registered:
    """One entry point.

    Attributes:
        name: The entry point's name.
        source: The distribution that brings it.
        kind: The class; None when it cannot be used.
        reason: Why it cannot.
    """

    name: str
    source: str
    kind: type[Engine] | None
    reason: str = ""


def registered_engines() -> tuple[Registered, ...]:
    """Every entry point of the group, ours first, also those that cannot be used."""
    return tuple(_load(*point) for point in _points())


def engine_types() -> dict[str, type[Engine]]:
    """Every engine that can be used, by name, ours first."""
    return {found.name: found.kind for found in registered_engines() if found.kind is not None}


def engine_type(name: str) -> type[Engine]:
    """One engine's class.

    Raises:
        EngineError: No such entry point, or it cannot be used; the message says why.
    """
    if name in OURS:
        found = _load(name, OURS[name], _SELF)
    else:
        fitting = [point for point in _points() if point[0] == name]
        if not fitting:
            known = ", ".join(sorted({point[0] for point in _points()}))
            raise EngineError(
                f"no engine is called {name!r}; there are {known}",
                f"Install the package that brings it (entry point group {GROUP}), or name another engine.",
            )
        found = _load(*fitting[0])
    if found.kind is None:
        raise EngineError(f"engine {name!r} of {found.source} cannot be used: {found.reason}")
    return found.kind


def is_simulated(name: str) -> bool:
    """Whether an engine takes a predicted time instead of its own; False of `AUTO`, and of what cannot be used here.

    No other engine is imported.
    """
    try:
        return name != AUTO and engine_type(name).simulated
    except EngineError:
        return False


def build_of(kind: type[Engine]) -> str:
    """Where an engine's class comes from and in which version: another build is another engine to a measurement."""
    where = f"{kind.__module__}:{kind.__qualname__}"
    from importlib.metadata import PackageNotFoundError, entry_points, version

    if kind.name in OURS:
        try:
            return f"{where} {version(_SELF)}"
        except PackageNotFoundError:
            return where
    versions = sorted(p.dist.version for p in entry_points(group=GROUP, name=kind.name) if p.dist is not None)
    return f"{where} {', '.join(versions)}"


def _points() -> Iterator[tuple[str, str, str]]:
    """(name, value, distribution) of every entry point of the group, ours first."""
    from importlib.metadata import entry_points  # brings email and zipfile, for names that are not ours only

    for name, value in OURS.items():
        yield name, value, _SELF
    for point in entry_points(group=GROUP):
        if OURS.get(point.name) != point.value:
            yield point.name, point.value, point.dist.name if point.dist is not None else "an unknown package"


def _load(name: str, value: str, source: str) -> Registered:
    if name in OURS and source != _SELF:
        return Registered(name, source, None, f"{name} is the name of one of Kasmina's own engines")
    if name == AUTO or not _NAME.fullmatch(name):
        return Registered(name, source, None, f"{name!r} cannot name an engine; 1 to 32 of a-z, 0-9 and -, not {AUTO}")
    module, _, attribute = value.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # whatever a stranger's module does while it is imported, sys.exit() too
        return Registered(name, source, None, f"{value} cannot be loaded ({type(exc).__name__}: {exc})")
    if not (inspect.isclass(kind) and issubclass(kind, Engine)):
        return Registered(name, source, None, f"{value} is no subclass of kasmina_edge.engines.Engine")
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        return Registered(name, source, None, f"{value} does not define {missing}")
    if getattr(kind, "name", None) != name:
        return Registered(name, source, None, f"{value} calls itself {getattr(kind, 'name', None)!r}")
    return Registered(name, source, kind)
