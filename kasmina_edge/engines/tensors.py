"""Between the app's numbers and the model's: checking a frame, quantizing, de-quantizing, and the top score.

Quantization is the affine scheme of TFLite and ONNX: ``real = (q - zero_point) * scale`` (Jacob et al. 2018,
arXiv:1712.05877), after the manifest's pre-processing ``(x - mean) / std``. Everything that turns a frame into model
numbers, on a device or in an export, goes through this file, so that both sides round alike.
"""

from __future__ import annotations

import math
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelIO, ModelTensor, Preprocessing
from kasmina_edge.errors import InputError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_SMALL = 64
_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)
_multiply, _add, _rint = np.multiply, np.add, np.rint
_ASK = "Pass a float32 array of the manifest's shape, with or without the leading 1."


def same_layout(model_shape: tuple[int, ...], app_shape: tuple[int, ...]) -> bool:
    """Whether the two shapes differ by axes of length 1 only, so that reshaping moves no value.

    >>> same_layout((1, 1, 16, 16), (1, 16, 16, 1)), same_layout((1, 3, 8, 8), (1, 8, 8, 3))
    (True, False)
    """
    return [n for n in model_shape if n != 1] == [n for n in app_shape if n != 1]


class InputConverter:
    """Checks frames of one input and writes them in the model's own numbers.

    Frames are float32 in the app's units, or arrays of the model's own integer type, which go in as they are: no
    pre-processing, no quantization, and no range but that of the type. The result lies in a buffer that the next call
    overwrites: one converter belongs to one engine and its lock.

    Args:
        tensor: The model's input.
        pre: The manifest's pre-processing.
        io: The input as the app sees it; without it, the tensor's own name and shape.
        target: Memory of the engine, of the tensor's shape and dtype, to write into; by default a buffer of its own.

    Attributes:
        target: Where `load` and `convert` write; a frame of its shape and of dtype ``whole`` may go there as it is.
        whole: The model's own type, where every value of it is a good one; else None.
    """

    def __init__(
        self, tensor: ModelTensor, pre: Preprocessing, io: ModelIO | None = None, target: Array | None = None
    ) -> None:
        self.name = io.name if io else tensor.name
        self.shape = tuple(io.shape if io else tensor.shape)
        self._model_shape = tuple(tensor.shape)
        short = self.shape[1:] if self.shape[:1] == (1,) else self.shape
        self._shapes = (self.shape, short, self._model_shape)
        self._own = np.dtype(tensor.dtype)
        self._takes_floats = io is None or io.dtype == "float32"
        self._takes_own = not self._takes_floats or self._own.kind in "iu"
        self._takes_wholes = self._takes_own and self._own.kind != "f"  # of these every value is a good one
        self.whole = self._own if self._takes_wholes else None
        scale = (tensor.scale or 1.0) * pre.std
        self._factor = np.array(1.0 / scale, np.float32)  # arrays: a ufunc converts a scalar anew at every call
        self._offset = np.array((tensor.zero_point or 0) - pre.mean / scale, np.float32)
        self._unit, self._zero = scale, (tensor.zero_point or 0) - pre.mean / scale
        self._plain = scale == 1.0 and self._offset == 0.0
        low, high = pre.valid_range or (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
        self._low, self._high = float(np.float32(low)), float(np.float32(high))
        self._rounds = self._own.kind in "iu"
        self._least: Floats | None = None
        self._most: Floats | None = None
        self._fits_from, self._fits_to = -math.inf, math.inf  # what lies between cannot saturate
        if self._rounds:
            self._find_limits()
        self.target = self._quantized = np.empty(self._model_shape, self._own) if target is None else target
        floats = self._own == _FLOAT32
        self._work = self._quantized if floats else np.empty(self._model_shape, np.float32)
        self._casts = not floats

    def check(self, x: object) -> Array:
        """The frame as an array of the model's shape: float32, or the model's own integer type (a view where nothing
        had to change).

        Raises:
            InputError: Not an array of real floating-point numbers or of the model's own type, another shape, NaN or
                infinity, or outside the manifest's valid range; the message carries what was expected and what came.
        """
        array = self._array(x)
        shape = array.shape
        if shape not in self._shapes:
            raise InputError(f"input {self.name!r}: expected shape {self.shape}, got {shape}", _ASK)
        if array.dtype.kind == "f":
            low, high = array.item(array.argmin()), array.item(array.argmax())  # a NaN is both
            if not (low >= self._low and high <= self._high):
                self._refuse(low, high)
        return array if shape == self._model_shape else array.reshape(self._model_shape)

    def check_rows(self, xs: Array) -> list[Array] | None:
        """`check` of every frame of an array of float32 frames at once; None where one by one is called for."""
        if xs.dtype != _FLOAT32 or not self._takes_floats or not xs.size or xs.shape[1:] not in self._shapes:
            return None
        low, high = xs.item(xs.argmin()), xs.item(xs.argmax())
        if not (low >= self._low and high <= self._high):
            return None
        return [row.reshape(self._model_shape) for row in xs]

    def is_one_frame(self, shape: tuple[int, ...]) -> bool:
        """Whether this is the shape of a frame, and not that of an array of frames."""
        return shape in self._shapes and shape[1:] not in self._shapes

    def convert(self, x: Array) -> Array:
        """A frame that `check` returned, in the model's dtype and shape."""
        if x.dtype is self._own and (self._rounds or not self._takes_floats):
            return x
        return self._scale(x, -math.inf, math.inf)

    def load(self, x: Array) -> Array:
        """`check` and `convert` in one, for the hot path: the frame in the model's numbers, in ``target``.

        Args:
            x: An array; anything else goes through `check` first.

        Raises:
            InputError: As `check`; ``target`` is unchanged then.
        """
        kind = x.dtype
        if kind is _FLOAT32 and self._takes_floats:
            shape = x.shape
            if shape != self._model_shape:
                if shape not in self._shapes:
                    raise InputError(f"input {self.name!r}: expected shape {self.shape}, got {shape}", _ASK)
                x = x.reshape(self._model_shape)
            low, high = x.item(x.argmin()), x.item(x.argmax())  # a NaN is both
            if not (low >= self._low and high <= self._high):
                self._refuse(low, high)
            return self._scale(x, low, high)
        if kind is self._own and self._takes_wholes:
            shape = x.shape
            if shape != self._model_shape:
                if shape not in self._shapes:
                    raise InputError(f"input {self.name!r}: expected shape {self.shape}, got {shape}", _ASK)
                x = x.reshape(self._model_shape)
            self._quantized[...] = x
            return self._quantized
        return self.store(self.check(x))

    def store(self, x: Array) -> Array:
        """A frame that `check` returned, written into ``target``."""
        if x.dtype is self._own and (self._rounds or not self._takes_floats):
            self._quantized[...] = x
            return self._quantized
        return self._scale(x, -math.inf, math.inf)

    def store_row(self, row: int, x: Array) -> None:
        """As `store`, for one frame of a ``target`` that holds many along its first axis; the others are lost."""
        if x.dtype is self._own and (self._rounds or not self._takes_floats):
            self._quantized[row : row + 1] = x
        else:
            kept = self._quantized.copy()
            kept[row : row + 1] = self._scale(x, -math.inf, math.inf)[row : row + 1]
            self._quantized[...] = kept

    def restore(self, x: Array) -> Floats:
        """A frame that `check` returned, in the app's units: the way back for the model's own integers."""
        if x.dtype == _FLOAT32:
            return x
        return ((x.astype(np.float64) - self._zero) * self._unit).astype(np.float32)

    def _scale(self, x: Array, low: float, high: float) -> Array:
        """Pre-processing and quantization of values from ``low`` to ``high``, into the target."""
        work = self._work
        if self._plain:
            work[...] = x
        else:
            _multiply(x, self._factor, work)
            _add(work, self._offset, work)
        if not self._casts:
            return work
        if self._rounds:
            _rint(work, work)
            if low < self._fits_from and self._least is not None:
                np.maximum(work, self._least, out=work)
            if high > self._fits_to and self._most is not None:
                np.minimum(work, self._most, out=work)
        self._quantized[...] = work
        return self._quantized

    def _find_limits(self) -> None:
        """Where values saturate: nowhere when the ends of the valid range land inside the integers."""
        info = np.iinfo(self._own)
        if not self._of(self._low) >= info.min:
            self._least = _float_inside(int(info.min), up=True)
            fits = (int(info.min) - self._zero) * self._unit
            self._fits_from = fits if self._of(fits) >= info.min else math.inf
        if not self._of(self._high) <= info.max:
            self._most = _float_inside(int(info.max), up=False)
            fits = (int(info.max) - self._zero) * self._unit
            self._fits_to = fits if self._of(fits) <= info.max else -math.inf

    def _of(self, value: float) -> float:
        """Where a value lands among the integers, before it is clipped; rising with the value."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.rint(np.float32(value) * self._factor + self._offset))

    def _array(self, x: object) -> Array:
        try:
            array = np.asarray(x)
        except MemoryError:
            raise
        except Exception as exc:  # whatever the object's own conversion raises
            raise InputError(f"input {self.name!r}: not an array ({exc})", _ASK) from exc
        if self._takes_own and array.dtype == self._own:
            return array if array.dtype is self._own else array.astype(self._own)
        if self._takes_floats and array.dtype.kind == "f" and array.dtype.itemsize <= 8:
            with np.errstate(over="ignore"):
                return np.asarray(array, dtype=np.float32)
        wanted = " or ".join(["float32"] * self._takes_floats + [str(self._own)] * self._takes_own)
        raise InputError(
            f"input {self.name!r}: expected {wanted}, got {array.dtype}",
            "Convert the frame first, in the units the bundle was trained on, e.g. frame.astype('float32') / 255.",
        )

    def _refuse(self, low: float, high: float) -> None:
        if math.isnan(low) or math.isnan(high):
            raise InputError(f"input {self.name!r}: holds NaN")
        raise InputError(
            f"input {self.name!r}: expected values from {self._low:g} to {self._high:g}, got {low:g} to {high:g}"
        )


def _float_inside(limit: int, *, up: bool) -> Floats:
    """The float32 nearest to an integer limit that does not lie beyond it (2**31 - 1 has no float32 of its own)."""
    value = np.float32(limit)
    if (int(value) < limit) if up else (int(value) > limit):
        value = np.nextafter(value, np.float32(0.0))
    return np.array(value, np.float32)


class OutputConverter:
    """Writes one model output as float32, or as the type the manifest gives it, in the shape the app sees.

    Args:
        tensor: The model's output.
        io: The output as the app sees it; without it, the tensor's own name and shape.
        copies: Copy what is float32 already; without it the answer's own array is handed on.
    """

    def __init__(self, tensor: ModelTensor, io: ModelIO | None = None, *, copies: bool = True) -> None:
        self.name = io.name if io else tensor.name
        self._dtype = np.dtype(io.dtype) if io else _FLOAT32
        self._shape = tuple(io.shape if io else tensor.shape)
        self._scale, self._zero = tensor.scale, tensor.zero_point or 0
        self._table: Floats | None = None
        self._decay: list[float] = []
        self._is_row = len(tensor.shape) == 2 and tensor.shape[0] == 1
        self._copies = copies
        if self._scale is not None and tensor.dtype in ("int8", "uint8"):
            values = np.arange(256, dtype=np.uint8).view(tensor.dtype).astype(np.float64)
            self._table = ((values - self._zero) * self._scale).astype(np.float32)
            self._decay = np.exp(np.arange(256) * -self._scale).tolist()
        same = self._dtype is _FLOAT32 and self._shape == tuple(tensor.shape)
        self._quick = self._table if same else None  # nothing but the table stands between model and app

    def convert(self, q: Array) -> Floats:
        """Real numbers, in an array that belongs to the caller."""
        if self._quick is not None:
            return self._quick.take(q.view(_UINT8))
        if self._table is not None and self._dtype is _FLOAT32:
            real: Array = self._table.take(q.view(_UINT8))
        elif self._dtype != _FLOAT32:
            real = q.astype(self._dtype, copy=self._copies)
        elif self._scale is not None:
            real = ((q.astype(np.float64) - self._zero) * self._scale).astype(np.float32)
        else:
            real = q.astype(np.float32, copy=self._copies)
        return real if real.shape == self._shape else real.reshape(self._shape)

    def top(self, q: Array) -> tuple[int, float]:
        """`softmax_score` of what the model said; for few 8-bit logits by table, which takes half the time."""
        if not self._decay or q.size > _SMALL:
            return softmax_score(self.convert(q))
        values: list[int] = q.tolist()[0] if self._is_row else q.ravel().tolist()
        top, decay = max(values), self._decay
        return values.index(top), 1.0 / sum([decay[top - value] for value in values])


def to_model(x: object, tensor: ModelTensor, pre: Preprocessing) -> Array:
    """One frame in the model's dtype and shape; the rounding of `InputConverter`, without its reuse.

    Args:
        x: float32 or float64, of the tensor's shape up to axes of length 1.
        tensor: The model's input.
        pre: The manifest's pre-processing; values outside its valid range are refused.

    Raises:
        InputError: As `InputConverter.check`.

    >>> tensor = ModelTensor(name="x", shape=(1, 2), dtype="int8", scale=0.5, zero_point=3)
    >>> to_model(np.array([1.0, -1.0]), tensor, Preprocessing()).tolist()
    [[5, 1]]
    """
    converter = InputConverter(tensor, pre)
    array = np.asarray(x) if isinstance(x, np.ndarray | list | tuple) else x
    if isinstance(array, np.ndarray) and array.shape != converter.shape and same_layout(array.shape, converter.shape):
        array = array.reshape(converter.shape)
    return converter.convert(converter.check(array))


def from_model(q: Array, tensor: ModelTensor) -> Floats:
    """A model output as float32: ``(q - zero_point) * scale`` for integers, the values themselves for floats.

    >>> tensor = ModelTensor(name="y", shape=(2,), dtype="uint8", scale=0.25, zero_point=4)
    >>> from_model(np.array([4, 8], np.uint8), tensor).tolist()
    [0.0, 1.0]
    """
    return OutputConverter(tensor).convert(q)


def softmax_score(logits: Array) -> tuple[int, float]:
    """The class with the largest logit (the first of equals) and its share under softmax; NaN if a logit is NaN.

    >>> softmax_score(np.array([0.0, 0.0], np.float32))
    (0, 0.5)
    """
    if logits.size > _SMALL:
        flat = logits.ravel()
        index = int(flat.argmax())
        return index, float(1.0 / np.exp(flat - flat[index], dtype=np.float64).sum())
    values: list[float] = logits.ravel().tolist()
    top = max(values)
    total = sum([exp(value - top) for value in values])
    return values.index(top), 1.0 / total
