"""A search's network and data from what was named on the command line; three parts that have no row in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import digits
from kasmina_trainer.datasets.scenes import divide
from kasmina_trainer.optimize.building import Task
from kasmina_trainer.optimize.samples import Frames, frame_groups, halves, read_frames

if TYPE_CHECKING:
    from kasmina_trainer.checkpoints import Checkpoint

Array = npt.NDArray[Any]
Captures = Callable[[digits.Digits, int], digits.Samples]
"""Labelled frames of what grafts were grown for, (N, C, H, W), given the cameras' scenes and the seed of the growth."""

LEARN_SHARE, HELD_OUT_SHARE = 0.6, 0.2
LEAST_ROWS = 50
"""Frames of each part: fewer cannot tell recipes apart."""
LEAST_FRAMES = round(LEAST_ROWS / HELD_OUT_SHARE)
"""Of one file, which is divided into the three parts."""


def read_task(model: Path, data: str | None, seed: int = 0, captures: Captures | None = None) -> Task:
    """The network of a ``.checkpoint``, ``.pt2`` or ``.onnx``, with its data.

    Args:
        model: The file.
        data: An ``.npz`` (see `samples.read_frames`), or a name of `kasmina-trainer data list`; None: the digits, for a
            checkpoint of this program, split as it was for training.
        seed: Of the split.
        captures: What the grafts of a checkpoint were grown from; called for one that has grafts, and only there.

    Raises:
        InputError: One of them cannot be read, they do not fit each other, or there are too few rows.
    """
    module, saved = _network(model)
    own = Path(data) if data is not None and (Path(data).suffix == ".npz" or Path(data).exists()) else None
    if captures is not None and (own is not None or saved is None or not saved.grafts):
        raise InputError(
            f"{model}: captures were named, and {'it has no grafts' if own is None else '--data names all frames'}",
            "Leave --captured and --simulated out: they belong to a checkpoint with grafts and no --data FILE.npz.",
        )
    if data is None:
        if saved is None:
            raise InputError(f"{model}: no data to judge recipes by", "Pass --data FILE.npz, or a name of `data list`.")
        return _checked(_digits(module, seed, saved, captures), "digits")
    if own is not None:
        return split_task(module, _enough(read_frames(own)), seed)
    return _checked(_named(module, data, seed, saved, captures), data)


def split_task(module: nn.Module, frames: Frames, seed: int) -> Task:
    """A task of one set of frames: 60 % to learn from, 20 % to choose by, 20 % for the final figure.

    Frames are told apart by their bytes: all rows of a frame that repeats are in one part, so the shares are of
    different frames.

    Raises:
        InputError: Several inputs, or too few different frames.
    """
    if len(frames.inputs) != 1:
        raise InputError(f"{frames.source}: {len(frames.inputs)} inputs; recipes are made for networks with one")
    x, y = frames.inputs[0], frames.labels
    group = frame_groups(x)
    different = int(group.max(initial=-1)) + 1
    learn, rest = halves(different, LEARN_SHARE, seed)
    held_out, final = (rest[part] for part in halves(len(rest), HELD_OUT_SHARE / (1 - LEARN_SHARE), seed + 1))
    if not min(len(learn), len(held_out), len(final)):
        raise InputError(
            f"{frames.source}: {len(x)} frames, {different} of them different: no three parts without a frame in common"
        )

    def rows(which: Array) -> tuple[Array, Array | None]:
        chosen = np.flatnonzero(np.isin(group, which))
        return x[chosen], None if y is None else y[chosen]

    return Task(module, *rows(learn), *rows(held_out), *rows(final))


def _network(model: Path) -> tuple[nn.Module, Checkpoint | None]:
    """The module, and the checkpoint it comes from, which was trained on digits."""
    if model.suffix == ".checkpoint":
        from kasmina_trainer.checkpoints import load_checkpoint

        saved = load_checkpoint(model)
        return saved.network.module_for_export(), saved
    from kasmina_trainer.export.source import load_source

    return load_source(model).module, None


def _digits(module: nn.Module, seed: int, saved: Checkpoint | None, captures: Captures | None) -> Task:
    """The digits; for a checkpoint as they were split for its training.

    A network with grafts learns, as at its export, from clean digits and from what the grafts were grown from. It is
    judged by clean digits and by the scenes that growth set aside; the cameras' scenes, which grafts train on, are no
    part of either.

    Raises:
        InputError: There are grafts, and nobody says what they were grown from.
    """
    metadata: Mapping[str, Any] = {} if saved is None else saved.metadata
    parts = digits.split_digits(int(metadata.get("seed", 0 if saved is not None else seed)))
    learn, held_out, final = [_rows(parts.host)], [_rows(parts.check), _rows(parts.probes)], [_rows(parts.test)]
    if saved is None or not saved.grafts:
        held_out.append(_rows(parts.camera))
    elif captures is None or "growth_seed" not in metadata:
        lacks = "no frames of what they were grown for" if captures is None else "no word on which frames they learned"
        raise InputError(
            f"{len(saved.grafts)} grafts, and {lacks}: clean digits alone would calibrate them wrongly, and frames "
            "that they were grown on cannot judge them",
            "Pass --captured FILE or --simulated as for evolve, or --data FILE.npz with fresh frames of all domains.",
        )
    else:
        growth_seed = int(metadata["growth_seed"])
        x, y = captures(parts.camera, growth_seed)
        grown = divide(x, seed=growth_seed)
        if not grown.judge.any():
            raise InputError(f"{len(x)} captured frames, and growth set none of them aside: nothing judges the grafts")
        choose, confirm = np.zeros(len(x), np.bool_), np.zeros(len(x), np.bool_)
        halved = divide(x[grown.judge], share=0.5, seed=growth_seed)
        choose[grown.judge], confirm[grown.judge] = halved.judge, halved.learn
        frames = digits.to_nhwc(x)
        for part, which in ((learn, grown.learn), (held_out, choose), (final, confirm)):
            part.append((frames[which], y[which]))
    return Task(module, *_joined(learn), *_joined(held_out), *_joined(final))


def _rows(part: digits.Digits) -> tuple[Array, Array]:
    return part.nhwc(), part.y


def _joined(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _named(module: nn.Module, name: str, seed: int, saved: Checkpoint | None, captures: Captures | None) -> Task:
    from kasmina_trainer.datasets.catalogue import data_set

    found = data_set(name)
    if found.texts is not None:
        raise InputError(f"data set {name}: a text, and recipes are chosen by inputs with labels", "Take another one.")
    if found.load is None:
        return _digits(module, seed, saved, captures)
    parts = found.load(seed)
    learn, held_out, final = ((digits.to_nhwc(x), y) for x, y in (parts.train, parts.validation, parts.test))
    return Task(module, *learn, *held_out, *final)


def _enough(frames: Frames) -> Frames:
    """The same frames.

    Raises:
        InputError: Too few, or too few that differ; the message names the file, the numbers and why so many.
    """
    different = int(frame_groups(frames.inputs[0]).max()) + 1 if len(frames.inputs) == 1 else len(frames)
    if different < LEAST_FRAMES:
        repeats = f", {different} of them different" if different < len(frames) else ""
        raise InputError(
            f"{frames.source}: {len(frames)} frames{repeats}, at least {LEAST_FRAMES} are needed: recipes are chosen "
            f"by {HELD_OUT_SHARE:.0%} of them and confirmed by another {HELD_OUT_SHARE:.0%}, {LEAST_ROWS} each",
            f"Record {LEAST_FRAMES - different} more, or make one form with `kasmina-trainer export MODEL "
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
