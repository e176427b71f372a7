"""The library: blueprints by name and version. A version that was published never changes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TypeVar

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.base import Blueprint, GraftBlueprint, HostBlueprint
from kasmina_trainer.blueprints.port import Port, Shape

__all__ = [
    "Blueprint",
    "GraftBlueprint",
    "HostBlueprint",
    "Shape",
    "blueprint",
    "blueprint_names",
    "blueprints",
    "find_blueprint",
    "fitting_names",
    "register",
]

B = TypeVar("B", bound=Blueprint)
_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,63}$")
_LIBRARY = (
    "kasmina_trainer.blueprints.noop",
    "kasmina_trainer.blueprints.depthwise",
    "kasmina_trainer.blueprints.adapter",
    "kasmina_trainer.blueprints.low_rank",
    "kasmina_trainer.blueprints.residual_mlp",
    "kasmina_trainer.blueprints.squeeze",
    "kasmina_trainer.blueprints.pointwise",
    "kasmina_trainer.blueprints.conv_lora",
    "kasmina_trainer.blueprints.affine",
    "kasmina_trainer.blueprints.retune",
    "kasmina_trainer.blueprints.input_filter",
    "kasmina_trainer.blueprints.attention",
    "kasmina_trainer.blueprints.gated",
    "kasmina_trainer.blueprints.autoencoder",
    "kasmina_trainer.blueprints.sliding",
    "kasmina_trainer.blueprints.align",
    "kasmina_trainer.blueprints.quant_adapter",
    "kasmina_trainer.blueprints.fail_safe",
    "kasmina_trainer.blueprints.switched",
    "kasmina_trainer.nesting.blueprint",
)
_REGISTRY: dict[str, dict[int, Blueprint]] = {}


def blueprint(name: str, *, version: int) -> Callable[[type[B]], type[B]]:
    """Class decorator: gives the class its name and version and puts one instance of it into the library.

    Raises:
        InputError: As `register`.
    """

    def enter(kind: type[B]) -> type[B]:
        kind.name, kind.version = name, version
        register(kind())
        return kind

    return enter


def register(blueprint: Blueprint) -> Blueprint:
    """Add a blueprint to the library.

    Several versions of a name may stand beside each other, when one module defines them all: nobody else can put a
    version of his own above it.

    Raises:
        InputError: The name is malformed or taken, or the version is not positive.
    """
    if not _NAME.fullmatch(blueprint.name):
        raise InputError(f"blueprint name {blueprint.name!r}: expected 1 to 64 of a-z, 0-9 and -")
    if blueprint.version < 1:
        raise InputError(f"blueprint {blueprint.name}: expected a version of 1 or more, got {blueprint.version}")
    versions = _REGISTRY.get(blueprint.name, {})
    homes = {type(known).__module__ for known in versions.values()}
    if blueprint.version in versions or (homes and homes != {type(blueprint).__module__}):
        raise InputError(
            f"blueprint {blueprint.name} is registered already, as {_spelled(versions)}",
            "A published version never changes: give yours the next version in the same module, or another name.",
        )
    _REGISTRY[blueprint.name] = {**versions, blueprint.version: blueprint}
    return blueprint


def blueprint_names() -> tuple[str, ...]:
    """Every name in the library."""
    return tuple(sorted(_loaded()))


def blueprints() -> tuple[Blueprint, ...]:
    """Every version of every blueprint, by name and version."""
    return tuple(versions[v] for _, versions in sorted(_loaded().items()) for v in sorted(versions))


def find_blueprint(name: str, version: int | None = None) -> Blueprint:
    """A blueprint by name.

    Args:
        name: For example ``depthwise``.
        version: The version that weights were made for, or None for the newest.

    Raises:
        InputError: No such name (the nearest are given) or another version.
    """
    known = _loaded()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise InputError(f"no blueprint is called {name!r}", f"Did you mean {', '.join(nearest)}?")
    versions = known[name]
    if version is not None and version not in versions:
        raise InputError(f"blueprint {name}: v{version} was asked for, this library has {_spelled(versions)}")
    return versions[max(versions) if version is None else version]


def fitting_names(port: Port) -> tuple[str, ...]:
    """Names of the grafts that fit a port with their default settings."""
    newest = (versions[max(versions)] for _, versions in sorted(_loaded().items()))
    return tuple(kind.name for kind in newest if isinstance(kind, GraftBlueprint) and not kind.refusal(port))


def _loaded() -> dict[str, dict[int, Blueprint]]:
    for family in _LIBRARY:
        import_module(family)
    return _REGISTRY


def _spelled(versions: Iterable[int]) -> str:
    return ", ".join(f"v{version}" for version in sorted(versions))
