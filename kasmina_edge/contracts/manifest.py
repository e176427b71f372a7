"""The bundle manifest: what a deployable holds, what it was proven to do, and where it came from.

A bundle's identity is the SHA-256 of the manifest's canonical bytes; the manifest names every other file by digest, so
a signature over the manifest covers the whole bundle.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kasmina_edge.contracts.canonical import SignedContract, sha256_hex
from kasmina_edge.contracts.postprocessing import Postprocessing
from kasmina_edge.errors import BundleError

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]{1,32})?$")]
MemberPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
EngineName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]  # "litert", "onnxruntime", or a third party's

MANIFEST_PATH = "manifest.json"
RESERVED_PATHS = (MANIFEST_PATH, "tuf")  # the manifest cannot name itself; tuf/ holds the metadata
MAX_FILE_BYTES = 512 * 1024 * 1024
MINIMUM_AGREEMENT = 0.99  # top-1, of a quantized file with its float network on held-out data


class FileEntry(SignedContract):
    """One file of the bundle, beside the manifest."""

    path: MemberPath
    sha256: Digest
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]

    @classmethod
    def of(cls, path: str, data: bytes) -> Self:
        """The entry that describes ``data``."""
        return cls(path=path, sha256=sha256_hex(data), size_bytes=len(data))

    def check(self, data: bytes, *, where: str = "") -> None:
        """Refuse other bytes.

        Raises:
            BundleError: Length or digest differ; the message carries both.
        """
        where = where or self.path
        if len(data) != self.size_bytes:
            raise BundleError(f"{where}: the manifest says {self.size_bytes} bytes, got {len(data)}")
        found = sha256_hex(data)
        if found != self.sha256:
            raise BundleError(f"{where}: the manifest says sha256 {self.sha256[:12]}, got {found[:12]}")


class ModelTensor(SignedContract):
    """An input or output of a model file.

    ``scale`` and ``zero_point`` only for integer types: real = (q - zero_point) * scale. A tensor with a ``constant``
    is filled with it by the engine and never seen by the app (the sampling rate that some speech models ask for).
    """

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: Literal["float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
    scale: Annotated[float, Field(gt=0)] | None = None
    zero_point: int | None = None
    constant: float | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.scale is None) != (self.zero_point is None):
            raise ValueError("scale and zero_point come together")
        return self


class SelfTest(SignedContract):
    """Known answers of one model file: arrays ``input_<name>`` and ``output_<name>`` in the model's own dtypes.

    ``tolerance`` is the largest accepted difference in quantized steps (integer outputs) or in units (float outputs).
    """

    file: FileEntry
    samples: Annotated[int, Field(ge=1)]
    tolerance: Annotated[float, Field(ge=0)]


class OutputParity(SignedContract):
    """How far one output lies from the float network's on held-out data, in the app's units."""

    name: str
    max_abs_difference: Annotated[float, Field(ge=0)]
    mean_abs_difference: Annotated[float, Field(ge=0)]


class Parity(SignedContract):
    """How well this file reproduces the float network on held-out data.

    Of a detector ``top1_agreement`` is the share of boxes, of both sides together, that the other side gives too (same
    class, intersection over union of at least a half), and the accuracies are mAP@0.5.
    """

    samples: Annotated[int, Field(ge=1)]
    top1_agreement: Annotated[float, Field(ge=0, le=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    float_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    max_abs_difference: Annotated[float, Field(ge=0)]
    outputs: tuple[OutputParity, ...] = ()


class SiteTensors(SignedContract):
    """Where a seed site can be read inside a model file: tensor indices, for a shadow interpreter."""

    input_index: int
    output_index: int


class StatePair(SignedContract):
    """A state that the model hands from call to call: output ``output`` is input ``input`` of the next one.

    It begins with zeros. The engine carries it, the app sees neither.
    """

    input: str
    output: str


class ModelFile(SignedContract):
    """One model file for one engine, with its own self-test.

    ``inputs`` and ``outputs`` are all tensors of the file, in its order; `app_inputs` and `app_outputs` are those that
    the app sees. Self-test vectors hold the latter, and of a model with state they are one sequence from its beginning.

    Attributes:
        parity: None for a third party's model that was wrapped as it is: there is no float network to compare with.
        states: State that the file takes and gives as tensors.
        remembers: The file keeps state in variables of its own (TFLite resource variables).
    """

    file: FileEntry
    engine: EngineName
    inputs: Annotated[tuple[ModelTensor, ...], Field(min_length=1)]
    outputs: Annotated[tuple[ModelTensor, ...], Field(min_length=1)]
    compiled_for: Literal["edgetpu"] | None = None
    selftest: SelfTest
    parity: Parity | None = None
    sites: dict[str, SiteTensors] = {}
    states: tuple[StatePair, ...] = ()
    remembers: bool = False

    @model_validator(mode="after")
    def _states_exist(self) -> Self:
        inputs, outputs = {t.name: t for t in self.inputs}, {t.name: t for t in self.outputs}
        for i, pair in enumerate(self.states):
            taken, given = inputs.get(pair.input), outputs.get(pair.output)
            if taken is None or given is None:
                raise ValueError(
                    f"states[{i}]: {self.file.path} has no such input and output: {pair.input}, {pair.output}"
                )
            if (taken.shape, taken.dtype) != (given.shape, given.dtype):
                raise ValueError(
                    f"states[{i}]: input {taken.name} is {taken.dtype} {taken.shape}, "
                    f"output {given.name} is {given.dtype} {given.shape}"
                )
        return self

    @property
    def stateful(self) -> bool:
        """Whether an answer depends on the calls before it."""
        return self.remembers or bool(self.states)

    @property
    def app_inputs(self) -> tuple[ModelTensor, ...]:
        """Inputs that the app brings, in the manifest's order: neither constant nor state."""
        states = {pair.input for pair in self.states}
        return tuple(t for t in self.inputs if t.constant is None and t.name not in states)

    @property
    def app_outputs(self) -> tuple[ModelTensor, ...]:
        """Outputs that the app gets, in the manifest's order: all but state."""
        states = {pair.output for pair in self.states}
        return tuple(t for t in self.outputs if t.name not in states)


