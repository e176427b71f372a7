"""Candidates on disk: a recipe's file and its answers under the digest of everything they depend on.

A key is made of the network, the data, the recipe and the versions of what writes the file, so an entry is never out of
date, only absent. An entry that was damaged is made again. Nothing in it depends on the hardware profile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.canonical import canonical_bytes, sha256_hex
from kasmina_edge.storage import make_private_folder, write_durable
from kasmina_trainer.optimize.recipes import Recipe

Array = npt.NDArray[Any]

WRITERS = ("ai-edge-quantizer", "flatbuffers", "kasmina", "litert-torch", "ai-edge-litert", "numpy", "torch")
RESULT, MODEL = "result.json", "model.tflite"


@dataclass(frozen=True)
class Candidate:
    """What a recipe made.

    Attributes:
        recipe: What was done.
        data: The TFLite file.
        right: Whether each held-out input was answered rightly; without labels, as the float network answers.  # (N,)
        final: The same on inputs that nothing was chosen by.  # (M,)
        seconds: What it cost to make.
        notes: What was done, a sentence each.
    """

    recipe: Recipe
    data: bytes
    right: tuple[bool, ...]
    final: tuple[bool, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256_hex(self.data)


def versions() -> dict[str, str]:
    """Of the packages that write the file."""
    found = {}
    for name in WRITERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def key_of(recipe: Recipe, model: str, data: str, made_with: Mapping[str, str]) -> str:
    """What a candidate is kept under: SHA-256 over everything that its bytes depend on."""
    value = {"format": 1, "recipe": recipe.work(), "model": model, "data": data, "versions": dict(made_with)}
    return sha256_hex(canonical_bytes(value))


class CandidateStore:
    """A folder of candidates.

    Args:
        folder: Made when the first candidate is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str, recipe: Recipe) -> Candidate | None:
        """The candidate kept under ``key``, with the recipe's present name; None when it is absent or damaged."""
        place = self._place(key)
        try:
            body, model = (place / RESULT).read_bytes(), (place / MODEL).read_bytes()
            value = json.loads(body)
            digest = value.pop("digest")
            if digest != sha256_hex(canonical_bytes(value)) or value["file"] != sha256_hex(model):
                return None
            if value["recipe"] != recipe.work():
                return None
            return Candidate(
                recipe, model, _rows(value["right"], value["samples"]), _rows(value["final"], value["final_samples"]),
                float(value["seconds"]), tuple(value["notes"]),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, key: str, candidate: Candidate) -> None:
        """Keep a candidate; a crash leaves it whole or absent.

        Raises:
            StorageError: The disk refused.
        """
        place = self._place(key)
        make_private_folder(place)
        write_durable(place / MODEL, candidate.data, mode=0o644)
        value = {
            "recipe": candidate.recipe.work(), "file": candidate.digest, "seconds": round(candidate.seconds, 3),
            "right": _hex(candidate.right), "samples": len(candidate.right),
            "final": _hex(candidate.final), "final_samples": len(candidate.final), "notes": list(candidate.notes),
        }  # fmt: skip
        body = canonical_bytes({**value, "digest": sha256_hex(canonical_bytes(value))})
        write_durable(place / RESULT, body + b"\n", mode=0o644)

    def _place(self, key: str) -> Path:
        return self._folder / key[:2] / key


def _hex(rows: tuple[bool, ...]) -> str:
    return np.packbits(np.asarray(rows, np.bool_)).tobytes().hex()


def _rows(text: str, count: int) -> tuple[bool, ...]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if not 0 <= int(count) <= len(bits) or len(bits) - int(count) >= 8:
        raise ValueError(f"{len(bits)} bits for {count} rows")
    return tuple(bool(bit) for bit in bits[: int(count)])
