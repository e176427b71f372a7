"""Rows to learn from and rows to judge by, checked before anything grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Samples, image_digests
from kasmina_trainer.datasets.scenes import HOLDOUT_SHARE, divide, scene_groups

SMALLEST_SOURCE = 20
_LABEL_THEM = "Label every row, or leave the unlabelled ones out."


def checked(name: str, samples: Samples, classes: int | None = None) -> Samples:
    """Inputs as float32 and labels as int64, every one of them usable.

    Args:
        name: What they are, for messages.
        samples: Inputs (N, ...) and labels (N,).
        classes: How many classes the host answers; None: any label from 0 on.

    Raises:
        InputError: A row without a label, a label outside the classes, or an input that is not finite; the message
            names the first such row.
    """
    if samples[1] is None:
        raise InputError(f"{name}: {len(samples[0])} inputs and no labels", _LABEL_THEM)
    x, raw = _inputs(name, samples[0]), _array(f"{name}: labels", samples[1])
    if raw.ndim == 0 or len(x) != len(raw):
        raise InputError(f"{name}: {len(x)} inputs and {raw.size if raw.ndim == 0 else len(raw)} labels")
    y = _labels(name, raw)
    wrong = np.flatnonzero((y < 0) | (y >= classes)) if classes is not None else np.flatnonzero(y < 0)
    if len(wrong):
        known = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise InputError(f"{name}: row {wrong[0]} has label {y[wrong[0]]}, expected {known}")
    broken = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1)) if len(x) else np.zeros(0, np.int64)
    if len(broken):
        value = x[broken[0]][~np.isfinite(x[broken[0]])].flat[0]
        raise InputError(
            f"{name}: row {broken[0]} holds {value}, and {len(broken)} of {len(x)} rows are not finite",
            "Leave these rows out; a sensor that gives them needs a look.",
        )
    return x, y


def held_out(
    name: str, samples: Samples, holdout: Samples | None, seed: int, classes: int | None = None, *, least: int = 1
) -> tuple[Samples, Samples]:
    """Rows to learn from and rows to judge by, none of them in both.

    Args:
        name: What they are, for messages.
        samples: Inputs and labels.
        holdout: What to judge by; None: a quarter of ``samples``, in whole scenes. Rows that are too like one of them
            to be learned from are left out then.
        seed: Chooses the scenes.
        classes: As in `checked`.
        least: Rows that the gate asks for; fewer of its own making are refused here, before anything is trained.

    Raises:
        InputError: As `checked`; a held-out row that is trained on; too few rows; rows of a single class; nothing to
            judge by.
    """
    x, y = checked(name, samples, classes)
    if holdout is None:
        parts = divide(x, share=HOLDOUT_SHARE, seed=seed)
        judged = x[parts.judge], y[parts.judge]
        few_judge, few_learn = parts.judge.sum() < max(1, least), parts.learn.sum() < SMALLEST_SOURCE
        if len(x) >= SMALLEST_SOURCE and (few_judge or (few_learn and parts.between.any())):
            raise InputError(
                f"{name}: {len(x)} rows of {len(np.unique(scene_groups(x)))} scenes give {parts.judge.sum()} to judge "
                f"by (a quarter, in whole scenes; {max(1, least)} are needed) and {parts.learn.sum()} to learn from "
                f"({SMALLEST_SOURCE} are needed); {parts.between.sum()} are too like those that judge",
                f"Capture more scenes, or pass held-out rows (holdout_{'clean' if name == 'train' else name}=).",
            )
        x, y = x[parts.learn], y[parts.learn]
    else:
        judged = checked(f"held-out {name}", holdout, classes)
        shared = set(image_digests(x)) & set(image_digests(judged[0]))
        if shared:
            raise InputError(f"{name}: {len(shared)} held-out inputs are trained on as well: the gate would be a leak")
    if len(x) < SMALLEST_SOURCE:
        raise InputError(f"{name}: {len(x)} rows to learn from, at least {SMALLEST_SOURCE} are needed")
    if not len(judged[0]):
        raise InputError(f"held-out {name}: 0 rows to judge by, at least 1 is needed")
    if len(np.unique(y)) == 1:
        raise InputError(
            f"{name}: all {len(y)} rows are of class {y[0]}, at least 2 classes are needed",
            "A graft that sees one class learns to answer it always; capture others as well.",
        )
    return (x, y), judged


def border_note(name: str, samples: Samples, learn: Samples, judge: Samples, holdout: Samples | None) -> list[str]:
    """What `held_out` left out because it is too like rows that judge, as a sentence; [] where that is nothing."""
    left = len(samples[0]) - len(learn[0]) - (len(judge[0]) if holdout is None else 0)
    return [f"{name}: {left} of {len(samples[0])} rows were left out, too like rows that judge"] if left else []


def check_shapes(rows: Mapping[str, Samples]) -> None:
    """All rows of a run have one shape.

    Args:
        rows: By name, for messages; the first one is what the others are held against.

    Raises:
        InputError: They differ; both shapes are named.
    """
    (first, (x, _)), *others = rows.items()
    for name, (other, _) in others:
        if other.shape[1:] != x.shape[1:]:
            raise InputError(f"{name}: inputs of shape {other.shape[1:]}, those of {first} are {x.shape[1:]}")


def count_classes(host: nn.Module, x: npt.NDArray[np.float32]) -> int:
    """How many classes the host answers.

    Args:
        host: Gives logits (N, classes).
        x: Rows as the host takes them; the first one is asked.  # (N, ...)

    Raises:
        InputError: The host cannot take such a row, or gives something else.
    """
    parameter = next(host.parameters(), None)
    device = parameter.device if parameter is not None else "cpu"
    row = _inputs("train", x[:1])
    try:
        with torch.no_grad():
            answer = host(torch.from_numpy(np.array(row)).to(device))
    except (RuntimeError, ValueError, IndexError) as exc:
        raise InputError(f"the host cannot take inputs of shape {row.shape[1:]} ({str(exc).splitlines()[0]})") from exc
    if not isinstance(answer, torch.Tensor) or answer.ndim != 2:
        found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise InputError(f"the host answers {found} to one row, expected logits (1, classes)")
    return int(answer.shape[1])


def _inputs(name: str, given: object) -> npt.NDArray[np.float32]:
    raw = _array(f"{name}: inputs", given)
    if raw.ndim == 0 or raw.dtype.kind not in "biuf":
        raise InputError(f"{name}: inputs of type {raw.dtype} and shape {raw.shape}, expected real numbers (N, ...)")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told by its row
        return raw.astype(np.float32, copy=False)


def _array(what: str, given: object) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as exc:  # ragged lists; torch's tensors on a device or in a graph
        raise InputError(f"{what} are no array ({str(exc).splitlines()[0]})") from exc


def _labels(name: str, raw: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    if raw.ndim != 1:
        raise InputError(f"{name}: labels of shape {raw.shape}, expected ({len(raw)},), one a row")
    if raw.dtype.kind == "O":
        for row, value in enumerate(raw.tolist()):
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise InputError(f"{name}: row {row} has label {value}, expected a class number", _LABEL_THEM)
        return raw.astype(np.int64)
    if raw.dtype.kind == "f":
        values = raw.astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if len(wrong):
            raise InputError(
                f"{name}: row {wrong[0]} has label {values[wrong[0]]}, expected a class number", _LABEL_THEM
            )
        return values.astype(np.int64)
    if raw.dtype.kind not in "iu":
        raise InputError(f"{name}: labels of type {raw.dtype}, expected whole numbers", _LABEL_THEM)
    return raw.astype(np.int64)
