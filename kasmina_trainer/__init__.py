"""Kasmina on the desk: train a host, freeze it, grow it where it is weak, and export what a device can read.

Importing the package costs nothing: every name below is loaded on first use, and torch with it. The demo's camera
processes live in this package and never need torch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kasmina_trainer.evolve import Arm, GrownNetwork, Macs, Parameters
    from kasmina_trainer.export.writing import write_bundle
    from kasmina_trainer.seeds import SeededNetwork, attach_seeds, freeze
    from kasmina_trainer.training import Minutes

__version__ = "0.1.0"
__all__ = [
    "Arm",
    "GrownNetwork",
    "Macs",
    "Minutes",
    "Parameters",
    "SeededNetwork",
    "__version__",
    "attach_seeds",
    "evolve",
    "export",
    "freeze",
    "write_bundle",
]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime writes a device id and events otherwise

_HOME = {
    "Arm": "evolve",
    "GrownNetwork": "evolve",
    "Macs": "evolve",
    "Minutes": "training",
    "Parameters": "evolve",
    "SeededNetwork": "seeds",
    "attach_seeds": "seeds",
    "freeze": "seeds",
    "write_bundle": "export.writing",
}


def evolve(*args: Any, **options: Any) -> GrownNetwork:
    """Grow a seeded network; see `kasmina_trainer.evolve.evolve`."""
    return import_module("kasmina_trainer.evolve").evolve(*args, **options)  # type: ignore[no-any-return]


def export(*args: Any, **options: Any) -> Any:
    """Make a bundle; see `kasmina_trainer.export.bundle.export_bundle`."""
    return import_module("kasmina_trainer.export.bundle").export_bundle(*args, **options)


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"kasmina_trainer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'kasmina_trainer' has no attribute {name!r}")


class _Verb(ModuleType):
    """A submodule named like a verb of this package; calling it does what the verb does."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _VERBS[self.__name__.rpartition(".")[2]](*args, **options)


class _Package(ModuleType):
    """Keeps ``kt.evolve(...)`` and ``kt.export(...)`` working once the submodules of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


_VERBS = {"evolve": evolve, "export": export}
sys.modules[__name__].__class__ = _Package
