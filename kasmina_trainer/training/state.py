"""A training between two steps, as named arrays: what a file has to hold so that it can go on to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.training.rows import Draw


@dataclass(frozen=True)
class TrainingState:
    """A training between two steps: everything that the next step depends on, as named arrays.

    Attributes:
        step: Steps done.
        seconds: Wall seconds spent on them.
        arrays: Parameters, buffers, moments, rates, order of rows, generator and losses.
    """

    step: int
    seconds: float
    arrays: Mapping[str, npt.NDArray[Any]]


def _places(
    parameters: Sequence[nn.Parameter], modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Every tensor that learning changes, under a name of its own."""
    places = {f"parameter.{i}": p.detach() for i, p in enumerate(parameters)}
    places |= {f"buffer.{i}.{name}": b for i, module in enumerate(modules) for name, b in module.named_buffers()}
    for i, parameter in enumerate(parameters):
        places |= {f"{name}.{i}": value for name, value in optimizer.state[parameter].items()}
    return places


def kept_arrays(
    parameters: Sequence[nn.Parameter],
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    draws: Sequence[Draw],
    generator: torch.Generator,
) -> dict[str, npt.NDArray[Any]]:
    """What `restore` needs, copied; the losses are the caller's."""
    places = _places(parameters, modules, optimizer)
    arrays = {name: value.cpu().contiguous().numpy().copy() for name, value in places.items()}
    arrays |= {f"order.{i}": draw.order.numpy().copy() for i, draw in enumerate(draws)}
    arrays["rates"] = np.array([[g["lr"], *g["betas"]] for g in optimizer.param_groups])
    arrays["generator"] = generator.get_state().numpy().copy()
    return arrays


def restore(
    state: TrainingState,
    parameters: Sequence[nn.Parameter],
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    draws: Sequence[Draw],
    generator: torch.Generator,
) -> list[float]:
    """Put a state back; gives the losses so far.

    Raises:
        InputError: An array is missing or of another shape, or holds what no training keeps there. Parameters, order
            and generator are untouched then.
    """
    arrays = state.arrays
    _check_course(state, optimizer, draws)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    places = _places(parameters, modules, optimizer)
    for name, place in places.items():
        if name not in arrays or arrays[name].shape != tuple(place.shape):
            found = arrays[name].shape if name in arrays else "nothing"
            raise InputError(f"the state is of another training: {name} is {found}, expected {tuple(place.shape)}")
    for name, place in places.items():
        value = torch.from_numpy(np.array(arrays[name])).to(place.device)
        if not torch.equal(place, value):  # a frozen host's buffers stay untouched, not merely equal
            place.copy_(value)
    for i, draw in enumerate(draws):
        draw.order = torch.from_numpy(np.array(arrays[f"order.{i}"], np.int64))
    for group, (rate, *betas) in zip(optimizer.param_groups, arrays["rates"].tolist(), strict=True):
        group["lr"], group["betas"] = rate, tuple(betas)
    generator.set_state(torch.from_numpy(np.array(arrays["generator"])))
    return [float(value) for value in arrays["losses"]]


def _check_course(state: TrainingState, optimizer: torch.optim.Optimizer, draws: Sequence[Draw]) -> None:
    """Whether everything besides the learning tensors is there: order of rows, rates, generators, losses.

    Raises:
        InputError: It is not; the array is named, with what was found and what was expected.
    """
    arrays, bytes_ = state.arrays, torch.Generator().get_state().numel()
    shapes: dict[str, tuple[int, ...] | None] = {f"order.{i}": None for i in range(len(draws))}
    shapes |= {"rates": (len(optimizer.param_groups), 3), "generator": (bytes_,), "noise": (bytes_,)}
    shapes |= {"losses": (state.step,), "peak_bytes": (1,)}
    for name, shape in shapes.items():
        if name not in arrays:
            raise InputError(f"the state is of another training: {name} is missing, it holds {len(arrays)} arrays")
        if shape is not None and arrays[name].shape != shape:
            raise InputError(f"the state is of another training: {name} is {arrays[name].shape}, expected {shape}")
    for i, draw in enumerate(draws):
        order = arrays[f"order.{i}"]
        if (
            order.ndim != 1
            or order.dtype.kind != "i"
            or (order.size and not 0 <= order.min() <= order.max() < draw.count)
        ):
            raise InputError(
                f"the state is of another training: order.{i} is {order.shape} {order.dtype}, expected numbers of "
                f"{draw.count} rows"
            )
    for name in ("generator", "noise"):
        try:
            torch.Generator().set_state(torch.from_numpy(np.array(arrays[name])))
        except (RuntimeError, TypeError) as exc:
            raise InputError(f"the state is of another training: {name} is no generator ({str(exc)[:80]})") from exc
