"""What a network answers, and where torch may run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Samples


def predict_labels(network: nn.Module, x: npt.NDArray[np.float32], *, batch: int = 256) -> npt.NDArray[np.int64]:
    """The network's answers to (N, C, H, W), in evaluation mode, on the network's device."""
    parameter = next(network.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    was_training = network.training
    network.eval()
    with torch.no_grad(), one_core():
        parts = [
            network(torch.from_numpy(np.array(x[i : i + batch])).to(device)).argmax(1).cpu()
            for i in range(0, len(x), batch)
        ]
    network.train(was_training)
    return torch.cat(parts).numpy().astype(np.int64)


def accuracy(network: nn.Module, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> float:
    """Share of right answers."""
    return float((predict_labels(network, x) == y).mean())


def as_tensors(samples: Samples, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrays (N, C, H, W) and (N,) as tensors on ``device``; copied."""
    x, y = samples
    return (
        torch.from_numpy(np.array(x, dtype=np.float32)).to(device),
        torch.from_numpy(np.array(y, dtype=np.int64)).to(device),
    )


def check_device(device: str) -> str:
    """``device`` if torch can use it here.

    Raises:
        InputError: It cannot.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used here ({reason})", "Use --device cpu.") from exc
    return device


@contextmanager
def one_core() -> Iterator[None]:
    """One torch thread: sums then have one order, and tiny networks are quicker so."""
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = cudnn