class ModelIO(SignedContract):
    """An input or output as the app sees it: float32, unless the model takes whole numbers that are no quantization.

    Pre-processing and quantization apply to float32 only; the other types go to the model as they are (token ids).
    """

    name: str
    dtype: Literal["float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"] = "float32"
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    labels: tuple[str, ...] = ()


class Preprocessing(SignedContract):
    """What the runtime does to an input before the model: ``(x - mean) / std``.

    Values outside ``valid_range`` are refused.
    """

    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0
    valid_range: tuple[float, float] | None = None


class Graft(SignedContract):
    """A blueprint instance with weights, at a site.

    ``config_digest`` tells its settings where they are not the blueprint's defaults; ``macs`` are multiply-adds of one
    frame, 0 where nobody counted.
    """

    blueprint: Name
    blueprint_version: Annotated[int, Field(ge=1)]
    site: str
    intensity: Annotated[float, Field(ge=0, le=1)]
    parameters: Annotated[int, Field(ge=0)]
    mergeable: bool = False
    capture_batches: tuple[str, ...] = ()
    config_digest: Annotated[str, Field(max_length=64)] = ""
    macs: Annotated[int, Field(ge=0)] = 0


class FeatureStatistics(SignedContract):
    """Mean and standard deviation of one drift feature over single frames."""

    mean: float
    std: Annotated[float, Field(ge=0)]


class DomainStatistics(SignedContract):
    """Reference statistics of one domain the bundle was accepted on (see safety/drift.py).

    ``threshold`` is the drift score that windows of ``window`` frames of this domain exceed once in a thousand.
    """

    name: Name
    samples: Annotated[int, Field(ge=2)]
    window: Annotated[int, Field(ge=1)]
    threshold: Annotated[float, Field(gt=0)]
    features: dict[str, FeatureStatistics]


class ReferenceProbes(SignedContract):
    """Labelled inputs for the health gate: arrays ``inputs`` (N, ...) float32 and ``labels`` (N,) int64."""

    file: FileEntry
    samples: Annotated[int, Field(ge=1)]


class InputGuard(SignedContract):
    """How a device tells frames that look wrong: an `InputCheck` file, and the output with the statistics it reads."""

    output: str
    file: FileEntry


class Acceptance(SignedContract):
    """The paired measurement that let a graft through, in shares of 1; ``gain_low`` is the lower 95 % bound.

    ``worst_class_loss_high``: upper bound of clean accuracy lost by the class that loses most; None: not measured.
    """

    samples: Annotated[int, Field(ge=1)]
    clean_before: Annotated[float, Field(ge=0, le=1)]
    clean_after: Annotated[float, Field(ge=0, le=1)]
    target_before: Annotated[float, Field(ge=0, le=1)]
    target_after: Annotated[float, Field(ge=0, le=1)]
    gain_low: float
    gain_high: float
    clean_loss_high: float
    accepted: bool
    reasons: tuple[str, ...] = ()
    worst_class_loss_high: float | None = None


