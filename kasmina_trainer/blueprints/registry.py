"""What a blueprint promises, and where the library is kept.

Two families. A `GraftBlueprint` builds a branch ``B`` for one site; the network becomes ``x + gate * B(x)`` there, and
``B`` is zero at birth, so the host's outputs do not change until it learns. A `HostBlueprint` retunes the host's own
parameters; its result is a new host and cannot be taken out of it.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib import import_module

import torch
from torch import nn

from kasmina_edge.errors import InputError

Shape = tuple[int, int, int]  # (C, H, W)
_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,63}$")
_LIBRARY = ("noop", "depthwise", "retune")


class Blueprint:
    """A kind of growth, by name and version; the version changes whenever old weights would mean something else."""

    name: str = ""
    version: int = 0
    mergeable: bool = False


class GraftBlueprint(Blueprint, ABC):
    """Grows a removable branch at a site."""

    def build(self, shape: Shape, *, seed: int) -> nn.Module | None:
        """A fresh branch for a site, checked: it keeps the shape and answers zero.

        Args:
            shape: What flows through the site, without the batch.
            seed: Chooses the first weights.

        Returns:
            The branch, or None when this blueprint adds nothing.

        Raises:
            InputError: The site's shape does not suit, or the blueprint breaks its promise.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"blueprint {self.name}: expected a site of shape (C, H, W), got {shape}")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            branch = self._build(shape)
            if branch is None:
                return None
            probe = torch.randn(2, *shape)
            answer = branch.eval()(probe)
        if answer.shape != probe.shape:
            raise InputError(
                f"blueprint {self.name}: the branch turns {tuple(probe.shape)} into {tuple(answer.shape)}; "
                "expected the same shape"
            )
        largest = float(answer.abs().max())
        if largest != 0.0:
            raise InputError(f"blueprint {self.name}: expected a branch that is zero at birth, got up to {largest:.3g}")
        return branch

    @abstractmethod
    def _build(self, shape: Shape) -> nn.Module | None:
        """The branch, last layer zero; weights drawn from torch's generator, which the caller has seeded."""


class HostBlueprint(Blueprint, ABC):
    """Retunes a copy of the host; what it makes is a new host."""

    mergeable = True

    @abstractmethod
    def tuned(self, host: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """Of a private copy of the host: the parameters that learn and the modules that run in training mode."""

    @abstractmethod
    def count(self, host: nn.Module) -> int:
        """How many of the host's values this blueprint may change."""


_REGISTRY: dict[str, Blueprint] = {}


def register(blueprint: Blueprint) -> Blueprint:
    """Add a blueprint to the library.

    Raises:
        InputError: The name is malformed or taken, or the version is not positive.
    """
    if not _NAME.match(blueprint.name):
        raise InputError(f"blueprint name {blueprint.name!r}: expected 1 to 64 of a-z, 0-9 and -")
    if blueprint.version < 1:
        raise InputError(f"blueprint {blueprint.name}: expected a version of 1 or more, got {blueprint.version}")
    if blueprint.name in _REGISTRY:
        raise InputError(f"blueprint {blueprint.name} is registered already, as v{_REGISTRY[blueprint.name].version}")
    _REGISTRY[blueprint.name] = blueprint
    return blueprint


def blueprint_names() -> tuple[str, ...]:
    """Every name in the library."""
    return tuple(sorted(b.name for b in _loaded()))


def find_blueprint(name: str, version: int | None = None) -> Blueprint:
    """A blueprint by name.

    Args:
        name: For example ``depthwise``.
        version: The version that weights were made for, or None for the present one.

    Raises:
        InputError: No such name (the nearest are given) or another version.
    """
    known = {b.name: b for b in _loaded()}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise InputError(f"no blueprint is called {name!r}", f"Did you mean {', '.join(nearest)}?")
    found = known[name]
    if version is not None and version != found.version:
        raise InputError(f"blueprint {name}: v{version} was asked for, this library has v{found.version}")
    return found


def _loaded() -> Iterable[Blueprint]:
    for family in _LIBRARY:
        import_module(f"kasmina_trainer.blueprints.{family}")
    return _REGISTRY.values()
