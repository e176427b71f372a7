"""A bundle's guard at work: the score of a frame from the statistics that the network gave with its answer."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import ModelFile
from kasmina_edge.engines.tensors import OutputConverter
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.safety.input_check import InputCheck

Array = npt.NDArray[Any]


class Guard:
    """The input check of one loaded bundle.

    Args:
        check: What good frames have in common.
        at: Which output holds the statistics.
        converter: Of that output.
    """

    def __init__(self, check: InputCheck, at: int, converter: OutputConverter) -> None:
        self.check, self._at, self._converter = check, at, converter

    def score(self, raws: list[Array]) -> float:
        """How far a frame is from good ones: 1 is usual, above ``check.threshold`` is an alarm.

        Args:
            raws: Every output in the model's own numbers.
        """
        return float(self.check.scores(self._converter.convert(raws[self._at]).reshape(1, -1))[0])


def guard_of(bundle: Bundle, model: ModelFile) -> Guard | None:
    """The guard that a bundle carries for one of its models; None where it carries none.

    Raises:
        BundleError: Its file holds no check, or one of other statistics than the output gives.
    """
    entry, where = bundle.manifest.guard, bundle.id
    if entry is None:
        return None
    at = next(i for i, io in enumerate(bundle.manifest.outputs) if io.name == entry.output)
    io = bundle.manifest.outputs[at]
    try:
        check = InputCheck.from_bytes(bundle.read(entry.file), where=f"{where}: {entry.file.path}")
    except InputError as exc:
        raise BundleError(exc.message, exc.next_step) from exc
    if len(check.mean) != prod(io.shape):
        raise BundleError(
            f"{where}: {entry.file.path} is for {len(check.mean)} statistics, output {io.name} gives {prod(io.shape)}",
            "Fit the guard to this bundle's own statistics.",
        )
    return Guard(check, at, OutputConverter(model.app_outputs[at], io, copies=True))
