"""A second interpreter on the same model file that can be read inside: what flows through each seed site.

Under XNNPACK about half of a network's tensors cannot be read, and reading must never disturb the interpreter that
answers. So a shadow of its own, with every tensor kept, looks at a few sampled frames off the hot path. It runs
LiteRT's plain kernels in one thread: its int8 numbers may differ by a step from those of the engine that answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import ModelFile, ModelTensor
from kasmina_edge.engines.litert import any_interpreter
from kasmina_edge.engines.tflite_graph import Operator, TfliteGraph
from kasmina_edge.errors import BundleError, EngineError, InputError, KasminaError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
_EIGHT_BITS = ("int8", "uint8")
_PLAIN_KERNELS = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"  # what keeping every tensor asks for


@dataclass(frozen=True)
class SiteLook:
    """One frame at one site, in real units.

    Attributes:
        entry: What flows in.
        leave: What flows out.
        added: What the branch adds; None where nothing is grafted.
    """

    entry: Floats
    leave: Floats
    added: Floats | None


@dataclass(frozen=True)
class ShadowLook:
    """One frame: the answers in real units, in the file's order, and every site."""

    answers: list[Floats]
    sites: dict[str, SiteLook]


def why_not(model: ModelFile) -> str:
    """Why this file cannot be looked into on a device; empty when it can."""
    if model.compiled_for is not None:
        return f"compiled for the {model.compiled_for}: its inside cannot be read"
    if model.engine != "litert":
        return f"{model.engine} shows no tensors inside a file"
    if model.stateful:
        return "keeps state: sampled frames would break its sequence"
    if not model.sites:
        return "its manifest names no seed sites"
    try:
        any_interpreter()
    except EngineError as exc:
        return exc.message[:160]
    return ""


