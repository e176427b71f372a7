"""Recipes: what may be done to a network before it ships, as values that can be written down and run again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError, KasminaError, StorageError
from kasmina_edge.storage import write_durable
from kasmina_trainer.quantization.config import QuantizeConfig, refuse_unfit

_OF_TRAINING = ("qat_steps", "qat_batch", "qat_rate", "distillation", "learn_ranges", "seed")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Recipe(Contract):
    """One way from a float network to a file.

    Attributes:
        name: For people; it is no part of what is done.
        quantize: Everything that quantization is asked for.
        prune: Share of the channels to take away first; None: none. Offered only where a pruner is there.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=60)]
    quantize: QuantizeConfig
    prune: Annotated[float, Field(gt=0, lt=1)] | None = None

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed recipe is an `InputError`."""
        return InputError

    def work(self) -> dict[str, Any]:
        """What is done, without the name and without settings that play no part: equal values give equal bytes."""
        quantize = self.quantize.model_dump(mode="json")
        idle = _OF_TRAINING if self.quantize.method == "ptq" else ()
        idle = (*idle, *(() if self.quantize.calibration == "percentile" else ("percentile",)))
        kept = {name: value for name, value in quantize.items() if name not in idle}
        return {"prune": self.prune, "quantize": kept}


class RecipeFile(Contract):
    """A recipe with all that its bytes depend on.

    Attributes:
        model: SHA-256 of the network's weights and structure.
        data: SHA-256 of the frames and labels.
        versions: Of the packages that write the file.
        profile: The target it was chosen for.
        file: SHA-256 of the file it made.
        measured: What it was chosen for, for readers.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    recipe: Recipe
    model: Digest
    data: Digest
    versions: dict[str, str]
    profile: str
    file: Digest
    measured: dict[str, Any] = {}

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed recipe file is an `InputError`."""
        return InputError

    def differences(self, model: str, data: str, versions: Mapping[str, str]) -> tuple[str, ...]:
        """What is not as it was when the recipe was written; () when equal bytes are promised. Pure."""
        found = []
        if model != self.model:
            found.append(f"the network is {model[:12]}, the recipe was made for {self.model[:12]}")
        if data != self.data:
            found.append(f"the data is {data[:12]}, the recipe was made with {self.data[:12]}")
        found += [
            f"{name} is {versions.get(name, 'missing')}, the recipe was made with {made}"
            for name, made in sorted(self.versions.items())
            if versions.get(name) != made
        ]
        return tuple(found)


@dataclass(frozen=True)
class Offer:
    """A recipe that a search may try.

    Attributes:
        recipe: What.
        why: What it is good for.
        only_if: The goals are not met without it; False: it is always tried.
    """

    recipe: Recipe
    why: str
    only_if: bool = False


def offers(
    profile: HardwareProfile,
    *,
    qat_steps: int = 300,
    seed: int = 0,
    headroom: float = 0.0,
    pruning: Sequence[float] = (),
) -> tuple[Offer, ...]:
    """The recipes that a target can run, cheapest first, in an order that never changes.

    Args:
        profile: Recipes that it cannot compute are left out.
        qat_steps: Optimiser steps of those that train.
        seed: Of the training.
        headroom: Share by which activation ranges are widened; 0 for a network that nothing will grow on.
        pruning: Shares to offer; empty where no pruner is there.
    """
    return tuple(o for o in _all(qat_steps, seed, headroom, pruning) if _fits(o.recipe, profile))


def mixed(name: str, bits: Mapping[str, int], like: QuantizeConfig) -> Recipe:
    """A recipe with the widths of a mixed-precision choice; layers at 8 bits are not named."""
    widths = {layer: width for layer, width in sorted(bits.items()) if width != 8}
    return Recipe(
        name=name, quantize=QuantizeConfig.parse({**like.model_dump(), "weight_bits": 8, "per_layer": widths})
    )


def write_recipe(path: Path, made: RecipeFile) -> None:
    """Write it as JSON that people can read; equal values give equal bytes.

    Raises:
        StorageError: The disk refused.
    """
    text = json.dumps(made.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_durable(path, text.encode() + b"\n", mode=0o644)


def read_recipe(path: Path) -> RecipeFile:
    """Read a file of `write_recipe`.

    Raises:
        InputError: Missing, or not such a file; the message names the field.
        StorageError: It cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such recipe", "Write one with `kasmina-trainer optimize`.") from exc
    except OSError as exc:
        raise StorageError(f"{path}: cannot be read ({exc.strerror})") from exc
    return RecipeFile.from_bytes(data, where=str(path))


def _all(steps: int, seed: int, headroom: float, pruning: Sequence[float]) -> Iterator[Offer]:
    def config(**changes: Any) -> QuantizeConfig:
        return QuantizeConfig.parse({"headroom": headroom, "seed": seed, "qat_steps": steps, **changes})

    def offer(name: str, why: str, *, only_if: bool = False, **changes: Any) -> Offer:
        return Offer(Recipe(name=name, quantize=config(**changes)), why, only_if)

    yield offer("ptq mse", "the range of the smallest error for every tensor")
    yield offer("ptq minmax", "nothing that calibration showed is cut off", calibration="minmax")
    yield offer("ptq percentile", "rare large values are cut off", calibration="percentile", percentile=99.9)
    yield offer("ptq mse, all biases", "takes the mean rounding error out of every layer", bias_correction="all")
    yield offer("ptq mse, equalised", "channels of very different weights share no range", equalize=True)
    yield offer("qat", "trains against the rounding", only_if=True, method="qat")
    yield offer("ptq 4-bit weights", "half the bytes of the weights", weight_bits=4)
    yield offer("qat 4-bit weights", "trains against coarse weights", only_if=True, method="qat", weight_bits=4)
    for share in pruning:
        yield Offer(
            Recipe(name=f"pruned {share:.0%}", quantize=config(method="qat"), prune=share),
            "fewer channels",
            only_if=True,
        )


def _fits(recipe: Recipe, profile: HardwareProfile) -> bool:
    try:
        refuse_unfit(recipe.quantize, profile)
    except InputError:
        return False
    return True
