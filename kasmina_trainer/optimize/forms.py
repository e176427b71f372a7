"""A network in one form - torch, TFLite, ONNX, on one engine - as steps whose values can be read and recomputed.

Every form answers three questions with the same words: what flows through it (`Form.values`), what one part of it makes
of given values (`Form.replay`), and what it would compute without rounding of activations (`Form.unrounded`). Arrays
carry the frames first and the form's own tensor shape, batch axis included, behind: (N, 1, ...).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Array = npt.NDArray[Any]

MOVEMENT = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "quantize", "dequantize", "cast", "identity", "dropout", "clone",
     "to"}
)  # fmt: skip
"""Kinds that only move or restate values."""
FOLLOWERS = frozenset({"relu", "relu6", "relu_n1_to_1", "relu_0_to_1", "clip", "batch_norm"})
"""Kinds that other forms fuse into the step before them."""
FIXED_SCALE = frozenset({"softmax", "log_softmax", "logistic", "tanh", "l2_normalization"})
"""Kinds whose int8 output scale the engine prescribes (LiteRT 8-bit quantization specification)."""
JOINING = frozenset({"concatenation", "pack"})


@dataclass(frozen=True)
class Scheme:
    """How a tensor's real values are stored: real = (q - zero) * scale.

    Attributes:
        scale: One, or one a channel.  # (k,)
        zero: Likewise.
        axis: The channels' axis in the tensor.
        low: Smallest stored number.
        high: Largest stored number.
    """

    scale: Array
    zero: Array
    axis: int
    low: int
    high: int

    @property
    def bits(self) -> int:
        """Width of the stored numbers."""
        return int(self.high - self.low).bit_length()

    @property
    def step(self) -> float:
        """The (largest) distance of neighbouring values."""
        return float(self.scale.max())

    @property
    def ends(self) -> tuple[float, float]:
        """Real values between which everything lies; of the first channel."""
        zero, scale = float(self.zero[0]), float(self.scale[0])
        return (self.low - zero) * scale, (self.high - zero) * scale

    def quantized(self, values: Array) -> Array:
        """Stored numbers of real values, rounded to the nearest and saturated; one scale a tensor."""
        stored: Array = np.clip(np.rint(values / self.scale[0]) + self.zero[0], self.low, self.high)
        return stored

    def real(self, stored: Array) -> Array:
        """Real values of stored numbers."""
        shape = [1] * stored.ndim
        if len(self.scale) > 1:
            shape[min(self.axis, stored.ndim - 1)] = len(self.scale)
        zero = self.zero.reshape(shape if len(self.zero) > 1 else [1] * stored.ndim)
        real: Array = ((stored.astype(np.float64) - zero) * self.scale.reshape(shape)).astype(np.float32)
        return real

    def same_as(self, other: Scheme | None) -> bool:
        """Whether both store equal values as equal numbers."""
        return (
            other is not None
            and (self.low, self.high) == (other.low, other.high)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )


@dataclass(frozen=True)
class Weights:
    """A constant that a step multiplies with.

    Attributes:
        key: Its tensor.
        values: Real values.
        scheme: How they are stored; None: in floating point.
        axis: The output channels' axis.
    """

    key: str
    values: Array = field(repr=False)
    scheme: Scheme | None
    axis: int

    def channel_peaks(self) -> Array:
        """Largest magnitude of each output channel.  # (O,)"""
        rest = tuple(i for i in range(self.values.ndim) if i != self.axis)
        peaks: Array = np.abs(self.values).max(axis=rest)
        return peaks


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        index: Its place in the form's order.
        kind: In the words of `kasmina_edge.hardware_simulator.workload.KINDS`.
        label: For people: ``op 3 CONV_2D``.
        layer: The module or node it comes from; "" where the form does not know.
        source: Source line of that layer; "" where unknown.
        inputs: Activations it reads.
        outputs: Activations it writes.
        fused: A function that the step applies last, e.g. ``relu``; "".
    """

    index: int
    kind: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str = ""
    source: str = ""
    fused: str = ""


class Form(ABC):
    """A network that can be looked into.

    Attributes:
        title: For people: path and engine.
        steps: In order of execution.
        inputs: Activations that are fed.
        outputs: Activations that are the answers.
        schemes: Of quantized activations.
        shapes: Of all activations, batch axis included.
    """

    title: str
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    schemes: Mapping[str, Scheme]
    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def values(self, frames: Sequence[Array]) -> dict[str, Array]:
        """Real values of every activation.

        Args:
            frames: One array an input, in its layout without the batch axis.  # (N, ...)
        """

    @abstractmethod
    def replay(self, target: str, given: Mapping[str, Array], constants: Mapping[str, Array] | None = None) -> Array:
        """What the form makes of given values.

        Args:
            target: The activation to compute.
            given: Real values of activations; every path from an input to the target meets one of them.
            constants: Weights to use instead of the form's own, by `Weights.key`; only of an unrounded form.
        """

    @abstractmethod
    def unrounded(self) -> Form:
        """The same graph with the same weights in floating point, no activation rounded; itself where it is float."""

    @abstractmethod
    def weights(self, step: Step) -> tuple[Weights, ...]:
        """The constants that a step multiplies with, its bias excepted."""

    @abstractmethod
    def answers(self, frames: Sequence[Array]) -> list[Array]:
        """Real values of the outputs, as the untouched form gives them; arguments as of `values`."""

    @property
    def quantized(self) -> bool:
        """Whether any activation is stored in whole numbers."""
        return bool(self.schemes)

    def producer(self, key: str) -> Step | None:
        """The step that writes an activation; None for an input."""
        return next((step for step in self.steps if key in step.outputs), None)

    def readers(self, key: str) -> tuple[Step, ...]:
        """The steps that read an activation."""
        return tuple(step for step in self.steps if key in step.inputs)

    def fit(self, frames: Sequence[Array]) -> tuple[Array, ...]:
        """Frames in the layout of the form's inputs: channels are moved first where that is what it takes.

        Raises:
            InputError: They do not fit; the message carries both shapes.
        """
        if len(frames) != len(self.inputs):
            raise InputError(f"{self.title} takes {len(self.inputs)} inputs, the data has {len(frames)}")
        return tuple(_fitted(self.title, x, self.shapes[key][1:]) for x, key in zip(frames, self.inputs, strict=True))


def settled(form: Form, key: str) -> str:
    """The tensor that others read where ``key`` is only restated by quantize or dequantize; else ``key`` itself."""
    readers = form.readers(key)
    while len(readers) == 1 and readers[0].kind in ("quantize", "dequantize"):
        key = readers[0].outputs[0]
        readers = form.readers(key)
    return key


def segment(steps: Iterable[Step], target: str, given: Collection[str]) -> tuple[list[Step], list[str]]:
    """The steps that compute ``target`` from ``given``, in order, and which of the given they read.

    Raises:
        InputError: An input of the network is reached that was not given.
    """
    writers = {key: step for step in steps for key in step.outputs}
    needed: dict[int, Step] = {}
    entries: dict[str, None] = {}
    waiting = [target]
    while waiting:
        key = waiting.pop()
        if key in given and key != target:
            entries[key] = None
            continue
        step = writers.get(key)
        if step is None:
            if key in given:
                entries[key] = None
                continue
            raise InputError(f"tensor {key} is computed by nothing and was not given")
        if step.index not in needed:
            needed[step.index] = step
            waiting.extend(step.inputs)
    return [needed[i] for i in sorted(needed)], list(entries)


def _fitted(title: str, frames: Array, shape: tuple[int, ...]) -> Array:
    if frames.shape[1:] == shape:
        return frames
    if len(shape) in (2, 3) and frames.ndim == len(shape) + 1:
        for moved in (np.moveaxis(frames, -1, 1), np.moveaxis(frames, 1, -1)):
            if moved.shape[1:] == shape:
                return np.ascontiguousarray(moved)
    raise InputError(
        f"{title}: frames have shape {tuple(frames.shape[1:])}, the model takes {shape}",
        "Pass data in the model's shape (the batch is the first axis).",
    )
