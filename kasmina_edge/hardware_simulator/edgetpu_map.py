"""The mapping report without the compiler: which operations an Edge TPU takes, where the graph splits, what streams.

The compiler's rule (coral.ai/docs/edgetpu/models-intro/#compiling): one part of the graph becomes one custom operation;
from the first operation that does not map, everything that depends on it stays on the CPU ("More than one subgraph is
not supported"). With ``-a`` it makes several parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, groupby
from typing import Literal

from kasmina_edge.engines.edgetpu import EDGETPU_OP
from kasmina_edge.hardware_simulator.edgetpu_ops import INTEGERS, caution, obstacle, refusal
from kasmina_edge.hardware_simulator.reading import read_workload
from kasmina_edge.hardware_simulator.workload import Once, OpWork, Workload

PARAMETER_SRAM_BYTES = 8_100_000
"""For parameters and activations: of one dense layer of 256 x 256 compiler 16.0 reports 66.00 KiB used and 7.67 MiB
remaining."""
RESERVED_PER_ACTIVATION_BYTE = 1.2
"""Activations share the SRAM with parameters: 7.04 MiB were left to a FaceNet at 160 x 160 pixels, 1.73 MiB to a filter
at 1920 x 1058 (logs of compilers 15.0 and 2.0)."""
SPLIT = "more than one subgraph is not supported: it depends on an operation that stays on the CPU"


@dataclass(frozen=True)
class MappedOp:
    """One operation and its place.

    Attributes:
        op: The operation.
        maps: Whether the Edge TPU runs it.
        why: Why not; for one that maps, what is uncertain about it, or "".
    """

    op: OpWork
    maps: bool
    why: str


@dataclass(frozen=True)
class Segment:
    """Operations that run one after another on one part.

    Attributes:
        where: ``edgetpu`` or ``cpu``.
        first: Index of its first operation.
        last: Index of its last.
    """

    where: Literal["edgetpu", "cpu"]
    first: int
    last: int


@dataclass(frozen=True)
class EdgeTpuMap:
    """What compiler 16.0 would do with a network.

    Attributes:
        network: The operations, in order of execution.
        reasons: Of each, why it does not map, or "".
        on_tpu: Of each, whether the Edge TPU runs it; none where the compiler refuses the file.
        peak_bytes: Of the activations, while an operation runs on the Edge TPU.
        on_chip_bytes: Parameters that stay in the SRAM between inferences.
        streamed_bytes: Parameters that come over the link at every inference.
        refused: Why the compiler would refuse the whole file.
        compiled: The file was compiled already.
        parts: Custom operations that the compiler would make, each a call of its own.
    """

    network: tuple[OpWork, ...]
    reasons: tuple[str, ...]
    on_tpu: tuple[bool, ...]
    peak_bytes: int
    on_chip_bytes: int
    streamed_bytes: int
    refused: tuple[str, ...] = ()
    compiled: bool = False
    parts: int = 1

    @Once
    def ops(self) -> tuple[MappedOp, ...]:
        """One entry an operation, in order of execution."""
        pairs = zip(self.network, self.reasons, strict=True)
        return tuple(MappedOp(op, not why, why or caution(op)) for op, why in pairs)

    @Once
    def segments(self) -> tuple[Segment, ...]:
        """The operations in runs of one place."""
        found: list[Segment] = []
        for here, run in groupby(self.on_tpu):
            first = found[-1].last + 1 if found else 0
            found.append(Segment("edgetpu" if here else "cpu", first, first + len(list(run)) - 1))
        return tuple(found)

    @property
    def maps_whole(self) -> bool:
        """Every operation maps and nothing makes the compiler refuse the file."""
        return all(self.on_tpu) and not self.refused

    @property
    def mapped(self) -> int:
        """How many operations map; 0 where the compiler refuses the file."""
        return sum(self.on_tpu)

    @property
    def roots(self) -> tuple[MappedOp, ...]:
        """What stays on the CPU for what it is, in order of execution; others are there because they depend on it."""
        return tuple(entry for entry in self.ops if not entry.maps and entry.why != SPLIT)

    @property
    def followers(self) -> int:
        """How many operations stay on the CPU only because they depend on one that does."""
        return sum(not entry.maps and entry.why == SPLIT for entry in self.ops)

    def line(self) -> str:
        """``19 of 19 ops map to the Edge TPU``."""
        if self.compiled:
            return "compiled for the Edge TPU"
        return f"{self.mapped} of {len(self.network)} ops map to the Edge TPU"

    def table(self) -> tuple[tuple[str, int, str], ...]:
        """Operator, count and status, grouped as the compiler's log does it."""
        rows: Counter[tuple[str, str]] = Counter()
        for entry in self.ops:
            mapped = entry.maps and not self.refused
            rows[entry.op.kind.upper(), "Mapped to Edge TPU" if mapped else entry.why or "the file is refused"] += 1
        return tuple((kind, count, status) for (kind, status), count in rows.items())