class Shadow:
    """A model file that can be read inside; for one thread.

    Args:
        model: The manifest's entry; `why_not` must have found nothing.
        data: The file's bytes; they are not copied.

    Raises:
        EngineError: LiteRT is not installed.
        BundleError: The file does not load, or its sites point nowhere.
    """

    def __init__(self, model: ModelFile, data: bytes) -> None:
        self.model = model
        self._graph = TfliteGraph(data)
        module = any_interpreter()
        try:
            resolver = getattr(module, "OpResolverType", None)
            options = {"experimental_op_resolver_type": getattr(resolver, _PLAIN_KERNELS)} if resolver else {}
            self._interpreter = module.Interpreter(
                model_content=data, num_threads=1, experimental_preserve_all_tensors=True, **options
            )
            for detail, tensor in zip(self._interpreter.get_input_details(), model.inputs, strict=True):
                if tuple(detail["shape"]) != tuple(tensor.shape):
                    self._interpreter.resize_tensor_input(detail["index"], list(tensor.shape), strict=True)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError, TypeError) as exc:
            raise BundleError(f"{model.file.path}: cannot be looked into ({str(exc)[:120]})") from exc
        self._details: dict[int, dict[str, Any]] = {d["index"]: d for d in self._interpreter.get_tensor_details()}
        self._inputs = [int(d["index"]) for d in self._interpreter.get_input_details()]
        self._outputs = [int(d["index"]) for d in self._interpreter.get_output_details()]
        self._branches: dict[str, tuple[Operator, ...]] = {}
        self._added: dict[str, int] = {}
        for site, place in model.sites.items():
            if place.input_index not in self._details or place.output_index not in self._details:
                raise BundleError(
                    f"{model.file.path}: site {site} names tensors {place.input_index} and {place.output_index}, "
                    f"the file has {len(self._details)}"
                )
            branch = self._graph.branch(place.input_index, place.output_index)
            if branch is not None:
                self._branches[site] = branch
                self._added[site] = branch[-1].outputs[0]

    @property
    def grafted(self) -> tuple[str, ...]:
        """Sites where a branch was found in the file."""
        return tuple(self._branches)

    def look(self, inputs: Sequence[Array]) -> ShadowLook:
        """Run one frame and read what flowed.

        Args:
            inputs: Arrays in the model's own numbers, in the order of the manifest's ``app_inputs``.

        Raises:
            InputError: Number, shape or dtype differ from the manifest.
            EngineError: LiteRT failed.
        """
        given = iter(inputs)
        if len(inputs) != len(self.model.app_inputs):
            raise InputError(f"{self.model.file.path}: takes {len(self.model.app_inputs)} inputs, got {len(inputs)}")
        try:
            for index, tensor in zip(self._inputs, self.model.inputs, strict=True):
                array = np.full(tensor.shape, tensor.constant, tensor.dtype) if tensor.constant is not None else None
                self._interpreter.set_tensor(index, _checked(next(given), tensor) if array is None else array)
            self._interpreter.invoke()
            sites = {}
            for site, place in self.model.sites.items():
                entry = self._read(place.input_index)
                leave = entry if place.output_index == place.input_index else self._read(place.output_index)
                added = self._added.get(site)
                sites[site] = SiteLook(entry, leave, None if added is None else self._read(added))
            return ShadowLook([self._read(index) for index in self._outputs], sites)
        except KasminaError:
            raise
        except Exception as exc:  # whatever the library raises
            raise EngineError(f"{self.model.file.path}: the shadow failed ({str(exc)[:120]})") from exc

    def weights(self, site: str) -> list[Floats]:
        """The weights of a site's branch in real units, one array an operator, and its gate, which is a single number;
        biases and shapes are left out.
        """
        found = []
        for operator in self._branches.get(site, ()):
            for tensor in operator.inputs:
                if self._graph.constant(tensor) is None:
                    continue
                detail = self._details[tensor]
                kind = np.dtype(detail["dtype"])
                scaled = kind.name in _EIGHT_BITS and len(detail["quantization_parameters"]["scales"]) > 0
                many = len(detail["shape"]) > 1 or int(np.prod(detail["shape"])) == 1
                if many and (scaled or kind.kind == "f"):
                    found.append(self._read(tensor))
        return found

    def silence(self, sites: Sequence[str]) -> Shadow | None:
        """The same file with these sites' grafts adding nothing; None where they cannot be silenced alone.

        Raises:
            BundleError: The changed file does not load.
        """
        branches = [self._branches[site] for site in sites if site in self._branches]
        if not branches or len(branches) != len(sites):
            return None
        zeros: Mapping[int, int] = {
            index: int(d["quantization_parameters"]["zero_points"][0])
            for index, d in self._details.items()
            if np.dtype(d["dtype"]).name in _EIGHT_BITS and len(d["quantization_parameters"]["zero_points"]) == 1
        }
        data = self._graph.silenced(branches, zeros)
        return None if data is None else Shadow(self.model, data)

    def _read(self, index: int) -> Floats:
        """A tensor in real units (Jacob et al. 2018, arXiv:1712.05877), per channel where it is quantized so."""
        array = self._interpreter.get_tensor(index)
        scheme = self._details[index]["quantization_parameters"]
        scales, zeros = scheme["scales"], scheme["zero_points"]
        if not len(scales):
            return np.asarray(array, np.float32)
        if len(scales) == 1:
            return np.asarray((array.astype(np.float32) - np.float32(zeros[0])) * np.float32(scales[0]), np.float32)
        along = [1] * array.ndim
        along[int(scheme["quantized_dimension"])] = -1
        offsets = np.asarray(zeros, np.float32).reshape(along)
        factors = np.asarray(scales, np.float32).reshape(along)
        return np.asarray((array.astype(np.float32) - offsets) * factors, np.float32)


def _checked(array: Array, tensor: ModelTensor) -> Array:
    if str(array.dtype) != tensor.dtype or array.size != int(np.prod(tensor.shape)):
        raise InputError(
            f"input {tensor.name!r} is {tensor.dtype} {tuple(tensor.shape)}, got {array.dtype} {array.shape}"
        )
    return array.reshape(tensor.shape)
