"""One method on one host and one kind of wrong input: trained once, kept as a line in build/bench/growth-TASK.jsonl.

A line stands for what it was made of: data set and seed (which make the host), the method, versions of blueprints
(which never change), torch, and the code of the cells. A run that stops goes on with the next cell.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._detector import code_of
from benchmarks._growth_peft import Method, fit, removed_exactly, right
from benchmarks._growth_tasks import Array, Ground, ground, known
from benchmarks._quantize_nets import FOLDER
from kasmina_trainer.blueprints import normed, switched
from kasmina_trainer.blueprints.registry import find_blueprint
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve import meeting, opening
from kasmina_trainer.evolve.recipes import RECIPES, SWITCHED

CODE = (
    Path(__file__).parent / "_growth_peft.py",
    Path(__file__).parent / "_growth_tasks.py",
)
USED = ("adapter", "channel-affine", "conv-lora", "input-filter", "scale-bn-retune", "switched-adapter")


@dataclass(frozen=True)
class Cell:
    """What one method did.

    Attributes:
        task: Data set.
        seed: Of the host.
        kind: Of what went wrong.
        method: Its name.
        parameters: Added or changed values.
        share: The same as a share of the host's parameters.
        steps: Optimiser steps.
        batch: Rows a step.
        seconds: Processor time of the training.
        peak_bytes: What learning kept besides the network.
        removed: Whether taking it out gave the host's bits back; None where the host itself was trained.
        before: Rows that the host answers rightly, by part.  # (N,) bool
        after: The same after training.
    """

    task: str
    seed: int
    kind: str
    method: str
    parameters: int
    share: float
    steps: int
    batch: int
    seconds: float
    peak_bytes: int
    removed: bool | None
    before: dict[str, Array]
    after: dict[str, Array]

    def gain(self, part: str = "test") -> float:
        """Points of accuracy won on wrong inputs."""
        return 100 * float(self.after[f"{part} target"].mean() - self.before[f"{part} target"].mean())

    def loss(self, part: str = "test") -> float:
        """Points of accuracy lost on clean inputs."""
        return 100 * float(self.before[f"{part} clean"].mean() - self.after[f"{part} clean"].mean())


def cell(task: str, seed: int, kind: str, method: Method, *, only_kept: bool = False) -> Cell | None:
    """A cell from its file, or trained now.

    Args:
        task: Data set.
        seed: Of host and training.
        kind: Of what goes wrong.
        method: What is trained.
        only_kept: Do not train; None where the file does not hold it.
    """
    path, key = _path(task), _key(task, seed, kind, method)
    kept = _lines(path).get(key)
    if kept is not None:
        return replace(kept, method=method.name)
    if only_kept:
        return None
    made = judged(_ground(task, seed, kind), method)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key, **_packed(made)}) + "\n")
    _lines(path)[key] = made
    return made


def judged(place: Ground, method: Method) -> Cell:
    """Train a method and ask it about every row of both held-out parts."""
    fitted = fit(method, place, seed=place.seed)
    rows = {
        "validation clean": place.clean.validation,
        "validation target": place.target.validation,
        "test clean": place.clean.test,
        "test target": place.target.test,
    }
    return Cell(
        task=place.task.name,
        seed=place.seed,
        kind=place.kind,
        method=method.name,
        parameters=fitted.parameters,
        share=fitted.parameters / sum(p.numel() for p in place.host.parameters()),
        steps=method.settings.steps,
        batch=method.settings.batch,
        seconds=fitted.run.seconds,
        peak_bytes=fitted.run.peak_bytes,
        removed=None if method.whole else removed_exactly(fitted, place),
        before=_known_right(place, rows),
        after={name: right(fitted.network, part) for name, part in rows.items()},
    )


_ASKED: dict[str, Any] = {}


def _known_right(place: Ground, rows: dict[str, Samples]) -> dict[str, Array]:
    """What the host itself answers rightly; asked once for all methods of a cell."""
    if _ASKED.get("of") is not place:
        _ASKED.update(of=place, rows={name: right(place.host, part) for name, part in rows.items()})
    return dict(_ASKED["rows"])


@lru_cache(maxsize=1)
def _ground(task: str, seed: int, kind: str) -> Ground:
    return ground(known(task), seed, kind)


@cache
def _made_of() -> str:
    code = [code_of(path) for path in CODE]
    versions = [f"{name}@{find_blueprint(name).version}" for name in USED]
    return f"{torch.__version__} {versions} {code}"


def _key(task: str, seed: int, kind: str, method: Method) -> str:
    told = asdict(replace(method, name="")) | {"parts": str(RECIPES.get(method.recipe))}
    if any(part.blueprint == SWITCHED for part in RECIPES.get(method.recipe, ())):
        own = (meeting, opening, switched, normed)  # what others learn does not hang on these
        told["switched"] = str([code_of(Path(str(module.__file__))) for module in own])
    return hashlib.sha256(f"{_made_of()} {told} {task} {seed} {kind}".encode()).hexdigest()[:20]


def _path(task: str) -> Path:
    return FOLDER / f"growth-{task.lower().replace(' ', '-')}.jsonl"


@cache
def _lines(path: Path) -> dict[str, Cell]:
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        if line.endswith("}"):  # a line cut short by a kill is left out, and trained again
            told: dict[str, Any] = json.loads(line)
            key = told.pop("key")
            found[key] = _unpacked(told)
    return found


def _packed(made: Cell) -> dict[str, Any]:
    told = asdict(replace(made, before={}, after={}))
    for name in ("before", "after"):
        told[name] = {
            part: (len(rows), base64.b64encode(np.packbits(rows).tobytes()).decode())
            for part, rows in vars(made)[name].items()
        }
    return told


def _unpacked(told: dict[str, Any]) -> Cell:
    for name in ("before", "after"):
        told[name] = {
            part: np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)
            for part, (count, text) in told[name].items()
        }
    return Cell(**told)
