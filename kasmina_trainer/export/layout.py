"""How a network looks from the app: channels last, one input, a tuple of named outputs.

PyTorch keeps channels first; images on a device, TFLite and the Edge TPU keep them last. The wrapper here is what both
converters see, and what the float reference answers come from, so that no file is compared in another layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError

Array = npt.NDArray[Any]
_BATCH = 256


class AppModule(nn.Module):
    """A network behind the app's layout; build it with `as_app`.

    Attributes:
        app_shape: Shape of its input, batch axis first.  # (1, ..., C)
        output_names: One an output, in order.
        output_shapes: With the batch axis, in the app's layout.
    """

    def __init__(
        self, module: nn.Module, app_shape: tuple[int, ...], *, channels_last: bool, output_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.module = module
        self.app_shape = app_shape
        self.moves_input = channels_last and len(app_shape) > 2
        self.moves_outputs = channels_last
        self.output_names = output_names
        self.output_shapes: tuple[tuple[int, ...], ...] = ()

    def forward(self, x: torch.Tensor) -> Any:
        """(N, ..., C) to a tensor, or to a tuple of several."""
        if self.moves_input:
            x = x.permute(0, x.ndim - 1, *range(1, x.ndim - 1))
        outputs = [self._leave(o) for o in tensors_of(self.module(x))]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _leave(self, output: torch.Tensor) -> torch.Tensor:
        return output.permute(0, 2, 3, 1) if self.moves_outputs and output.ndim == 4 else output


def as_app(
    module: nn.Module,
    shape: Sequence[int],
    *,
    channels_last: bool = True,
    output_names: Sequence[str] | None = None,
) -> AppModule:
    """A network as the app sees it; a wrapped one comes back as it is.

    Args:
        module: In evaluation mode, on the CPU; takes one (1, C, ...) tensor.
        shape: The app's input shape.  # (1, ..., C)
        channels_last: Move the last axis of an input of three and more axes to where torch has its channels, and the
            channels of outputs of four axes to the end. False: the network takes and gives what the app has.
        output_names: One an output; ``output``, or ``output0``, ``output1``, ... by default.

    Raises:
        InputError: The network does not run on such an input, or gives something else than float32 tensors with the
            batch first; or another number of names.
    """
    if isinstance(module, AppModule):
        return module
    app = AppModule(module, tuple(shape), channels_last=channels_last, output_names=())
    try:
        with torch.no_grad():
            found = tensors_of(app(torch.zeros(app.app_shape)))
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        own = "channels first" if app.moves_input else "as it is"
        raise InputError(
            f"the network does not run on an input of {app.app_shape} (given {own}): {reason[:300]}",
            "Frames are channels last, (N, H, W, C) or (N, L, C), and the network takes (N, C, ...).",
        ) from exc
    for i, output in enumerate(found):
        if output.dtype != torch.float32:
            raise InputError(
                f"output {i} of the network is {output.dtype}, torch.float32 is expected",
                "Leave argmax and thresholds to the app: it gets the scores.",
            )
        if output.ndim < 2 or output.shape[0] != 1:
            raise InputError(f"output {i} of the network has shape {tuple(output.shape)}, (1, ...) is expected")
    names = tuple(output_names or ())
    if not any(names):
        names = ("output",) if len(found) == 1 else tuple(f"output{i}" for i in range(len(found)))
    if len(names) != len(found) or len(set(names)) != len(names) or not all(names):
        raise InputError(f"the network has {len(found)} outputs, the names given are {', '.join(names)}")
    app.output_names = names
    app.output_shapes = tuple(tuple(o.shape) for o in found)
    return app.eval()


def tensors_of(answer: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an answer: itself, or what a tuple, list or dictionary holds, in order.

    Raises:
        InputError: Something else is in it.
    """
    if isinstance(answer, torch.Tensor):
        return (answer,)
    if isinstance(answer, Mapping):
        return tensors_of(tuple(answer.values()))
    if isinstance(answer, (tuple, list)):
        return tuple(t for part in answer for t in tensors_of(part))
    raise InputError(f"the network gives {type(answer).__name__}, tensors are expected")


def float_outputs(app: AppModule, frames: Array) -> tuple[Array, ...]:
    """The float network's answers, in the app's layout.

    Args:
        app: As `as_app` gives it.
        frames: Model inputs.  # (N, ..., C)
    """
    batch = 1 if getattr(app.module, "fixed_batch", False) else _BATCH
    parts: list[tuple[Array, ...]] = []
    with torch.no_grad():
        for start in range(0, len(frames), batch):
            piece = np.ascontiguousarray(frames[start : start + batch], dtype=np.float32)
            parts.append(tuple(t.numpy().copy() for t in tensors_of(app(torch.from_numpy(piece)))))
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