def map_edgetpu(
    source: bytes | Workload,
    *,
    several: bool = False,
    sram_bytes: int = PARAMETER_SRAM_BYTES,
    reserved: float = RESERVED_PER_ACTIVATION_BYTE,
    obstacles: Sequence[str] | None = None,
) -> EdgeTpuMap:
    """The report.

    Args:
        source: A ``.tflite`` or ``.onnx`` file, or a workload.
        several: As the compiler's ``-a``: several parts of the graph may be compiled.
        sram_bytes: Memory for parameters and activations.
        reserved: Bytes taken from it for each byte of the activations' peak.
        obstacles: `obstacle` of every operation, where it is known already.

    Raises:
        BundleError: The bytes are no model file.
    """
    compiled = isinstance(source, bytes) and EDGETPU_OP in source
    work = read_workload(source) if isinstance(source, bytes) else source
    reasons = list(obstacles or map(obstacle, work.ops))
    if compiled:
        reasons = ["" if op.kind == EDGETPU_OP.decode() else why for op, why in zip(work.ops, reasons, strict=True)]
    refused = () if compiled else _refused(work)
    if not compiled and not several:
        reasons = _one_part(work, reasons)
    on_tpu = tuple([not why and not refused for why in reasons])
    wanted = sum([op.constant_bytes for op in compress(work.ops, on_tpu)])
    peak_bytes = peak_activation_bytes(work, on_tpu)
    room = max(0, sram_bytes - int(reserved * peak_bytes))
    runs = sum([here for here, _ in groupby(on_tpu)])
    return EdgeTpuMap(
        network=work.ops,
        reasons=tuple(reasons),
        on_tpu=on_tpu,
        peak_bytes=peak_bytes,
        on_chip_bytes=min(wanted, room),
        streamed_bytes=max(0, wanted - room),
        refused=refused,
        compiled=compiled,
        parts=runs if several else min(runs, 1),
    )


def depends_on(workload: Workload) -> list[list[int]]:
    """For every operation the earlier ones whose results it reads; a table without wiring counts as a chain."""
    before: list[list[int]] = [[] for _ in workload.ops]
    told = False
    for tensor in workload.tensors:
        readers = tensor.readers or ((tensor.last,) if 0 <= tensor.last < len(before) else ())
        for reader in readers:
            if 0 <= tensor.first < reader < len(before):
                before[reader].append(tensor.first)
                told = True
    return before if told or len(before) < 2 else [[i - 1] if i else [] for i in range(len(before))]


def peak_activation_bytes(workload: Workload, counted: Sequence[bool] | None = None) -> int:
    """The most bytes of tensors that live at the same time, while any counted operation runs."""
    steps = len(workload.ops)
    use = [True] * steps if counted is None else counted
    if not workload.tensors:
        return max((op.input_bytes + op.output_bytes for op in compress(workload.ops, use)), default=0)
    change = [0] * (steps + 1)
    for tensor in workload.tensors:
        first, last, size = tensor.first, tensor.last, tensor.size_bytes
        change[first if first > 0 else 0] += size
        change[last + 1 if last < steps else steps] -= size
    return max(compress(accumulate(change), use), default=0)


def _refused(workload: Workload) -> tuple[str, ...]:
    """What makes the compiler refuse the whole file."""
    found = [why for op in workload.ops if (why := refusal(op))]
    if workload.source == "onnx":
        found.insert(0, "an ONNX file, the compiler takes .tflite files")
    elif not any(op.dtype in INTEGERS for op in workload.ops):
        found.insert(0, "model not quantized: no operation works on int8 or uint8 numbers")
    return tuple(found)


def _one_part(workload: Workload, reasons: list[str]) -> list[str]:
    """Keeps the first part that can be compiled: a later part would read what the CPU computed from an earlier one."""
    if not any(reasons):
        return reasons
    before = depends_on(workload)
    level: list[int] = []
    for i, why in enumerate(reasons):
        level.append(max((level[j] + (bool(reasons[j]) != bool(why)) for j in before[i]), default=0))
    kept = min((n for n, why in zip(level, reasons, strict=True) if not why), default=0)
    return [why or ("" if n == kept else SPLIT) for n, why in zip(level, reasons, strict=True)]
