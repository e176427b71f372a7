"""From a recipe to a file and its answers on inputs that nothing was trained or calibrated on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.errors import InputError
from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.float_tflite import FloatNetwork, convert
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.parity import float_logits, litert_logits
from kasmina_trainer.export.tflite import export_tflite
from kasmina_trainer.optimize.candidates import Candidate
from kasmina_trainer.optimize.recipes import Recipe
from kasmina_trainer.optimize.samples import digest_parts, thinned

Array = npt.NDArray[Any]
Prune = Callable[[nn.Module, float, Array], nn.Module]
"""Takes channels away: the network, the share, calibration frames."""

MOST_CALIBRATION_FRAMES = 400


@dataclass(frozen=True)
class Task:
    """A network and the data it is judged by; three parts that have no row in common.

    Attributes:
        module: In evaluation mode, on the CPU; channels first.
        learn: Frames that calibrate and train.  # (N, H, W, C)
        learn_labels: Their classes, or None.  # (N,)
        held_out: Frames that recipes are chosen by.  # (M, H, W, C)
        labels: Their classes, or None.
        final: Frames that nothing is chosen by.  # (K, H, W, C)
        final_labels: Their classes, or None.
    """

    module: nn.Module
    learn: Array
    learn_labels: Array | None
    held_out: Array
    labels: Array | None
    final: Array
    final_labels: Array | None

    def model_digest(self) -> str:
        """Of the weights and the structure."""
        return module_digest(self.module)

    def data_digest(self) -> str:
        """Of all frames and labels."""
        arrays = (self.learn, self.learn_labels, self.held_out, self.labels, self.final, self.final_labels)
        return sha256_hex(b"|".join(sha256_hex(part).encode() for part in digest_parts(arrays)))

    def small(self, rows: int = 32) -> Task:
        """The same task on a few rows, for a smoke run."""

        def few(x: Array | None) -> Array | None:
            return None if x is None else thinned(x, rows)

        return replace(
            self, learn=thinned(self.learn, rows), learn_labels=few(self.learn_labels),
            held_out=thinned(self.held_out, rows), labels=few(self.labels), final=thinned(self.final, rows),
            final_labels=few(self.final_labels),
        )  # fmt: skip


def module_digest(module: nn.Module) -> str:
    """SHA-256 of a module's printed structure and its state."""
    parts = [str(module).encode()]
    if isinstance(module, fx.GraphModule):
        parts.append(module.code.encode())
    for name, value in sorted(module.state_dict().items()):
        parts.append(name.encode())
        parts += digest_parts([value.detach().cpu().numpy()])
    return sha256_hex(b"|".join(sha256_hex(part).encode() for part in parts))


class Builder:
    """Builds recipes for one task, by the very route of ``export``.

    Args:
        task: Network and data.
        prune: Takes channels away; None: recipes that prune are refused.
        clock: Seconds that only go up.
        like: A builder of the same network, whose conversion is taken over.

    Raises:
        InputError: The network does not answer with one row of classes a frame.
    """

    def __init__(
        self,
        task: Task,
        *,
        prune: Prune | None = None,
        clock: Callable[[], float] = time.monotonic,
        like: Builder | None = None,
    ) -> None:
        self.task = task
        self._like = like
        self._prune = prune
        self._clock = clock
        self._answers = {"held_out": float_logits(task.module, task.held_out),
                         "final": float_logits(task.module, task.final)}  # fmt: skip
        shape = self._answers["held_out"].shape
        if len(shape) != 2 or shape[1] < 2:
            raise InputError(
                f"the network answers {shape[1:]} a frame; recipes are judged by top answers of (classes,)",
                "Export it with `kasmina-trainer export`, which measures every kind of answer.",
            )

    def float_right(self, part: str = "held_out") -> tuple[bool, ...]:
        """Which rows the float network answers rightly; without labels all of them.

        Args:
            part: ``held_out`` or ``final``.
        """
        return _right(self._answers[part], self._answers[part], self._labels(part))

    @cached_property
    def float_network(self) -> FloatNetwork:
        """The network converted, once for all recipes that leave its weights alone."""
        if self._like is not None:
            return self._like.float_network
        return convert(fold_norms(self.task.module), (1, *self.task.learn.shape[1:]))

    def float_file(self) -> bytes:
        """The network as a float TFLite file, names stripped."""
        model = flatbuffer.parse(self.float_network.data)
        flatbuffer.canonical(model)
        return flatbuffer.serialize(model)

    def build(self, recipe: Recipe) -> Candidate:
        """Make a recipe's file and ask it. Equal tasks, recipes and package versions give equal bytes.

        Raises:
            InputError: The recipe does not fit the network, or prunes and no pruner was given.
            KasminaError: The network does not convert, or does not become what the recipe says.
        """
        started = self._clock()
        task, module = self.task, self.task.module
        if recipe.prune is not None:
            if self._prune is None:
                raise InputError(f"recipe {recipe.name}: it prunes, and no pruner is installed")
            module = self._prune(module, recipe.prune, task.learn)
        if recipe.quantize.method == "qat":
            module = copy.deepcopy(module).requires_grad_(True)  # a host's own parameters are frozen
        calibration = thinned(task.learn, MOST_CALIBRATION_FRAMES)
        prepared = quantization.prepare(module, recipe.quantize, calibration, (task.learn, task.learn_labels))
        made = export_tflite(
            module,
            calibration=calibration,
            held_out=task.held_out,
            labels=task.labels,
            float_logits=self._answers["held_out"],
            config=recipe.quantize,
            prepared=prepared,
            network=self.float_network if prepared.module is task.module else None,
        )
        right, final = (
            _right(litert_logits(made.data, frames), self._answers[part], self._labels(part))
            for part, frames in (("held_out", task.held_out), ("final", task.final))
        )
        notes = (f"ranges: {made.chosen.name}",)
        return Candidate(recipe, made.data, right, final, self._clock() - started, notes)

    def _labels(self, part: str) -> Array | None:
        return self.task.labels if part == "held_out" else self.task.final_labels


def _right(answers: Array, reference: Array, labels: Array | None) -> tuple[bool, ...]:
    """Rows whose top answer is the label, or, without labels, the float network's."""
    wanted = reference.argmax(axis=1) if labels is None else np.asarray(labels)
    return tuple(bool(x) for x in answers.argmax(axis=1) == wanted)
