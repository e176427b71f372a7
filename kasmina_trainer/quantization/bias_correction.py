"""Takes the mean error that rounding leaves on each channel out of every layer's bias, layer by layer.

Empirical bias correction (Nagel et al. 2019, section 4.2 and appendix D): the rounded network runs over calibration
frames beside the float one; what a layer's mean output gained goes out of its bias, and only then the next layer is
looked at, for it reads corrected inputs. The last layer alone is corrected on the file itself, when it is exported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from kasmina_trainer.quantization.folding import Weighted, weighted_layers
from kasmina_trainer.quantization.ranges import Array, Ranges
from kasmina_trainer.quantization.simulation import BATCH, Simulation, to_tensor


def correct_biases(
    graph: fx.GraphModule, bits: Mapping[str, int], ranges: Ranges, frames: Array
) -> tuple[fx.GraphModule, dict[str, float]]:
    """A graph whose biases make the means of its rounded layers those of the float network.

    Args:
        graph: As `folded_graph` gives it; it is not changed. A layer without bias gets one.
        bits: Width of each weighted layer.
        ranges: Range of each rounding point.
        frames: Calibration frames; some hundred are enough.  # (N, ..., C)

    Returns:
        The corrected graph, and by module name the mean magnitude of what was taken out, in units of the standard
        deviation of the layer's output.
    """
    corrected = copy.deepcopy(graph)
    for layer in weighted_layers(corrected).values():
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(_channels(layer)), requires_grad=False)
    rounded = Simulation(corrected, bits, ranges)
    wanted = weighted_layers(graph)
    taken: dict[str, float] = {}
    for name, layer in weighted_layers(rounded.module).items():
        mean, spread = _output(graph, wanted[name], frames)
        shift = _output(rounded.module, layer, frames)[0] - mean
        with torch.no_grad():
            for each in (layer, corrected.get_submodule(name)):
                assert isinstance(each.bias, torch.Tensor)
                each.bias.sub_(shift)
        taken[name] = float(shift.abs().mean()) / max(spread, 1e-12)
    return corrected, taken


def _output(module: nn.Module, layer: Weighted, frames: Array) -> tuple[torch.Tensor, float]:
    """Mean of each output channel of a layer, and the standard deviation over all of them.  # (C,)"""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    total, squares, count = torch.zeros(_channels(layer), dtype=torch.float64), 0.0, 0

    def note(_module: nn.Module, _args: object, value: torch.Tensor) -> None:
        nonlocal total, squares, count
        flat = value.detach().double().movedim(axis, -1).flatten(0, -2)  # (values, C)
        total += flat.sum(0)
        squares += float((flat * flat).sum())
        count += len(flat)

    hook = layer.register_forward_hook(note)
    try:
        with torch.no_grad():
            for start in range(0, len(frames), BATCH):
                module(to_tensor(frames[start : start + BATCH]))
    finally:
        hook.remove()
    mean = total / max(1, count)
    middle = float(mean.mean())
    variance = squares / max(1, count * len(mean)) - middle * middle
    return mean.float(), max(variance, 0.0) ** 0.5


def _channels(layer: Weighted) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
