"""Which layers rounding hurts: one layer at a time, measured.

Every other layer stays at 8 bits, so that a figure is that layer's own. Accuracy on some hundred held-out inputs is too
coarse to order layers (one input of 500 is 0.2 points), so the order is by output distance, and accuracy stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from kasmina_trainer.quantization.folding import only_int8, weighted_layers
from kasmina_trainer.quantization.ranges import Array, Ranges
from kasmina_trainer.quantization.simulation import Simulation, answers


@dataclass(frozen=True)
class Effect:
    """What one layer at one width does to the network's answers.

    Attributes:
        layer: Module name.
        bits: Width of its weights; the others have 8.
        weights: How many weights it has.
        distance: Mean square of the change of the answers against the float network, in units of their variance, above
            what the network with this layer at 8 bits has; may be slightly negative.
        accuracy_loss: Share of held-out inputs lost against the float network; None without labels.
    """

    layer: str
    bits: int
    weights: int
    distance: float
    accuracy_loss: float | None

    @property
    def saved_bytes(self) -> int:
        """Bytes of weights less than at 8 bits; negative above 8."""
        return self.weights - (self.weights * self.bits + 7) // 8


@dataclass(frozen=True)
class Sensitivities:
    """What was measured over all layers.

    Attributes:
        effects: Each layer at each width that was asked for.
        distance: Of the network with 8 bits everywhere, from the float network.
        accuracy: Of that network; None without labels.
        float_accuracy: Of the float network; None without labels.
    """

    effects: tuple[Effect, ...]
    distance: float
    accuracy: float | None
    float_accuracy: float | None

    def worst(self, bits: int = 4) -> tuple[Effect, ...]:
        """The layers that hurt most at a width, worst first."""
        return tuple(sorted((e for e in self.effects if e.bits == bits), key=lambda e: (-e.distance, e.layer)))


def measure_sensitivity(
    graph: fx.GraphModule,
    ranges: Ranges,
    held_out: Array,
    labels: Array | None = None,
    *,
    bits: Sequence[int] = (4,),
) -> Sensitivities:
    """Round one layer at a time to other widths and measure what that does.

    Args:
        graph: As `folded_graph` gives it.
        ranges: Range of each rounding point.
        held_out: Frames that nothing was trained or calibrated on.  # (N, ..., C)
        labels: Their classes, or None.  # (N,)
        bits: Widths to try; 32 tells what a layer costs at 8. Layers that LiteRT has at 8 alone are not tried at 4.
    """
    float_answers = answers(graph, held_out)
    rounded = Simulation(graph, {}, ranges)
    base, base_accuracy = judge(rounded.answers(held_out), float_answers, labels)
    _, float_accuracy = judge(float_answers, float_answers, labels)
    effects = []
    for name, layer in weighted_layers(graph).items():
        for width in bits:
            if width < 8 and only_int8(layer):
                continue
            rounded.weights[name].bits = width
            distance, accuracy = judge(rounded.answers(held_out), float_answers, labels)
            lost = None if accuracy is None or float_accuracy is None else float_accuracy - accuracy
            effects.append(Effect(name, width, layer.weight.numel(), distance - base, lost))
        rounded.weights[name].bits = 8
    return Sensitivities(tuple(effects), base, base_accuracy, float_accuracy)


def measure_bits(
    graph: fx.GraphModule, ranges: Ranges, bits: Mapping[str, int], held_out: Array, labels: Array | None = None
) -> tuple[float, float | None]:
    """Distance and accuracy of the network with these widths; as `Effect`, but against the float network itself."""
    rounded = Simulation(graph, bits, ranges)
    return judge(rounded.answers(held_out), answers(graph, held_out), labels)


def judge(found: tuple[Array, ...], wanted: tuple[Array, ...], labels: Array | None) -> tuple[float, float | None]:
    """Mean square difference over all outputs in units of each one's variance, and the share of right top answers."""
    parts = [float(((a - b) ** 2).mean() / max(float(b.var()), 1e-12)) for a, b in zip(found, wanted, strict=True)]
    accuracy = None if labels is None else float((found[0].argmax(1) == labels).mean())
    return float(np.mean(parts)), accuracy
