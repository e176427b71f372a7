"""What flows through a float TFLite file, tensor by tensor, on LiteRT's own kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.ranges import Array


def watch(float_model: bytes, frames: Array, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Run a float TFLite model and give the named tensors of every frame.

    Args:
        float_model: A file whose tensor names are unique.
        frames: Model inputs.  # (N, ...)
        names: Tensors to read.

    Raises:
        InputError: A name is not in the file, or the frames do not fit the model's input.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*")
        interpreter = Interpreter(
            model_content=float_model,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
            num_threads=1,
        )
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    places = {d["name"]: d["index"] for d in interpreter.get_tensor_details()}
    missing = sorted(set(names) - set(places))
    if missing:
        raise InputError(f"the model has no tensor called {', '.join(missing)}")
    expected = tuple(int(n) for n in entry["shape"])
    if frames.shape[1:] != expected[1:] or not len(frames):
        raise InputError(f"frames: expected (N, {', '.join(map(str, expected[1:]))}) with N > 0, got {frames.shape}")
    for frame in frames:
        interpreter.set_tensor(entry["index"], frame[None].astype(np.float32, copy=False))
        interpreter.invoke()
        yield {name: interpreter.get_tensor(places[name]) for name in names}
