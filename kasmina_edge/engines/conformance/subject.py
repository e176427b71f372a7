"""What is held to the promises: an engine, a bundle it takes, a profile; and the two ways not to keep one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.engines.engine import Engine
from kasmina_edge.engines.selftest import vectors

Array = npt.NDArray[Any]
Frame = dict[str, Array]
Promise = Callable[["Subject"], None]


class BrokenPromiseError(AssertionError):
    """The engine does not do what the interface says."""


class NotAskedError(Exception):
    """The bundle gives no occasion to ask."""


@dataclass(frozen=True)
class Subject:
    """An engine, a bundle with a file that it takes, and the profile it runs under."""

    kind: type[Engine]
    bundle: Bundle
    profile: HardwareProfile

    @cached_property
    def model(self) -> ModelFile:
        """The first plain file of the bundle that the engine takes."""
        for model in self.bundle.manifest.models:
            if model.engine == self.kind.takes and model.compiled_for is None:
                return model
        raise NotAskedError(f"{self.bundle.id} has no file for {self.kind.takes}")

    @cached_property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.bundle.read(self.model.file)

    @cached_property
    def frames(self) -> list[Frame]:
        """The self-test's inputs, in order."""
        return vectors(self.bundle, self.model)[0]

    def open(self, model: ModelFile | None = None, data: bytes | None = None, **profile: Any) -> Engine:
        """Load the file, or a changed one, under the profile or a changed one."""
        target = self.profile.model_copy(update=profile)
        return self.kind(model or self.model, self.data if data is None else data, target)

    def sequence(self, engine: Engine) -> list[Frame]:
        """All frames from the model's beginning."""
        engine.reset()
        return [engine.run(frame) for frame in self.frames]


def equal(one: list[Frame], other: list[Frame]) -> bool:
    """The same frames, bit for bit; NaN equals NaN."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(_same_bits(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def same(one: list[Frame], other: list[Frame], when: str) -> None:
    """Demand the same frames.

    Raises:
        BrokenPromiseError: They differ.
    """
    demand(equal(one, other), f"other answers {when}")


def demand(kept: bool, what: str) -> None:
    """Complain with ``what`` unless it is kept.

    Raises:
        BrokenPromiseError: It is not.
    """
    if not kept:
        raise BrokenPromiseError(what)


def _same_bits(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