class BundleManifest(SignedContract):
    """One signed deployable.

    Attributes:
        release: Counts up with every publication of this name; the device's floor counts it.
        parent: Content digest of the bundle this one was grown from; None for a host.
        host: Content digest of the frozen host below all grafts; None when this bundle is the host.
        models: One file an engine; a device keeps only its own.
        head: What the outputs are: logits of classes, a detector's offsets and scores, or the app's own business.
        postprocessing: How a detector's outputs become boxes; of head ``detection``, and of no other.
        guard: What tells frames unlike those the network is for; its file goes to every device.
        documents: Papers for people (bill of materials, model card): covered by the manifest, needed by no device.
    """

    format: Literal[1] = 1
    name: Name
    version: Version
    release: Annotated[int, Field(ge=0, le=2**53)]
    parent: Digest | None = None
    host: Digest | None = None
    profile: Name
    inputs: Annotated[tuple[ModelIO, ...], Field(min_length=1)]
    outputs: Annotated[tuple[ModelIO, ...], Field(min_length=1)]
    head: Literal["classification", "detection", "other"] = "other"
    preprocessing: Preprocessing = Preprocessing()
    postprocessing: Postprocessing | None = None
    models: Annotated[tuple[ModelFile, ...], Field(min_length=1)]
    grafts: tuple[Graft, ...] = ()
    domains: tuple[DomainStatistics, ...] = ()
    probes: ReferenceProbes | None = None
    acceptance: Acceptance | None = None
    provenance: dict[str, str] = {}
    documents: tuple[FileEntry, ...] = ()
    guard: InputGuard | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths: dict[str, str] = {}
        for entry in self.files():
            if entry.path in RESERVED_PATHS:
                raise ValueError(f"no file may be called {entry.path}")
            if paths.setdefault(entry.path, entry.sha256) != entry.sha256:
                raise ValueError(f"two files are called {entry.path}")
        if self.grafts and self.host is None:
            raise ValueError("a bundle with grafts names its host")
        for model in self.models:
            if len(model.app_inputs) != len(self.inputs) or len(model.app_outputs) != len(self.outputs):
                raise ValueError(f"{model.file.path} does not have the manifest's inputs and outputs")
        if (self.head == "detection") != (self.postprocessing is not None):
            raise ValueError(f"head {self.head}: detection, and nothing else, comes with postprocessing")
        if self.head == "detection" and self.probes is not None:
            raise ValueError("reference probes are asked for their class, and a detection has none")
        if self.postprocessing is not None:
            self.postprocessing.require_outputs((o.name, o.dtype, math.prod(o.shape)) for o in self.outputs)
        if self.guard is not None:
            classes = self.outputs[0].name if self.head == "classification" else None
            free = [o.name for o in self.outputs if o.dtype == "float32" and o.name != classes]
            if self.guard.output not in free:
                raise ValueError(
                    f"guard reads output {self.guard.output}; of statistics are: {', '.join(free) or 'none'}"
                )
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; empty where the bundle names none."""
        return self.postprocessing.labels if self.postprocessing is not None else self.outputs[0].labels

    @property
    def id(self) -> str:
        """``NAME VERSION`` as people say it."""
        return f"{self.name} {self.version}"

    def files(self) -> tuple[FileEntry, ...]:
        """Every file but the manifest, in order of use."""
        entries = [e for m in self.models for e in (m.file, m.selftest.file)]
        return (*entries, *self.shared_files(), *self.documents)

    def files_for(self, model: ModelFile) -> tuple[FileEntry, ...]:
        """The files a device needs that runs ``model``."""
        return (model.file, model.selftest.file, *self.shared_files())

    def shared_files(self) -> tuple[FileEntry, ...]:
        """The files that every device needs, whatever its engine: probes and guard."""
        return tuple(part.file for part in (self.probes, self.guard) if part is not None)

    def content_digest(self) -> str:
        """Identity without the release number: the same bytes published again keep it."""
        return self.model_copy(update={"release": 0}).digest()

    def version_key(self) -> tuple[int, int, int, int, str]:
        """Sort key of the semantic version (semver.org section 11, pre-release text compared as one string)."""
        match = re.match(r"^(\d+)\.(\d+)\.(\d+)(?:-(.+))?$", self.version)
        assert match is not None
        major, minor, patch, pre = match.groups()
        return int(major), int(minor), int(patch), 0 if pre else 1, pre or ""
