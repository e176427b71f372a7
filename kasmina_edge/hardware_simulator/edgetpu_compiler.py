"""Google's ``edgetpu_compiler``, where it is installed: called with a limit, its log read and held against our map.

The log's form is that of versions 2.0 to 16.0 as users pasted it (google-coral/edgetpu issues #60, #324, #427, #572,
#671); failures as in #168, #434, #512, #631, #829, #862 and #903.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.errors import EngineError
from kasmina_edge.hardware_simulator.edgetpu_map import EdgeTpuMap
from kasmina_edge.hardware_simulator.tflite_operators import OPERATORS

PROGRAM = "edgetpu_compiler"
LIMIT_S = 240.0
"""Above the compiler's own limit of 180 s, so that it may say itself that it took too long."""
MAX_LOG_BYTES = 1 << 20
MAPPED = "Mapped to Edge TPU"
INSTALL = (
    "Install it with `apt-get install edgetpu-compiler` from Coral's package repository on an x86-64 machine "
    "(https://coral.ai/docs/edgetpu/compiler/); without it the mapping report of Kasmina stands alone."
)
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)"
_ROW = re.compile(r"^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_VAGUE = "Model failed in Tflite interpreter"
_ERROR = re.compile(r"^ERROR: (.+)$", re.MULTILINE)
_FAILURES = (
    re.compile(r"^Compilation failed: (?:Compilation failed )?(.+)$", re.MULTILINE),
    re.compile(r"^ERROR: (Didn't find op.+)$", re.MULTILINE),
    re.compile(r"^ERROR: (Op builtin_code.+)$", re.MULTILINE),
    re.compile(r"^Invalid model: .*\n(.+)$", re.MULTILINE),
    re.compile(r"^(Internal compiler error.*)$", re.MULTILINE),
    re.compile(r"^(Compilation failed.*)$", re.MULTILINE),
    _ERROR,
)


@dataclass(frozen=True)
class OperatorRow:
    """One line of the log's table.

    Attributes:
        kind: The schema's word, upper case; ``CUSTOM`` for all custom ones.
        count: How many.
        status: ``Mapped to Edge TPU``, or why not.
    """

    kind: str
    count: int
    status: str


@dataclass(frozen=True)
class CompilerReport:
    """A log as values; None: the log does not say.

    Attributes:
        version: E.g. ``16.0.384591198``; "" where it names none.
        succeeded: A compiled file was written.
        failure: The compiler's sentence, "" where it succeeded.
        on_chip_bytes: Parameters cached in the SRAM.
        remaining_bytes: Of the SRAM for parameters.
        streamed_bytes: Parameters that come from the host at every inference.
        subgraphs: Parts compiled.
        operations: In the file.
        rows: The operator table; () where the log has none.
    """

    version: str
    succeeded: bool
    failure: str = ""
    on_chip_bytes: int | None = None
    remaining_bytes: int | None = None
    streamed_bytes: int | None = None
    subgraphs: int | None = None
    operations: int | None = None
    rows: tuple[OperatorRow, ...] = ()

    @property
    def mapped(self) -> int:
        """Operations on the Edge TPU."""
        return sum(row.count for row in self.rows if row.status == MAPPED)

    def line(self) -> str:
        """``19 of 19 ops mapped by compiler 16.0.384591198``."""
        if not self.succeeded:
            return f"compiler {self.version or 'of unknown version'} failed: {self.failure}"
        total = self.operations if self.operations is not None else sum(row.count for row in self.rows)
        return f"{self.mapped} of {total} ops mapped by compiler {self.version}"


@dataclass(frozen=True)
class Compiled:
    """What a call gave.

    Attributes:
        report: The log.
        data: The compiled file; None where it failed.
        log: As printed, at most `MAX_LOG_BYTES`.
    """

    report: CompilerReport
    data: bytes | None
    log: str


def read_log(text: str) -> CompilerReport:
    """A log as values, of a success or a failure; unknown lines are passed over.

    >>> report = read_log("Edge TPU Compiler version 16.0.384591198\\nInvalid model: a.tflite\\nModel not quantized\\n")
    >>> report.version, report.succeeded, report.failure
    ('16.0.384591198', False, 'Model not quantized')
    """
    version = re.search(r"Edge TPU Compiler version (\S+)", text)
    done = max(text.rfind("Model compiled successfully"), text.rfind("Models compiled successfully"))
    succeeded = done > text.rfind("Compilation failed")  # a search over segments fails some before one compiles
    failure = "" if succeeded else _failure(text)
    table = text.partition("\nOperator")[2]
    return CompilerReport(
        version[1] if version else "",
        succeeded,
        failure,
        _size(text, "On-chip memory used for caching model parameters"),
        _size(text, "On-chip memory remaining for caching model parameters"),
        _size(text, "Off-chip memory used for streaming uncached model parameters"),
        _number(text, "Number of Edge TPU subgraphs"),
        _number(text, "Total number of operations"),
        tuple(OperatorRow(kind, int(count), status) for kind, count, status in _ROW.findall(table)),
    )


def find_compiler() -> str | None:
    """The program on PATH; None where there is none."""
    return shutil.which(PROGRAM)


def compile_model(
    data: bytes, *, program: str | None = None, limit_s: float = LIMIT_S, several: bool = False
) -> Compiled:
    """Run the compiler on a file.

    Args:
        data: An uncompiled ``.tflite``.
        program: Path of the compiler; None looks on PATH.
        limit_s: After that it is stopped, with everything that it started.
        several: Pass ``-a``.

    Raises:
        EngineError: There is no compiler, it cannot be started, or it took longer than the limit.
    """
    found = program or find_compiler()
    if found is None:
        raise EngineError(f"{PROGRAM} is not on PATH", INSTALL)
    with tempfile.TemporaryDirectory(prefix="kasmina-edgetpu-") as name:
        folder = Path(name)
        model, log = folder / "model.tflite", folder / "printed"
        model.write_bytes(data)
        command = [found, "-s", *(["-a"] if several else []), "-o", name, str(model)]
        with log.open("wb") as printed:
            _run(command, printed.fileno(), limit_s)
        with log.open("rb") as printed:
            text = printed.read(MAX_LOG_BYTES).decode(errors="replace")
        made = folder / "model_edgetpu.tflite"
        report = read_log(text)
        compiled = made.read_bytes() if report.succeeded and made.is_file() else None
    return Compiled(report, compiled, text)


def differences(plan: EdgeTpuMap, report: CompilerReport) -> tuple[str, ...]:
    """Where our map and the compiler part, as sentences; () where they agree."""
    if plan.refused or not report.succeeded:
        if bool(plan.refused) == (not report.succeeded):
            return ()
        said = plan.refused[0] if plan.refused else "the file compiles"
        return (f"our map says: {said}; the compiler says: {report.failure or 'the file compiles'}",)
    found: list[str] = []
    if report.rows:
        ours, theirs = Counter[str](), Counter[str]()
        for entry in plan.ops:
            ours[_word(entry.op.kind)] += entry.maps
        for row in report.rows:
            theirs[row.kind] += row.count if row.status == MAPPED else 0
        for kind in sorted(set(ours) | set(theirs)):
            if ours[kind] != theirs[kind]:
                why = next((r.status for r in report.rows if r.kind == kind and r.status != MAPPED), "")
                found.append(
                    f"{kind}: our map takes {ours[kind]}, the compiler {theirs[kind]}" + (f" ({why})" if why else "")
                )
    if report.streamed_bytes is not None and bool(report.streamed_bytes) != bool(plan.streamed_bytes):
        found.append(
            f"streamed parameters: our map says {plan.streamed_bytes} bytes, the compiler {report.streamed_bytes}"
        )
    return tuple(found)


def _run(command: list[str], output: int, limit_s: float) -> None:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as exc:
        raise EngineError(f"{command[0]} cannot be started ({exc.strerror})", INSTALL) from exc
    try:
        process.wait(limit_s)
    except BaseException as exc:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the compiler works in a child of its own
        process.wait()
        if not isinstance(exc, subprocess.TimeoutExpired):
            raise
        raise EngineError(
            f"{command[0]} took more than {limit_s:g} s and was stopped",
            "Give the model fewer or smaller operations, or compile it by hand with a longer --timeout_sec.",
        ) from exc


def _failure(text: str) -> str:
    for pattern in _FAILURES:
        match = pattern.search(text)
        if match:
            reason, error = match[1].strip(), _ERROR.search(text)
            return f"{reason} ({error[1].strip()})" if error and reason.startswith(_VAGUE) else reason
    return "the log names no reason"


def _size(text: str, label: str) -> int | None:
    match = re.search(rf"^{re.escape(label)}: {_SIZE}\s*$", text, re.MULTILINE)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None


def _number(text: str, label: str) -> int | None:
    match = re.search(rf"^{re.escape(label)}: (\d+)\s*$", text, re.MULTILINE)
    return int(match[1]) if match else None


def _word(kind: str) -> str:
    """Our word as the log spells it."""
    word = "arg_max" if kind == "argmax" else kind
    return word.upper() if word in OPERATORS else "CUSTOM"
