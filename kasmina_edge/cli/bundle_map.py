"""``bundle map``: what an Edge TPU would take of a model, without its compiler; and deploy's line about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kasmina_edge.bundle import SUFFIX, Bundle, read_file
from kasmina_edge.cli.output import emit, grid, rows_table, size_text
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import BundleError, InputError, KasminaError

if TYPE_CHECKING:
    from kasmina_edge.hardware_simulator.edgetpu_compiler import CompilerReport
    from kasmina_edge.hardware_simulator.edgetpu_map import EdgeTpuMap
    from kasmina_edge.hardware_simulator.layer import Costs

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the verb to ``kasmina-edge bundle``."""
    app.command("map")(map_command)


def map_command(
    path: Annotated[Path, typer.Argument(help="A .kasmina, .tflite or .onnx file.")],
    profile: Annotated[str, typer.Option("--profile", help="A target with an Edge TPU.")] = "coral",
    several: Annotated[
        bool, typer.Option("--several", help="Several parts of the graph, as the compiler's -a makes them.")
    ] = False,
    compiler: Annotated[
        bool, typer.Option("--compiler", help="Run edgetpu_compiler as well and compare; it must be installed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Which operations an Edge TPU would take, why not the others, what streams, and how long it would take."""
    from kasmina_edge.hardware_simulator import read_workload
    from kasmina_edge.hardware_simulator.edgetpu_compiler import compile_model, differences
    from kasmina_edge.hardware_simulator.edgetpu_layer import EdgeTpuLayer

    target = load_profile(profile)
    if target.kind != "edgetpu":
        raise InputError(
            f"profile {target.name}: its kind is {target.kind}, expected edgetpu", "Name one with an Edge TPU: coral."
        )
    data = model_bytes(path)
    layer = EdgeTpuLayer(target)
    plan = layer.map(data, several=several)
    estimate = None if plan.compiled else layer.costs(read_workload(data, path.stem), plan)
    report, apart = None, tuple[str, ...]()
    if compiler:
        report = compile_model(data, several=several).report
        apart = differences(plan, report)
    value = _value(plan, target)
    if estimate is not None:
        value |= {"latency_ms": estimate.latency_ms, "band": estimate.band, "notes": list(estimate.notes)}
    if report is not None:
        value["compiler"] = _compiler_value(report, apart)
    if as_json:
        emit(value, as_json=True)
        return
    times = [op.latency_us for op in estimate.ops] if estimate is not None else [None] * len(plan.ops)
    rows = [
        (
            str(i),
            entry.op.kind,
            "x".join(map(str, entry.op.outputs[0])) if entry.op.outputs else "-",
            "Edge TPU" if entry.maps and not plan.refused else "CPU",
            "-" if us is None else f"{us:.1f}",
            entry.why,
        )
        for i, (entry, us) in enumerate(zip(plan.ops, times, strict=True))
    ]
    emit(value, as_json=False, table=grid("", ("#", "operation", "output", "where", "us", "why"), rows))
    emit(value, as_json=False, table=rows_table(_lines(plan, target, estimate, report, apart)))


def coral_line(bundle: Bundle, profile: HardwareProfile) -> tuple[str, dict[str, Any] | None]:
    """What deploy says about a target with an Edge TPU; ("", None) for others.

    A model that cannot be read or estimated is no reason not to deploy it: the line then says why.
    """
    if profile.kind != "edgetpu":
        return "", None
    from kasmina_edge.hardware_simulator import read_workload
    from kasmina_edge.hardware_simulator.edgetpu_layer import EdgeTpuLayer

    try:
        data, layer = _plain_model(bundle), EdgeTpuLayer(profile)
        plan = layer.map(data)
        value = _value(plan, profile)
        if plan.compiled:
            return plan.line(), value
        estimate = layer.costs(read_workload(data, bundle.manifest.name), plan)
    except KasminaError as exc:
        return f"no estimate: {exc.message}", None
    value |= {"latency_ms": estimate.latency_ms, "band": estimate.band}
    refused = f" (the compiler would refuse the file: {plan.refused[0]})" if plan.refused else ""
    beyond = next((f", {note.partition(':')[0]}" for note in estimate.notes if note.startswith("faster than")), "")
    return f"{plan.line()}, estimated {_duration(estimate.latency_ms, estimate.band)}{beyond}{refused}", value


def model_bytes(path: Path) -> bytes:
    """A model file's bytes, or those of a bundle's plain TFLite file.

    Raises:
        InputError: It cannot be read.
        BundleError: A bundle that is damaged, or holds no such file.
    """
    if path.suffix == SUFFIX:
        return _plain_model(read_file(path))
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})", "Name a .kasmina, .tflite or .onnx file.") from exc


def _plain_model(bundle: Bundle) -> bytes:
    """The model that the compiler would be given: LiteRT's, before any compiling."""
    for model in bundle.manifest.models:
        if model.file.path.endswith(".tflite") and model.compiled_for is None and model.file.path in bundle.files:
            return bundle.files[model.file.path]
    raise BundleError(f"bundle {bundle.id}: holds no .tflite file, which an Edge TPU needs")


def _value(plan: EdgeTpuMap, profile: HardwareProfile) -> dict[str, Any]:
    return {
        "profile": profile.name,
        "mapped": plan.mapped,
        "operations": len(plan.ops),
        "maps_whole": plan.maps_whole,
        "compiled": plan.compiled,
        "on_chip_bytes": plan.on_chip_bytes,
        "streamed_bytes": plan.streamed_bytes,
        "refused": list(plan.refused),
        "segments": [{"where": s.where, "first": s.first, "last": s.last} for s in plan.segments],
        "table": [{"operator": kind, "count": count, "status": status} for kind, count, status in plan.table()],
    }


def _compiler_value(report: CompilerReport, apart: tuple[str, ...]) -> dict[str, Any]:
    return {
        "version": report.version,
        "succeeded": report.succeeded,
        "failure": report.failure,
        "mapped": report.mapped,
        "on_chip_bytes": report.on_chip_bytes,
        "streamed_bytes": report.streamed_bytes,
        "subgraphs": report.subgraphs,
        "differences": list(apart),
    }


def _lines(
    plan: EdgeTpuMap,
    profile: HardwareProfile,
    estimate: Costs | None,
    report: CompilerReport | None,
    apart: tuple[str, ...],
) -> list[tuple[str, str]]:
    rows = [(on_name(profile), f"{plan.line()} in {plan.parts} part{'s' if plan.parts != 1 else ''}")]
    rows += [("because", why) for why in _causes(plan)]
    rows += [("refused", why) for why in plan.refused]
    rows.append(
        ("parameters", f"{size_text(plan.on_chip_bytes)} on the chip, {size_text(plan.streamed_bytes)} streamed")
    )
    if estimate is not None:
        rows.append(("estimated", _duration(estimate.latency_ms, estimate.band)))
        rows += [("", note) for note in estimate.notes if note != plan.line()]
    if report is not None:
        rows.append(("compiler", report.line()))
        rows += [("", f"differs: {sentence}") for sentence in apart]
    return rows


def _causes(plan: EdgeTpuMap) -> list[str]:
    """The first operation that does not map, then how many go with it; then what is not certain."""
    said = []
    if plan.roots and not plan.compiled:
        first = plan.roots[0]
        said.append(f"{first.op.place or first.op.kind}: {first.why}")
        more, kinds = len(plan.roots) - 1, plan.followers
        rest = [f"{more} more of their own"] * bool(more) + [f"{kinds} that depend on what stays"] * bool(kinds)
        said += [f"and on the CPU {', '.join(rest)}"] * bool(rest)
    doubts = [e for e in plan.ops if e.maps and e.why]
    said += [f"not certain, {doubts[0].op.place or doubts[0].op.kind}: {doubts[0].why}"] * bool(doubts)
    return said


def on_name(profile: HardwareProfile) -> str:
    """``on coral``: the name that people type."""
    return f"on {profile.aliases[0] if profile.aliases else profile.name}"


def _duration(latency_ms: float, band: float | None) -> str:
    shown = f"{latency_ms:.1f} ms" if latency_ms >= 0.1 else f"{1000 * latency_ms:.0f} us"
    return f"{shown} ± {100 * band:.0f} %" if band is not None else f"{shown}, band unknown"
