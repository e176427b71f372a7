"""A search's network and data from what was named on the command line; three parts that have no row in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import digits
from kasmina_trainer.optimize.building import Task
from kasmina_trainer.optimize.samples import Frames, halves, read_frames

Array = npt.NDArray[Any]

LEARN_SHARE, HELD_OUT_SHARE = 0.6, 0.2
LEAST_ROWS = 50
"""Frames of each part: fewer cannot tell recipes apart."""
LEAST_FRAMES = round(LEAST_ROWS / HELD_OUT_SHARE)
"""Of one file, which is divided into the three parts."""


def read_task(model: Path, data: str | None, seed: int = 0) -> Task:
    """The network of a ``.checkpoint``, ``.pt2`` or ``.onnx``, with its data.

    Args:
        model: The file.
        data: An ``.npz`` (see `samples.read_frames`), or a name of `kasmina-trainer data list`; None: the digits, for a
            checkpoint of this program, split as it was for training.
        seed: Of the split.

    Raises:
        InputError: One of them cannot be read, they do not fit each other, or there are too few rows.
    """
    module, trained_seed = _network(model)
    if data is None:
        if trained_seed is None:
            raise InputError(f"{model}: no data to judge recipes by", "Pass --data FILE.npz, or a name of `data list`.")
        return _checked(_digits(module, trained_seed), "digits")
    if Path(data).suffix == ".npz" or Path(data).exists():
        return split_task(module, _enough(read_frames(Path(data))), seed)
    return _checked(_named(module, data, seed), data)


def split_task(module: nn.Module, frames: Frames, seed: int) -> Task:
    """A task of one set of frames: 60 % to learn from, 20 % to choose by, 20 % for the final figure.

    Raises:
        InputError: Several inputs, or too few frames.
    """
    if len(frames.inputs) != 1:
        raise InputError(f"{frames.source}: {len(frames.inputs)} inputs; recipes are made for networks with one")
    x, y = frames.inputs[0], frames.labels
    learn, rest = halves(len(x), LEARN_SHARE, seed)
    held_out, final = (rest[part] for part in halves(len(rest), HELD_OUT_SHARE / (1 - LEARN_SHARE), seed + 1))

    def rows(which: Array) -> tuple[Array, Array | None]:
        return x[which], None if y is None else y[which]

    return Task(module, *rows(learn), *rows(held_out), *rows(final))


def _network(model: Path) -> tuple[nn.Module, int | None]:
    """The module, and the seed its digits were split by where it was trained on them."""
    if model.suffix == ".checkpoint":
        from kasmina_trainer.checkpoints import load_checkpoint

        saved = load_checkpoint(model)
        return saved.network.module_for_export(), int(saved.metadata.get("seed", 0))
    from kasmina_trainer.export.source import load_source

    return load_source(model).module, None


def _digits(module: nn.Module, seed: int) -> Task:
    parts = digits.split_digits(seed)
    held_out = [parts.check, parts.probes, parts.camera]
    return Task(
        module, parts.host.nhwc(), parts.host.y, np.concatenate([p.nhwc() for p in held_out]),
        np.concatenate([p.y for p in held_out]), parts.test.nhwc(), parts.test.y,
    )  # fmt: skip


def _named(module: nn.Module, name: str, seed: int) -> Task:
    from kasmina_trainer.datasets.catalogue import data_set

    found = data_set(name)
    if found.load is None:
        return _digits(module, seed)
    parts = found.load(seed)
    learn, held_out, final = ((digits.to_nhwc(x), y) for x, y in (parts.train, parts.validation, parts.test))
    return Task(module, *learn, *held_out, *final)


def _enough(frames: Frames) -> Frames:
    """The same frames.

    Raises:
        InputError: Too few; the message names the file, both numbers and why so many.
    """
    if len(frames) < LEAST_FRAMES:
        raise InputError(
            f"{frames.source}: {len(frames)} frames, at least {LEAST_FRAMES} are needed: recipes are chosen by "
            f"{HELD_OUT_SHARE:.0%} of them and confirmed by another {HELD_OUT_SHARE:.0%}, {LEAST_ROWS} each",
            f"Record {LEAST_FRAMES - len(frames)} more, or make one form with `kasmina-trainer export MODEL "
            "--calibration FILE.npz`, which does with some hundred.",
        )
    return frames


def _checked(task: Task, source: str) -> Task:
    counts = {"learn": len(task.learn), "choose": len(task.held_out), "confirm": len(task.final)}
    for what, count in counts.items():
        if count < LEAST_ROWS:
            raise InputError(
                f"{source}: {count} frames to {what} by, at least {LEAST_ROWS} are needed",
                "Name another data set, or give your own frames with --data FILE.npz.",
            )
    return task
