"""Which form a text names: ``host.checkpoint``, ``net.pt2``, ``litert-reference:digits.kasmina``, ..."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - for the doctest
import numpy.typing as npt

from kasmina_edge.bundle import Bundle, read_file
from kasmina_edge.errors import InputError
from kasmina_trainer.optimize.forms import Form
from kasmina_trainer.optimize.onnx_form import OnnxForm
from kasmina_trainer.optimize.samples import Frames, bundle_frames, read_frames
from kasmina_trainer.optimize.tflite_form import ENGINES, TfliteForm

Array = npt.NDArray[Any]

ONNX_ENGINE = "onnxruntime"
SUFFIXES = (".tflite", ".onnx", ".kasmina", ".pt2", ".checkpoint")


@dataclass(frozen=True)
class Named:
    """What a text names.

    Attributes:
        path: The file.
        engine: To run it on; "" where the text leaves it open.
    """

    path: Path
    engine: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.path.name} on {self.engine}" if self.engine else self.path.name


def parse_named(text: str) -> Named:
    """``[ENGINE:]PATH``.

    Raises:
        InputError: No such file, or of a kind that cannot be looked into.

    >>> parse_named("litert-reference:setup.tflite")
    Traceback (most recent call last):
    kasmina_edge.errors.InputError: setup.tflite: no such file
    """
    engine, colon, rest = text.partition(":")
    named = Named(Path(rest), engine) if colon and engine in (*ENGINES, ONNX_ENGINE) else Named(Path(text))
    if not named.path.is_file():
        raise InputError(f"{named.path}: no such file")
    if named.path.suffix not in SUFFIXES:
        raise InputError(
            f"{named.path}: expected one of {', '.join(SUFFIXES)}, got {named.path.suffix or 'no suffix'}",
            "Save a torch module with torch.export.save(torch.export.export(module, (example,)), 'net.pt2').",
        )
    return named


def frames_for(named: tuple[Named, ...], data: Path | None) -> Frames:
    """The file's frames, or those that the first bundle carries.

    Raises:
        InputError: Neither is there.
    """
    if data is not None:
        return read_frames(data)
    for one in named:
        if one.path.suffix == ".kasmina":
            return bundle_frames(read_file(one.path), str(one.path))
    raise InputError(
        "no data to run them on: --data was not given, and neither is a bundle with reference probes",
        "Pass --data FILE.npz with the frames as x and, where known, the labels as y.",
    )


def open_form(named: Named, frames: Frames) -> Form:
    """The form, ready to be asked.

    Args:
        named: From `parse_named`.
        frames: What it will be asked; a module without a fixed shape takes it from them.

    Raises:
        InputError: The file cannot be read as what its suffix says, or the engine does not run such files.
        EngineError: The engine refuses the file.
        BundleError: The bundle is damaged.
    """
    suffix = named.path.suffix
    if suffix == ".kasmina":
        return _of_bundle(named, read_file(named.path))
    if suffix == ".tflite":
        return _of_bytes(named, named.path.read_bytes(), "litert")
    if suffix == ".onnx":
        from kasmina_trainer.export.source.side_files import whole_model

        return _of_bytes(named, whole_model(named.path), ONNX_ENGINE)
    if named.engine:
        raise InputError(f"{named.path}: a torch file runs on torch, not on {named.engine}", "Leave the engine out.")
    return _of_torch(named, frames)


def _of_bundle(named: Named, bundle: Bundle) -> Form:
    kind = ONNX_ENGINE if named.engine == ONNX_ENGINE else "litert"
    for model in bundle.manifest.models:
        if model.engine == kind and model.compiled_for is None:
            return _of_bytes(named, bundle.read(model.file), kind)
    have = ", ".join(bundle.engines())
    raise InputError(f"{named.path}: no plain file for {kind}, it holds {have}", f"Name one: {kind}:{named.path}.")


def _of_bytes(named: Named, data: bytes, kind: str) -> Form:
    if kind == ONNX_ENGINE:
        if named.engine not in ("", ONNX_ENGINE):
            raise InputError(f"{named.path}: an ONNX file runs on {ONNX_ENGINE}, not on {named.engine}")
        return OnnxForm(data, named.title)
    if named.engine == ONNX_ENGINE:
        raise InputError(f"{named.path}: a TFLite file runs on {', '.join(ENGINES)}, not on {ONNX_ENGINE}")
    return TfliteForm(data, named.title, engine=named.engine or "litert")


def _of_torch(named: Named, frames: Frames) -> Form:
    from kasmina_trainer.optimize.torch_form import TorchForm

    if named.path.suffix == ".checkpoint":
        from kasmina_trainer.checkpoints import load_checkpoint

        module = load_checkpoint(named.path).network.module_for_export()
        return TorchForm(module, named.title, [channels_first(x) for x in frames.inputs])
    from kasmina_trainer.export.source import load_source

    source = load_source(named.path)
    return TorchForm(source.module, named.title, [source.input_shape])


def channels_first(frames: Array) -> tuple[int, ...]:
    """Shape of one image of (N, H, W, C) as torch takes it, with a batch of one; other shapes as they are.

    >>> channels_first(np.zeros((5, 16, 16, 3)))
    (1, 3, 16, 16)
    """
    shape = frames.shape[1:]
    return (1, shape[2], *shape[:2]) if len(shape) == 3 else (1, *shape)
