"""Says in one sentence why a network cannot run on the frames it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kasmina_edge.errors import InputError


@contextmanager
def runs_on(network: nn.Module, frames: torch.Tensor) -> Iterator[None]:
    """Around a pass over frames.

    Args:
        network: What runs.
        frames: Its inputs.  # (N, C, ...)

    Raises:
        InputError: There are no frames, or the network does not take their shape or their kind of number.
    """
    if not frames.dim() or not len(frames):
        raise InputError(f"frames of shape {tuple(frames.shape)}: expected at least 1, got 0")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as exc:
        kind = str(frames.dtype).removeprefix("torch.")
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise InputError(
            f"{type(network).__name__} does not take frames of shape {tuple(frames.shape)} in {kind}: {reason[:200]}",
            "Pass the frames that it was trained on, or others of that shape and kind.",
        ) from exc
